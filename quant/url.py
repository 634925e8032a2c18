"""Fetch a model by its link: one file, or a first shard and those beside it; kept in meshctl's own cache.

A web server says less than the hub: its files are what they were by ETag or date, right by the user's `#sha256=` where
the link has one, and whole by what the GGUF itself says of its tensors.
"""

import asyncio
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote, urlsplit

import httpx

from quant.download import (
    Fetched,
    MakeRoom,
    Progress,
    Remote,
    Say,
    check_answer,
    check_disk,
    digest_of,
    fetch_parts,
    locked,
    nothing_goes,
    place_together,
    stated_range,
    stated_validator,
)
from quant.errors import ModelFetchError, ModelFileError
from quant.gguf_file import read_model
from quant.pulled import PulledFile, pulled_file
from quant.source import UrlSource, shard_names

_STRANGE = re.compile(r"[^\w.+-]")


async def fetch_url(
    client: httpx.AsyncClient,
    source: UrlSource,
    cache: Path,
    on_progress: Progress,
    say: Say,
    make_room: MakeRoom = nothing_goes,
    earlier: tuple[PulledFile, ...] = (),
) -> tuple[PulledFile, ...]:
    """Fetch every file of the model; the first one names it. ModelFetchError with the reason and the next move.

    `earlier` is what came of this link before: it stays where nobody has touched it and the server has the same still.
    """
    if (count := len(shard_names(source.file_name))) > 1:
        say(f"asking how large the {count} files of {source.file_name} are")
    remotes = await look_at_url(client, source, cache)
    if _is_unchanged(earlier, remotes):
        say(f"{source.file_name} has not changed")
        return earlier
    first = next(iter(remotes))
    first.parent.mkdir(parents=True, exist_ok=True)
    async with locked(first.with_name(f".{first.name}.lock"), source.file_name, say) as waited:
        digests = await _digests_there(remotes) if waited else ()
        if not digests:
            await make_room({path.name: remote.size_bytes for path, remote in remotes.items()})
            digests = await _fetch(client, source, remotes, on_progress, say)
        files = zip(remotes.items(), digests, strict=True)
        return tuple(pulled_file(path, digest, remote.validator) for (path, remote), digest in files)


def url_paths(source: UrlSource, cache: Path) -> tuple[Path, ...]:
    """Where its files lie: named as they are there, after digits for where "there" is, because names repeat."""
    place = urlsplit(source.url)._replace(query="", fragment="").geturl().rpartition("/")[0]
    prefix = hashlib.sha256(place.encode()).hexdigest()[:8]
    names = (_STRANGE.sub("_", name) for name in shard_names(source.file_name))
    return tuple(cache / "models" / f"{prefix}-{name}" for name in names)


async def look_at_url(client: httpx.AsyncClient, source: UrlSource, cache: Path) -> Mapping[Path, Remote]:
    """Its files at the server, by where they would lie in this cache; each is asked for its size, before any comes.

    ModelFetchError as of `fetch_url`.
    """
    paths = url_paths(source, cache)
    digests = (source.sha256, *[""] * (len(paths) - 1))
    files = zip(paths, _links(source), digests, strict=True)
    return {target: await _remote(client, link, digest) for target, link, digest in files}


def _links(source: UrlSource) -> Iterator[str]:
    """The named one as it was given: some servers sign every letter of a link."""
    _, *others = shard_names(source.file_name)
    link = urlsplit(source.url)
    place = link.path.rpartition("/")[0]
    yield source.url
    for name in others:
        yield link._replace(path=f"{place}/{quote(name)}").geturl()


async def _remote(client: httpx.AsyncClient, url: str, digest: str) -> Remote:
    headers = {"Accept-Encoding": "identity", "Range": "bytes=0-0"}
    try:
        async with client.stream("GET", url, headers=headers) as response:
            check_answer(response, url)
            stated = stated_range(response)
            validator = stated_validator(response)
    except (httpx.RequestError, httpx.InvalidURL) as error:
        raise ModelFetchError(
            f"{url.partition('?')[0]} cannot be reached: {error or type(error).__name__}",
            hint="check the link and the network",
        ) from error
    if stated is None:
        raise ModelFetchError(
            f"{url.partition('?')[0]}: the server does not say how large it is",
            hint="fetch it yourself, for example with curl, and name its path",
        )
    return Remote(url, stated[1], digest, validator)


def _is_unchanged(earlier: tuple[PulledFile, ...], remotes: Mapping[Path, Remote]) -> bool:
    """Untouched here, and the same there as far as the server tells."""
    if [one.path for one in earlier] != [str(path) for path in remotes]:
        return False
    return all(
        one.is_untouched
        and bool(remote.validator)
        and (one.size_bytes, one.validator) == (remote.size_bytes, remote.validator)
        for one, remote in zip(earlier, remotes.values(), strict=True)
    )


async def _digests_there(remotes: Mapping[Path, Remote]) -> tuple[str, ...]:
    """The hashes of what another program has just fetched; nothing where that is not what is wanted."""
    if not all(path.is_file() and path.stat().st_size == remote.size_bytes for path, remote in remotes.items()):
        return ()
    digests = tuple([await digest_of(path, remote.digest) for path, remote in remotes.items()])
    wanted = (remote.digest for remote in remotes.values())
    return digests if all(one in ("", digest) for one, digest in zip(wanted, digests, strict=True)) else ()


async def _fetch(
    client: httpx.AsyncClient, source: UrlSource, remotes: Mapping[Path, Remote], on_progress: Progress, say: Say
) -> tuple[str, ...]:
    """Their hashes. What was there in their place stays until all of them are whole and a model."""
    check_disk(source.file_name, next(iter(remotes)).parent, remotes)
    fetched = await fetch_parts(client, remotes, on_progress, say)
    await asyncio.to_thread(_check, source, fetched)
    place_together(fetched)
    return tuple(one.digest for one in fetched.values())


def _check(source: UrlSource, fetched: Mapping[Path, Fetched]) -> None:
    """What is no whole GGUF is not kept. Shards know each other by their names: links in a folder lend them these."""
    with TemporaryDirectory(prefix="meshctl-") as folder:
        lent = {Path(folder, target.name): one.part for target, one in fetched.items()}
        for link, part in lent.items():
            link.symlink_to(part.absolute())
        try:
            read_model(next(iter(lent)))
        except ModelFileError as error:
            for part in lent.values():
                part.unlink(missing_ok=True)
            said = str(error).replace(f"{folder}/", "")
            raise ModelFetchError(
                f"what came from {source.url.partition('?')[0]} is no model: {said}; it is deleted",
                hint="check that the link leads to the .gguf file itself, not to a page about it",
            ) from error

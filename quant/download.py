"""Fetch one file over HTTP: gone on with where it was cut off, compared with its hash, named only when it is whole.

The hub's own library (2.4) begins every transfer anew and cannot be interrupted cleanly; so bytes come this way from
everywhere. What is unfinished lies beside the file's place and is what the next try goes on with.
"""

import asyncio
import hashlib
import os
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import unquote

import httpx
from filelock import AsyncFileLock, Timeout

from quant.errors import ModelFetchError
from quant.sizes import size_text
from quant.whole_file import check_room

Progress = Callable[[int, int], None]
"""Called with (bytes fetched, bytes in all)."""

Say = Callable[[str], None]
"""Told one line worth reading."""

MakeRoom = Callable[[Mapping[str, int]], Awaitable[None]]
"""Told the bytes of the files that are about to come into meshctl's own folder, by their names there; it may remove
others for them."""

PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Before each further try; counted anew whenever something came."""

_SEGMENT_BYTES = 16 << 30
"""Asked for at once: some servers before the hub give no more than 50 GB in one answer."""

_CHUNK_BYTES = 4 << 20
_TIMEOUT = httpx.Timeout(30.0, connect=10.0)
_AGAIN_LATER = (408, 425, 429, 500, 502, 503, 504)
_TELL_EVERY_S = 0.1
_ANOTHER_S = 24 * 3600.0
_SHA1_DIGITS = 40
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-\d+/(\d{1,18})")
_CONTENT_LENGTH = re.compile(r"\d{1,18}")
"""No file is larger than that; servers that say so mean harm."""


@dataclass(frozen=True)
class Remote:
    """A file to fetch. `digest`: its sha256, git's hash of it, or "". `validator`: a date or ETag, for `If-Range`."""

    url: str
    size_bytes: int
    digest: str = ""
    validator: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """Where it is, without what may be a secret."""
        return _shown(self.url)

    @property
    def name(self) -> str:
        """Of the file, as it is called there."""
        return unquote(self.shown.rpartition("/")[2])

    @property
    def identity(self) -> str:
        """The same as long as the file is, so that what came of it earlier can be gone on with; "" if unknown."""
        if self.digest:
            return self.digest[:12]
        place = f"{self.shown} {self.validator} {self.size_bytes}"
        return hashlib.sha256(place.encode()).hexdigest()[:12] if self.validator else ""


@dataclass(frozen=True)
class Fetched:
    """A file that is whole and has the hash that it should have, but not its name yet."""

    part: Path
    digest: str


class RefusedError(ModelFetchError):
    """The server answered with this status. `code` and `said`: the hub's own word and sentence for it, "" from others.

    Who asked a hub knows more of what that means than the hint does.
    """

    def __init__(self, status: int, url: str, headers: Mapping[str, str]) -> None:
        super().__init__(f"{url} answers with {status}", hint=_next_move(status))
        self.status = status
        self.code = headers.get("X-Error-Code", "")
        self.said = headers.get("X-Error-Message", "")


class BusyError(RefusedError):
    """A refusal that may be another answer soon."""


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


async def nothing_goes(coming: Mapping[str, int]) -> None:
    """Make no room."""


def web_client() -> httpx.AsyncClient:
    """It follows redirects, and tells another server nothing of who asks."""
    return httpx.AsyncClient(follow_redirects=True, timeout=_TIMEOUT)


@asynccontextmanager
async def locked(lock: Path, what: str, say: Say) -> AsyncIterator[bool]:
    """Hold this lock; gives whether another program had it first, which is said. ModelFetchError after a day."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    held, waited = AsyncFileLock(lock, timeout=_ANOTHER_S), False
    try:
        await held.acquire(timeout=0)
    except Timeout:
        say(f"another program is fetching {what}: waiting for it")
        waited = True
        await _acquire(held, what)
    try:
        yield waited
    finally:
        await held.release()


async def _acquire(lock: AsyncFileLock, what: str) -> None:
    try:
        await lock.acquire()
    except Timeout as error:
        raise ModelFetchError(
            f"another program has been fetching {what} for {_ANOTHER_S / 3600:.0f} hours", hint="end it, then try again"
        ) from error


def check_disk(what: str, folder: Path, remotes: Mapping[Path, Remote]) -> None:
    """ModelFetchError with the numbers where `folder` has no room for what is still to come."""
    wanted = sum(remote.size_bytes - _size_bytes(_part(target, remote)) for target, remote in remotes.items())
    check_room(
        folder,
        wanted,
        f"fetching {what}",
        error=ModelFetchError,
        hint="make room there, or keep models on another disk (HF_HOME for hf: models, else XDG_CACHE_HOME)",
    )


async def fetch_parts(
    client: httpx.AsyncClient,
    remotes: Mapping[Path, Remote],
    on_progress: Progress,
    say: Say,
    pauses_s: Iterable[float] = PAUSES_S,
) -> dict[Path, Fetched]:
    """Fetch what belongs together, by where it will lie, one file after the other. Progress is that of all of them.

    Nothing has its name before all are there: what came before a failure is what the next try goes on with.
    """
    total = sum(remote.size_bytes for remote in remotes.values())
    before, fetched = 0, dict[Path, Fetched]()
    for target, remote in remotes.items():
        on_bytes = shifted(on_progress, before, total)
        fetched[target] = await fetch_part(client, remote, target, on_bytes, say, pauses_s)
        before += remote.size_bytes
        for one in fetched.values():
            one.part.touch()  # caches are tidied by age, and the others may take days
    return fetched


def place_together(fetched: dict[Path, Fetched]) -> None:
    """Give all of them their names. The first file names the model: it goes first and comes last, so that nobody takes
    some of the old files and some of the new ones for a model."""
    first, *others = fetched
    if others:
        first.unlink(missing_ok=True)
    for target in reversed(fetched):
        fetched[target].part.replace(target)


def shifted(on_progress: Progress, before: int, total: int) -> Callable[[int], None]:
    """The progress of one file as that of all `total` bytes, of which `before` come before it."""
    return lambda done: on_progress(before + done, total)


async def fetch_file(
    client: httpx.AsyncClient,
    remote: Remote,
    target: Path,
    on_bytes: Callable[[int], None],
    say: Say,
    pauses_s: Iterable[float] = PAUSES_S,
) -> str:
    """Fetch it to `target`, as `fetch_part` does; its hash."""
    fetched = await fetch_part(client, remote, target, on_bytes, say, pauses_s)
    fetched.part.replace(target)
    return fetched.digest


async def fetch_part(
    client: httpx.AsyncClient,
    remote: Remote,
    target: Path,
    on_bytes: Callable[[int], None],
    say: Say,
    pauses_s: Iterable[float] = PAUSES_S,
) -> Fetched:
    """Fetch all of what will lie at `target`, going on with what came earlier, which is said.

    RefusedError or ModelFetchError; what came stays for the next time, but for a file of another hash.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _part(target, remote)
    _forget_others(target, part)
    if not remote.identity or _size_bytes(part) > remote.size_bytes:
        part.unlink(missing_ok=True)
    if have := _size_bytes(part):
        say(f"going on with {remote.name}: {size_text(have)} of {size_text(remote.size_bytes)} came earlier")
    digest = await _complete(client, remote, part, on_bytes, tuple(pauses_s))
    if remote.digest and digest.hexdigest() != remote.digest:
        part.unlink()
        raise ModelFetchError(
            f"{remote.name} came with the hash {digest.hexdigest()} instead of {remote.digest}; it is deleted",
            hint="check the hash if you gave it, else try again; if it stays so, something between here and there "
            "changes files (a proxy, a mirror)",
        )
    return Fetched(part, digest.hexdigest())


async def digest_of(path: Path, kind: str) -> str:
    """The hash of a file, of the kind that `kind` is."""
    digest = _digest(kind, path.stat().st_size)
    await _feed(digest, path)
    return digest.hexdigest()


def _part(target: Path, remote: Remote) -> Path:
    """Where an unfinished file lies. The ending is kept for a day when a cache is tidied (`workers.agent`)."""
    return target.with_name(f".{target.name}.{remote.identity or 'new'}.resumed.part")


def _forget_others(target: Path, part: Path) -> None:
    """Parts of what the server had in its place earlier."""
    for other in target.parent.glob(f".{target.name}.*.resumed.part"):
        if other != part:
            other.unlink(missing_ok=True)


def _size_bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


class _Part:
    """An unfinished file, and the digest of what it has."""

    def __init__(self, file: BinaryIO, digest: _Digest, remote: Remote) -> None:
        self._file, self.digest, self._remote = file, digest, remote

    @property
    def size_bytes(self) -> int:
        return self._file.tell()

    def put(self, start: int, chunk: bytes) -> None:
        """What comes goes to the end, or to the beginning, and then all of it comes again."""
        if start < self.size_bytes:
            self._file.truncate(start)
            self._file.seek(start)
            self.digest = _digest(self._remote.digest, self._remote.size_bytes)
        self._file.write(chunk)
        self.digest.update(chunk)


async def _complete(
    client: httpx.AsyncClient, remote: Remote, path: Path, on_bytes: Callable[[int], None], pauses_s: tuple[float, ...]
) -> _Digest:
    """Fetch until the part at `path` has every byte; its digest."""
    digest = _digest(remote.digest, remote.size_bytes)
    await _feed(digest, path)
    with path.open("ab") as file:
        part = _Part(file, digest, remote)
        on_bytes(part.size_bytes)
        furthest, failures = part.size_bytes, 0
        while part.size_bytes < remote.size_bytes:
            reason = await _take(client, remote, part, _at_intervals(on_bytes))
            failures = 0 if part.size_bytes > furthest else failures + 1
            furthest = max(furthest, part.size_bytes)
            if failures > len(pauses_s):
                raise ModelFetchError(
                    f"{remote.shown}: {reason}; {size_text(furthest)} of {size_text(remote.size_bytes)} came",
                    hint="check the network; the same command goes on where this one stopped",
                )
            if failures:
                await asyncio.sleep(pauses_s[failures - 1])
        file.flush()
        os.fsync(file.fileno())
    on_bytes(remote.size_bytes)
    return part.digest


async def _take(client: httpx.AsyncClient, remote: Remote, part: _Part, tell: Callable[[int], None]) -> str:
    """Put what comes of one request into `part`; why there is no more of it."""
    try:
        async with aclosing(answer(client, remote, part.size_bytes)) as pieces:
            async for start, chunk in pieces:
                part.put(start, chunk)
                tell(part.size_bytes)
    except BusyError as error:
        return f"the server answers with {error.status}"
    except httpx.RequestError as error:
        return str(error) or type(error).__name__
    return "the answer ended early"


def _at_intervals(on_bytes: Callable[[int], None]) -> Callable[[int], None]:
    """Tells not each of the many small pieces that come from a network."""
    told_s = -_TELL_EVERY_S

    def tell(done: int) -> None:
        nonlocal told_s
        now_s = time.monotonic()
        if now_s - told_s >= _TELL_EVERY_S:
            told_s = now_s
            on_bytes(done)

    return tell


async def answer(
    client: httpx.AsyncClient, remote: Remote, have: int, most_bytes: int = _SEGMENT_BYTES
) -> AsyncGenerator[tuple[int, bytes]]:
    """What comes from byte `have` on, or from the first where the server gives nothing else: (where it goes, bytes).

    `most_bytes` are asked for; a server that gives nothing else sends the whole file.
    """
    end = min(have + most_bytes, remote.size_bytes)
    headers = {**remote.headers, "Accept-Encoding": "identity", "Range": f"bytes={have}-{end - 1}"}
    if remote.validator:
        headers["If-Range"] = remote.validator
    async with client.stream("GET", remote.url, headers=headers) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise _another(remote, "it has become shorter")
        check_answer(response, remote.url)
        is_part = response.status_code == httpx.codes.PARTIAL_CONTENT
        place = have if is_part else 0
        if stated_range(response) != (place, remote.size_bytes):
            raise _another(remote, "it states other sizes")
        if is_part and _states_another(remote, response.headers):  # not every server heeds If-Range
            raise _another(remote, "it has changed")
        async for chunk in response.aiter_raw():
            if place + len(chunk) > remote.size_bytes:
                raise ModelFetchError(f"{remote.shown} sends more than it states", hint="run the same again")
            yield place, chunk
            place += len(chunk)


def _another(remote: Remote, why: str) -> ModelFetchError:
    return ModelFetchError(f"{remote.shown} is not what it was a moment ago: {why}", hint="run the same again")


def _states_another(remote: Remote, headers: httpx.Headers) -> bool:
    """Whether the answer's ETag or date is another one than it was; not where it states none of that kind."""
    stated = headers.get("ETag" if remote.validator.startswith('"') else "Last-Modified", "")
    return bool(remote.validator and stated) and not stated.startswith("W/") and stated != remote.validator


def check_answer(response: httpx.Response, asked: str) -> None:
    """RefusedError where this is not (part of) the file, ModelFetchError where it came here without encryption."""
    if response.status_code in _AGAIN_LATER:
        raise BusyError(response.status_code, _shown(asked), response.headers)
    if response.status_code not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
        raise RefusedError(response.status_code, _shown(asked), response.headers)
    places = [one.url for one in (*response.history, response)]
    plain = next((place.host for place in places if place.scheme != "https"), "")
    if asked.startswith("https:") and plain:
        raise ModelFetchError(
            f"{_shown(asked)} leads to {plain} without encryption", hint="fetch it yourself and name its path"
        )


def _next_move(status: int) -> str:
    if status in (401, 403):
        return "it wants a login: fetch the file yourself and name its path"
    if status in _AGAIN_LATER or status >= 500:
        return "try again in a few minutes"
    return "check the link, in a browser for example"


def stated_range(response: httpx.Response) -> tuple[int, int] | None:
    """Where what this answer brings begins in the file, and how long the file is; None where it does not say so."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        return None
    if response.status_code == httpx.codes.PARTIAL_CONTENT:
        stated = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        return (int(stated[1]), int(stated[2])) if stated else None
    length = response.headers.get("Content-Length", "")
    return (0, int(length)) if _CONTENT_LENGTH.fullmatch(length) else None


def stated_validator(response: httpx.Response) -> str:
    """What `If-Range` takes: a strong ETag, else the date of the last change, else ""."""
    etag = str(response.headers.get("ETag", ""))
    return etag if etag and not etag.startswith("W/") else str(response.headers.get("Last-Modified", ""))


def _shown(url: str) -> str:
    """Without what may be a secret."""
    return url.partition("?")[0]


def _digest(kind: str, size_bytes: int) -> _Digest:
    """Git hashes a file with its size in front."""
    if len(kind) != _SHA1_DIGITS:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)


async def _feed(digest: _Digest, path: Path) -> None:
    """Hash what is there, beside the event loop and a piece at a time, so that it can be cancelled."""
    if not path.exists():
        return
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
            await asyncio.to_thread(digest.update, chunk)

"""Single files over HTTP: cut off and gone on with, wrong, refused, cancelled."""

import asyncio
import hashlib
import os
from pathlib import Path

import httpx
import pytest

from quant.download import (
    Fetched,
    RefusedError,
    Remote,
    check_answer,
    check_disk,
    digest_of,
    fetch_file,
    fetch_parts,
    place_together,
    stated_range,
    web_client,
)
from quant.errors import ModelFetchError
from tests.quant.web_server import WebServer

DATA = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(DATA).hexdigest()
LAST = len(DATA) - 1
AT_ONCE = (0.0, 0.0, 0.0)


def remote(web: WebServer, name: str = "a.gguf", digest: str = SHA256, validator: str = "") -> Remote:
    web.files.setdefault(name, DATA)
    return Remote(f"{web.url}/files/{name}?key=secret", len(DATA), digest, validator)


async def fetch(
    wanted: Remote, target: Path, pauses_s: tuple[float, ...] = AT_ONCE, said: list[str] | None = None
) -> list[int]:
    """Progress as it was told."""
    seen: list[int] = []
    async with web_client() as client:
        await fetch_file(client, wanted, target, seen.append, (said if said is not None else []).append, pauses_s)
    return seen


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_a_file_comes_whole_with_its_progress(web: WebServer, tmp_path: Path) -> None:
    seen = await fetch(remote(web), tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == DATA
    assert (seen[0], seen[-1]) == (0, len(DATA))
    assert seen == sorted(seen)
    assert names_in(tmp_path) == ["a.gguf"]


async def test_a_broken_transfer_goes_on_where_it_broke(web: WebServer, tmp_path: Path) -> None:
    web.breaks = [200_000, 300_000]
    await fetch(remote(web), tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == DATA
    first, second, third = web.ranges_of("a.gguf")
    assert (first, third) == (f"bytes=0-{LAST}", f"bytes=500000-{LAST}")
    assert second == f"bytes=200000-{LAST}"


async def test_what_came_before_a_failure_is_not_fetched_again(web: WebServer, tmp_path: Path) -> None:
    web.breaks = [200_000, 0]
    with pytest.raises(ModelFetchError) as caught:
        await fetch(remote(web), tmp_path / "a.gguf", pauses_s=())
    assert str(caught.value).startswith(f"{web.url}/files/a.gguf: ")
    assert str(caught.value).endswith("; 195 KiB of 1.0 MiB came")
    assert caught.value.hint == "check the network; the same command goes on where this one stopped"
    web.asked.clear()
    said: list[str] = []
    await fetch(remote(web), tmp_path / "a.gguf", said=said)
    assert said == ["going on with a.gguf: 195 KiB of 1.0 MiB came earlier"]
    assert web.ranges_of("a.gguf") == [f"bytes=200000-{LAST}"]
    assert (tmp_path / "a.gguf").read_bytes() == DATA
    assert names_in(tmp_path) == ["a.gguf"]


async def test_a_cancelled_transfer_can_be_gone_on_with(web: WebServer, tmp_path: Path) -> None:
    web.hangs = True
    came, said = asyncio.Event(), list[str]()

    def listen(done: int) -> None:
        if done:
            came.set()

    async def work() -> None:
        async with web_client() as client:
            await fetch_file(client, remote(web), tmp_path / "a.gguf", listen, said.append)

    fetching = asyncio.create_task(work())
    async with asyncio.timeout(30):
        await came.wait()
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
    (part,) = tmp_path.iterdir()
    have = part.stat().st_size
    assert 0 < have <= 65536
    web.hangs = False
    web.asked.clear()
    await fetch(remote(web), tmp_path / "a.gguf")
    assert web.ranges_of("a.gguf") == [f"bytes={have}-{LAST}"]
    assert (tmp_path / "a.gguf").read_bytes() == DATA


async def test_a_server_without_ranges_gives_everything_again(web: WebServer, tmp_path: Path) -> None:
    web.ranges = False
    web.breaks = [200_000]
    await fetch(remote(web), tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == DATA
    assert len(web.asked) == 2


async def test_a_server_without_ranges_that_always_breaks_is_given_up(web: WebServer, tmp_path: Path) -> None:
    web.ranges = False
    web.breaks = [200_000] * 10
    with pytest.raises(ModelFetchError):
        await fetch(remote(web), tmp_path / "a.gguf")
    assert len(web.asked) == 2 + len(AT_ONCE)


@pytest.mark.parametrize("heeds_if_range", [True, False])
async def test_a_file_that_changes_meanwhile_is_not_mixed_with_what_came(
    web: WebServer, tmp_path: Path, heeds_if_range: bool
) -> None:
    """Of the same size. A server that heeds If-Range sends all of the new one."""
    web.breaks, web.ignores_if_range = [200_000, 0], not heeds_if_range
    wanted = remote(web, digest="", validator='"one"')
    with pytest.raises(ModelFetchError):
        await fetch(wanted, tmp_path / "a.gguf", pauses_s=())
    web.validator, web.files["a.gguf"] = '"two"', DATA[::-1]
    if heeds_if_range:
        await fetch(wanted, tmp_path / "a.gguf")
    else:
        with pytest.raises(ModelFetchError, match=r"is not what it was a moment ago: it has changed$"):
            await fetch(wanted, tmp_path / "a.gguf")
        await fetch(Remote(wanted.url, len(DATA), "", '"two"'), tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == DATA[::-1]
    assert names_in(tmp_path) == ["a.gguf"]


@pytest.mark.parametrize(
    ("size", "why"), [(len(DATA) - 1, "it states other sizes"), (100_000, "it has become shorter")]
)
async def test_a_file_that_becomes_shorter_meanwhile_is_begun_anew(
    web: WebServer, tmp_path: Path, size: int, why: str
) -> None:
    web.breaks, web.ignores_if_range = [200_000, 0], True
    wanted = remote(web, digest="", validator='"one"')
    with pytest.raises(ModelFetchError):
        await fetch(wanted, tmp_path / "a.gguf", pauses_s=())
    web.validator, web.files["a.gguf"] = '"two"', DATA[:size]
    with pytest.raises(ModelFetchError, match=f"is not what it was a moment ago: {why}$"):
        await fetch(wanted, tmp_path / "a.gguf")
    await fetch(Remote(wanted.url, size, "", '"two"'), tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == DATA[:size]
    assert names_in(tmp_path) == ["a.gguf"]


async def test_what_cannot_be_told_from_another_file_is_fetched_anew(web: WebServer, tmp_path: Path) -> None:
    web.breaks = [200_000, 0]
    wanted = remote(web, digest="")
    with pytest.raises(ModelFetchError):
        await fetch(wanted, tmp_path / "a.gguf", pauses_s=())
    web.asked.clear()
    await fetch(wanted, tmp_path / "a.gguf")
    assert web.ranges_of("a.gguf") == [f"bytes=0-{LAST}"]


async def test_a_file_of_another_hash_is_deleted(web: WebServer, tmp_path: Path) -> None:
    web.changed["a.gguf"] = DATA[:-1] + b"!"
    other = hashlib.sha256(web.changed["a.gguf"]).hexdigest()
    with pytest.raises(ModelFetchError) as caught:
        await fetch(remote(web), tmp_path / "a.gguf")
    assert str(caught.value) == (f"a.gguf came with the hash {other} instead of {SHA256}; it is deleted")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("status", [401, 403, 404, 410])
async def test_a_refusal_is_not_tried_again(web: WebServer, tmp_path: Path, status: int) -> None:
    web.statuses = [status]
    with pytest.raises(RefusedError) as caught:
        await fetch(remote(web), tmp_path / "a.gguf")
    assert (caught.value.status, str(caught.value)) == (status, f"{web.url}/files/a.gguf answers with {status}")
    assert caught.value.hint
    assert len(web.asked) == 1


async def test_a_busy_server_is_asked_again(web: WebServer, tmp_path: Path) -> None:
    web.statuses = [503, 429]
    await fetch(remote(web), tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == DATA


async def test_several_files_have_one_progress_and_get_their_names_together(web: WebServer, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    said: list[str] = []

    def listen(done: int, total: int) -> None:
        seen.append((done, total))
        if done > len(DATA):  # the first one has been whole for days, which is long for a cache that is tidied
            os.utime(next(tmp_path.glob(".a.gguf.*")), (1.0, 1.0))

    async with web_client() as client:
        wanted = {tmp_path / name: remote(web, name) for name in ("a.gguf", "b.gguf")}
        fetched = await fetch_parts(client, wanted, listen, said.append)
    assert not any(path.exists() for path in wanted)
    assert min(one.part.stat().st_mtime for one in fetched.values()) > 1
    place_together(fetched)
    assert names_in(tmp_path) == ["a.gguf", "b.gguf"]
    assert seen[-1] == (2 * len(DATA), 2 * len(DATA))
    assert seen == sorted(seen)
    assert said == []


def test_files_are_replaced_so_that_old_and_new_ones_are_never_taken_for_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in between, the first file, which names the model, is missing."""
    first, second = tmp_path / "1.gguf", tmp_path / "2.gguf"
    fetched = {}
    for path in (first, second):
        path.write_bytes(b"old")
        part = path.with_name(f".{path.name}.part")
        part.write_bytes(b"new")
        fetched[path] = Fetched(part, "")
    seen: list[bool] = []
    replace = Path.replace

    def watched(self: Path, target: Path) -> Path:
        seen.append(first.exists())
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    place_together(fetched)
    assert seen == [False, False]
    assert (first.read_bytes(), second.read_bytes(), names_in(tmp_path)) == (b"new", b"new", ["1.gguf", "2.gguf"])


def test_a_disk_that_is_too_small_is_noticed_with_the_numbers(web: WebServer, tmp_path: Path) -> None:
    huge = {tmp_path / "a.gguf": Remote(web.url, 2**60, SHA256)}
    with pytest.raises(ModelFetchError, match=r"^fetching it needs 1,073,741,824 GiB of disk; .* has .* free$"):
        check_disk("it", tmp_path, huge)
    assert web.asked == []


async def test_git_hashes_a_file_with_its_size(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"hello\n")
    assert await digest_of(tmp_path / "a", "0" * 40) == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_a_link_that_leaves_encryption_is_not_followed() -> None:
    answer = httpx.Response(200, request=httpx.Request("GET", "http://mirror.example/a.gguf"))
    with pytest.raises(ModelFetchError) as caught:
        check_answer(answer, "https://example.org/a.gguf?key=secret")
    assert str(caught.value) == "https://example.org/a.gguf leads to mirror.example without encryption"
    check_answer(answer, "http://example.org/a.gguf")


def test_a_link_that_leaves_encryption_and_comes_back_is_not_followed() -> None:
    links = ("https://example.org/a.gguf", "http://mirror.example/a.gguf", "https://example.org/b.gguf")
    first, middle, last = (httpx.Response(200, request=httpx.Request("GET", link)) for link in links)
    last.history = [first, middle]
    with pytest.raises(ModelFetchError, match=r"leads to mirror\.example without encryption"):
        check_answer(last, links[0])


@pytest.mark.parametrize(
    ("status", "headers", "stated"),
    [
        (200, {"Content-Length": "7"}, (0, 7)),
        (200, {"Content-Length": "7", "Content-Encoding": "gzip"}, None),
        (200, {"Transfer-Encoding": "chunked"}, None),
        (206, {"Content-Range": "bytes 3-6/7", "Content-Length": "4"}, (3, 7)),
        (206, {"Content-Range": "bytes 3-6/*"}, None),
        (206, {"Content-Range": f"bytes 0-0/{'9' * 5000}"}, None),
        (200, {"Content-Length": "9" * 5000}, None),
        (206, {}, None),
    ],
)
def test_what_an_answer_states_of_the_file(
    status: int, headers: dict[str, str], stated: tuple[int, int] | None
) -> None:
    assert stated_range(httpx.Response(status, headers=headers)) == stated

"""Models by their links: whole, in shards, not what they should be."""

import asyncio
import hashlib
from collections.abc import Mapping
from pathlib import Path

import pytest

from quant.download import locked
from quant.errors import ModelFetchError, ModelNotFoundError
from quant.fetch import fetch_model, find_model
from quant.gguf_file import read_model
from quant.sizes import size_text
from tests.quant.cancelling import cancelled
from tests.quant.gguf_bytes import LLAMA, gguf, number, tensor
from tests.quant.web_server import WebServer


def quiet(done: int, total: int) -> None:
    """Progress nobody looks at."""


NAMES = ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf")
PAGE = b"<!DOCTYPE html>\n<html><title>Sign in</title></html>\n"


def shard(at: int, rows: int = 4, fill: bytes = b"\0") -> bytes:
    facts = (*LLAMA, number("split.no", at), number("split.count", 2), number("split.tensors.count", 2))
    name = ("token_embd.weight", "output.weight")[at]
    return gguf(facts, (tensor(name, (8, rows)),)) + fill * 32 * rows


async def cancelled_link(web: WebServer, link: str, tmp_path: Path, after_bytes: int) -> None:
    await cancelled(web, lambda listen: fetch_model(link, tmp_path, listen, again=True), after_bytes)


def kept(tmp_path: Path) -> list[str]:
    folder = tmp_path / "models"
    names = (path.name for path in folder.iterdir()) if folder.exists() else ()
    return sorted(name for name in names if not name.endswith(".lock"))


async def test_a_link_is_fetched_once_and_found_by_its_name(web: WebServer, tmp_path: Path, model_bytes: bytes) -> None:
    web.files["m.gguf"] = model_bytes
    link = f"{web.url}/files/m.gguf?key=1"
    with pytest.raises(ModelNotFoundError, match="has not been fetched yet"):
        find_model(link, tmp_path, tmp_path)
    path = await fetch_model(link, tmp_path, quiet)
    assert path.read_bytes() == model_bytes
    assert (path.parent, path.name.partition("-")[2]) == (tmp_path / "models", "m.gguf")
    web.asked.clear()
    assert await fetch_model(link, tmp_path, quiet) == find_model(link, tmp_path, tmp_path) == path
    assert web.asked == []


async def test_files_of_the_same_name_from_two_places_are_two(
    web: WebServer, tmp_path: Path, model_bytes: bytes
) -> None:
    web.files |= {
        "a/m.gguf": model_bytes,
        "b/m.gguf": gguf(LLAMA, (tensor("token_embd.weight", (8, 4)),), data_bytes=128),
    }
    first = await fetch_model(f"{web.url}/files/a/m.gguf", tmp_path, quiet)
    second = await fetch_model(f"{web.url}/files/b/m.gguf", tmp_path, quiet)
    assert first != second
    assert first.read_bytes() == model_bytes


async def test_the_other_shards_come_from_beside_the_first(web: WebServer, tmp_path: Path) -> None:
    names = ("sub m-00001-of-00002.gguf", "sub m-00002-of-00002.gguf")
    web.files |= {name: shard(at) for at, name in enumerate(names)}
    seen: list[tuple[int, int]] = []
    link = f"{web.url}/files/sub%20m-00001-of-00002.gguf?key=1"
    path = await fetch_model(link, tmp_path, lambda *step: seen.append(step))
    model = read_model(path)
    assert [one.read_bytes() for one in model.shards] == [shard(0), shard(1)]
    assert seen[-1] == (len(shard(0)) + len(shard(1)),) * 2


async def test_shards_that_came_before_a_cancel_do_not_come_again(web: WebServer, tmp_path: Path) -> None:
    files = (shard(0), shard(1, 8192))
    web.files |= dict(zip(NAMES, files, strict=True))
    link = f"{web.url}/files/{NAMES[0]}"
    await cancelled_link(web, link, tmp_path, len(files[0]))
    parts = [tmp_path / "models" / name for name in kept(tmp_path)]
    assert [path.name.endswith(".resumed.part") for path in parts] == [True, True]
    have = parts[1].stat().st_size
    said: list[str] = []
    path = await fetch_model(link, tmp_path, quiet, say=said.append)
    assert [one.read_bytes() for one in read_model(path).shards] == list(files)
    assert web.ranges_of(NAMES[0]) == ["bytes=0-0"]
    assert web.ranges_of(NAMES[1]) == ["bytes=0-0", f"bytes={have}-{len(files[1]) - 1}"]
    assert said == [
        "asking how large the 2 files of m-00001-of-00002.gguf are",
        f"going on with {NAMES[0]}: {size_text(len(files[0]))} of {size_text(len(files[0]))} came earlier",
        f"going on with {NAMES[1]}: {size_text(have)} of {size_text(len(files[1]))} came earlier",
    ]


async def test_shards_are_replaced_together_or_not_at_all(web: WebServer, tmp_path: Path) -> None:
    """Of the same sizes, so that nothing else tells the old ones from the new ones."""
    old, new = ((shard(0, 4, fill), shard(1, 8192, fill)) for fill in (b"\0", b"\1"))
    web.files |= dict(zip(NAMES, old, strict=True))
    link = f"{web.url}/files/{NAMES[0]}"
    path = await fetch_model(link, tmp_path, quiet)
    web.files |= dict(zip(NAMES, new, strict=True))
    web.validator = '"two"'
    await cancelled_link(web, link, tmp_path, len(new[0]))
    assert [one.read_bytes() for one in read_model(path).shards] == list(old)
    assert await fetch_model(link, tmp_path, quiet, again=True) == path
    assert [one.read_bytes() for one in read_model(path).shards] == list(new)


async def test_shards_whose_link_is_written_in_another_way_are_found(web: WebServer, tmp_path: Path) -> None:
    web.files |= {name: shard(at) for at, name in enumerate(NAMES)}
    path = await fetch_model(f"{web.url}/files/m%2D00001-of-00002.gguf", tmp_path, quiet)
    assert len(read_model(path).shards) == 2


async def test_room_is_made_before_anything_comes(web: WebServer, tmp_path: Path) -> None:
    names = ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf")
    web.files |= {name: shard(at) for at, name in enumerate(names)}
    told: list[tuple[Mapping[str, int], list[str]]] = []

    async def make_room(coming: Mapping[str, int]) -> None:
        told.append((coming, kept(tmp_path)))

    for _ in range(2):
        await fetch_model(f"{web.url}/files/{names[0]}", tmp_path, quiet, make_room=make_room)
    ((coming, there),) = told
    assert [(name.partition("-")[2], size) for name, size in coming.items()] == [
        (name, len(shard(at))) for at, name in enumerate(names)
    ]
    assert (list(coming), there) == (kept(tmp_path), [])


async def test_a_missing_shard_is_noticed_before_anything_is_fetched(web: WebServer, tmp_path: Path) -> None:
    web.files["m-00001-of-00002.gguf"] = shard(0)
    with pytest.raises(ModelFetchError) as caught:
        await fetch_model(f"{web.url}/files/m-00001-of-00002.gguf", tmp_path, quiet)
    assert str(caught.value) == f"{web.url}/files/m-00002-of-00002.gguf answers with 404"
    assert kept(tmp_path) == []


async def test_a_broken_transfer_goes_on_where_it_broke(web: WebServer, tmp_path: Path, model_bytes: bytes) -> None:
    web.files["m.gguf"] = model_bytes
    web.breaks = [200_000]
    path = await fetch_model(f"{web.url}/files/m.gguf", tmp_path, quiet)
    assert path.read_bytes() == model_bytes
    last = len(model_bytes) - 1
    assert web.ranges_of("m.gguf") == ["bytes=0-0", f"bytes=0-{last}", f"bytes=200000-{last}"]


async def test_the_hash_of_the_link_counts(web: WebServer, tmp_path: Path, model_bytes: bytes) -> None:
    web.files["m.gguf"] = model_bytes
    digest = hashlib.sha256(model_bytes).hexdigest()
    with pytest.raises(ModelFetchError, match=f"came with the hash {digest} instead of {'f' * 64}; it is deleted"):
        await fetch_model(f"{web.url}/files/m.gguf#sha256={'f' * 64}", tmp_path, quiet)
    assert kept(tmp_path) == []
    path = await fetch_model(f"{web.url}/files/m.gguf#sha256={digest}", tmp_path, quiet)
    assert path.read_bytes() == model_bytes


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (PAGE, "it seems to be an HTML page"),
        (gguf(LLAMA, (tensor("token_embd.weight", (8, 4)),), data_bytes=100), "is truncated: 28 of"),
    ],
    ids=["page", "half"],
)
async def test_what_is_no_whole_model_is_deleted(web: WebServer, tmp_path: Path, data: bytes, reason: str) -> None:
    web.files["m.gguf"] = data
    with pytest.raises(ModelFetchError, match=reason) as caught:
        await fetch_model(f"{web.url}/files/m.gguf", tmp_path, quiet)
    assert str(caught.value).startswith(f"what came from {web.url}/files/m.gguf is no model: ")
    assert kept(tmp_path) == []


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (401, "it wants a login: fetch the file yourself and name its path"),
        (404, "check the link, in a browser for example"),
        (503, "try again in a few minutes"),
    ],
)
async def test_a_refusal_is_one_error(web: WebServer, tmp_path: Path, status: int, hint: str) -> None:
    web.statuses = [status]
    with pytest.raises(ModelFetchError) as caught:
        await fetch_model(f"{web.url}/files/m.gguf", tmp_path, quiet)
    assert (str(caught.value), caught.value.hint) == (f"{web.url}/files/m.gguf answers with {status}", hint)


async def test_a_server_that_is_not_there_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(ModelFetchError, match=r"^http://127\.0\.0\.1:9/m\.gguf cannot be reached: ") as caught:
        await fetch_model("http://127.0.0.1:9/m.gguf?key=secret", tmp_path, quiet)
    assert "secret" not in str(caught.value)


async def test_two_at_once_fetch_once(web: WebServer, tmp_path: Path, model_bytes: bytes) -> None:
    web.files["m.gguf"] = model_bytes
    said: list[str] = []
    link = f"{web.url}/files/m.gguf"
    fetches = (fetch_model(link, tmp_path, quiet, say=said.append) for _ in range(2))
    first, second = await asyncio.gather(*fetches)
    assert first == second
    assert [asked for asked in web.ranges_of("m.gguf") if asked != "bytes=0-0"] == [f"bytes=0-{len(model_bytes) - 1}"]
    assert said == ["another program is fetching m.gguf: waiting for it"]


async def test_a_model_that_somebody_has_changed_is_fetched_again(
    web: WebServer, tmp_path: Path, model_bytes: bytes
) -> None:
    web.files["m.gguf"] = model_bytes
    path = await fetch_model(f"{web.url}/files/m.gguf", tmp_path, quiet)
    path.write_bytes(model_bytes[:-1] + b"!")
    assert await fetch_model(f"{web.url}/files/m.gguf", tmp_path, quiet) == path
    assert path.read_bytes() == model_bytes


async def test_a_file_of_a_users_own_behind_a_link_is_never_removed(
    web: WebServer, tmp_path: Path, model_bytes: bytes
) -> None:
    web.files["m.gguf"] = model_bytes
    path = await fetch_model(f"{web.url}/files/m.gguf", tmp_path, quiet)
    own = tmp_path / "my-finetune.gguf"
    own.write_bytes(model_bytes[:-1] + b"!")
    path.unlink()
    path.symlink_to(own)
    assert await fetch_model(f"{web.url}/files/m.gguf", tmp_path, quiet) == path
    assert (path.is_symlink(), path.read_bytes()) == (False, model_bytes)
    assert own.read_bytes() == model_bytes[:-1] + b"!"


async def test_what_is_no_model_does_not_replace_one_that_is(
    web: WebServer, tmp_path: Path, model_bytes: bytes
) -> None:
    web.files["m.gguf"] = model_bytes
    link = f"{web.url}/files/m.gguf"
    path = await fetch_model(link, tmp_path, quiet)
    web.files["m.gguf"], web.validator = PAGE, '"two"'
    with pytest.raises(ModelFetchError) as caught:
        await fetch_model(link, tmp_path, quiet, again=True)
    assert str(caught.value) == (
        f"what came from {link} is no model: {path.name} is not a GGUF file; it seems to be an HTML page; it is deleted"
    )
    assert find_model(link, tmp_path, tmp_path).read_bytes() == model_bytes
    assert kept(tmp_path) == [path.name]


async def test_again_fetches_only_what_has_changed_as_far_as_the_server_tells(
    web: WebServer, tmp_path: Path, model_bytes: bytes
) -> None:
    web.files["m.gguf"] = model_bytes
    link, said = f"{web.url}/files/m.gguf", list[str]()
    path = await fetch_model(link, tmp_path, quiet)
    web.asked.clear()
    assert await fetch_model(link, tmp_path, quiet, say=said.append, again=True) == path
    assert (web.ranges_of("m.gguf"), said) == (["bytes=0-0"], ["m.gguf has not changed"])
    web.files["m.gguf"], web.validator = model_bytes[:-1] + b"!", '"two"'
    await fetch_model(link, tmp_path, quiet, again=True)
    assert path.read_bytes() == web.files["m.gguf"]
    web.files["m.gguf"], web.validator = model_bytes, ""
    for _ in range(2):
        web.asked.clear()
        await fetch_model(link, tmp_path, quiet, again=True)
        assert web.ranges_of("m.gguf") == ["bytes=0-0", f"bytes=0-{len(model_bytes) - 1}"]
    assert path.read_bytes() == model_bytes


async def test_who_waited_for_another_program_still_wants_its_own_hash(
    web: WebServer, tmp_path: Path, model_bytes: bytes
) -> None:
    web.files["m.gguf"] = model_bytes
    link = f"{web.url}/files/m.gguf"
    path = await fetch_model(link, tmp_path, quiet)
    waits = asyncio.Event()

    def listen(text: str) -> None:
        assert text == "another program is fetching m.gguf: waiting for it"
        waits.set()

    async with asyncio.timeout(30), locked(path.with_name(f".{path.name}.lock"), "m.gguf", listen):
        fetching = asyncio.create_task(fetch_model(f"{link}#sha256={'f' * 64}", tmp_path, quiet, say=listen))
        await waits.wait()
    with pytest.raises(ModelFetchError, match=f"instead of {'f' * 64}; it is deleted"):
        await fetching
    assert path.read_bytes() == model_bytes

"""The header of a file on a web server: no more than that is fetched, and the model can be read as if it were here."""

import os
import struct
import time
from pathlib import Path

import httpx
import pytest

from quant.catalogue import CatalogueModel, HubSource
from quant.download import RefusedError, Remote, web_client
from quant.errors import ModelFetchError, ModelFileError, ModelNotFoundError, QuantError
from quant.gguf_file import read_model
from quant.gguf_header import read_header
from quant.hub import Hub
from quant.remote_header import fetch_header, fetch_linked_headers, find_model_or_headers, headers_folder, is_header
from quant.source import UrlSource
from quant.synthetic import Shape, write_random_model
from tests.quant.gguf_bytes import ARRAY, LLAMA, fact, gguf, tensor, words
from tests.quant.web_server import COMMIT, WebServer

SHAPE = Shape(layers=40, embedding=512, feed_forward=1024, heads=8, kv_heads=4, vocabulary=20_000)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """85 MB, of which a header with a vocabulary takes 700 KB."""
    path = tmp_path_factory.mktemp("large") / "large.gguf"
    write_random_model(path, SHAPE, "Q8_0", reads_text=True)
    return path


async def fetch(web: WebServer, target: Path, size: int, pauses_s: tuple[float, ...] = ()) -> None:
    async with web_client() as client:
        await fetch_header(client, Remote(f"{web.url}/files/large.gguf", size), target, pauses_s)


async def test_the_model_is_read_without_its_weights(web: WebServer, large: Path, tmp_path: Path) -> None:
    web.files["large.gguf"] = large.read_bytes()
    target = tmp_path / "large.gguf"
    await fetch(web, target, large.stat().st_size)
    assert read_header(target) == read_header(large)
    assert read_model(target).tensors == read_model(large).tensors
    assert target.stat().st_size == large.stat().st_size
    assert target.stat().st_blocks * 512 < large.stat().st_size / 4


async def test_what_is_kept_is_not_fetched_again(web: WebServer, large: Path, tmp_path: Path) -> None:
    web.files["large.gguf"] = large.read_bytes()
    for _ in range(2):
        await fetch(web, tmp_path / "large.gguf", large.stat().st_size)
    assert len(web.asked) == 1


async def test_a_header_that_is_asked_for_again_is_used_now_and_stays_what_it_is(
    web: WebServer, large: Path, tmp_path: Path
) -> None:
    """What is known of a model is kept by its files' times of change."""
    web.files["large.gguf"] = large.read_bytes()
    target = tmp_path / "headers" / "large.gguf"
    await fetch(web, target, large.stat().st_size)
    os.utime(target, (1.0, 1.0))
    os.utime(target.parent, (1.0, 1.0))
    old = read_model(target)
    await fetch(web, target, large.stat().st_size)
    assert time.time() - target.parent.stat().st_mtime < 60
    assert read_model(target).files_digest == old.files_digest


MIB = 1024 * 1024
NEVER = {
    "a page": (b"<html>no model</html>", "is not a GGUF file; it seems to be an HTML page$", 1),
    "an unknown tensor type": (gguf(LLAMA, (tensor("a", (8,), 200),)), "tensor a has the type 200, which meshctl", 1),
    "a header without end": (
        gguf((fact("a", ARRAY, struct.pack("<IQ", 0, 70 * MIB)),)),
        "its header takes more than 67,108,864 bytes$",
        1,
    ),
    "a text that is too long": (gguf((words("a", "x" * 5 * MIB),)), "it has a text of 5,242,880 bytes$", 16),
}


@pytest.mark.parametrize(("start", "message", "most_mib"), NEVER.values(), ids=NEVER)
async def test_what_can_never_be_read_is_refused_at_once_and_leaves_nothing(
    web: WebServer, tmp_path: Path, start: bytes, message: str, most_mib: int
) -> None:
    web.files["large.gguf"] = start + bytes(100 * MIB - len(start))
    remote, answers = Remote(f"{web.url}/files/large.gguf", 100 * MIB), list[httpx.Response]()

    async def keep(response: httpx.Response) -> None:
        answers.append(response)

    async with web_client() as client:
        client.event_hooks = {"response": [keep]}
        with pytest.raises(ModelFileError, match=message) as caught:
            await fetch_header(client, remote, tmp_path / "kept" / "large.gguf")
    assert str(caught.value).startswith(remote.url)
    assert not list((tmp_path / "kept").iterdir())
    assert web.ranges_of("large.gguf") == [f"bytes=0-{64 * MIB - 1}"]
    assert answers[0].num_bytes_downloaded < most_mib * MIB


async def test_a_header_that_is_cut_off_is_asked_for_again(web: WebServer, large: Path, tmp_path: Path) -> None:
    web.files["large.gguf"] = large.read_bytes()
    web.breaks = [100_000, 400_000]
    with pytest.raises(ModelFetchError, match=r"^http://127\.0\.0\.1:\d+/files/large\.gguf: "):
        await fetch(web, tmp_path / "large.gguf", large.stat().st_size, pauses_s=(0.0,))
    assert not list(tmp_path.glob("large.gguf*"))
    web.breaks, web.statuses = [100_000], [503]
    await fetch(web, tmp_path / "large.gguf", large.stat().st_size, pauses_s=(0.0, 0.0))
    assert read_header(tmp_path / "large.gguf") == read_header(large)


async def test_a_refusal_is_the_servers(web: WebServer, tmp_path: Path) -> None:
    with pytest.raises(RefusedError) as refused:
        await fetch(web, tmp_path / "large.gguf", 1000)
    assert refused.value.status == 404


async def test_a_refusal_after_the_first_request_is_reported_with_the_next_move(web: WebServer, tmp_path: Path) -> None:
    web.files["large.gguf"], web.statuses = gguf(LLAMA), [0, 403]
    async with web_client() as client:
        with pytest.raises(QuantError) as refused:
            await fetch_linked_headers(client, UrlSource(f"{web.url}/files/large.gguf?key=secret"), tmp_path)
    assert (str(refused.value), refused.value.hint) == (
        f"{web.url}/files/large.gguf answers with 403",
        "it wants a login: fetch the file yourself and name its path",
    )


def published(web: WebServer, model_bytes: bytes) -> dict[str, CatalogueModel]:
    """At a link, and on the hub, also by a name of the catalogue."""
    web.files["tiny.gguf"] = model_bytes
    web.repositories["owner/tiny-GGUF"] = {"tiny-Q8_0.gguf": model_bytes, "tiny-F16.gguf": model_bytes}
    source = HubSource("owner/tiny-GGUF", COMMIT, "Q8_0")
    return {"tiny": CatalogueModel("tiny", "for tests", source, len(model_bytes), "", "MIT", 16, 16)}


@pytest.mark.parametrize("name", ["{web}/files/tiny.gguf", "hf:owner/tiny-GGUF", "tiny"])
async def test_of_a_model_that_is_not_here_the_header_is_found(
    web: WebServer, hub: Hub, tmp_path: Path, model_bytes: bytes, name: str
) -> None:
    catalogue, said = published(web, model_bytes), list[str]()
    called = name.format(web=web.url)
    path = await find_model_or_headers(called, tmp_path, tmp_path, said.append, catalogue, hub)
    assert is_header(path, tmp_path)
    (tmp_path / "whole.gguf").write_bytes(model_bytes)
    assert read_header(path) == read_header(tmp_path / "whole.gguf")
    assert said[0].endswith(" is not on this machine: reading its header where it is published")


async def test_what_is_here_is_found_and_what_is_nowhere_is_an_error(
    web: WebServer, hub: Hub, tmp_path: Path, model_bytes: bytes
) -> None:
    own, said = tmp_path / "own.gguf", list[str]()
    own.write_bytes(model_bytes)
    assert await find_model_or_headers("own.gguf", tmp_path, tmp_path, said.append, hub=hub) == own
    assert not is_header(own, tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"^there is no model nobody$"):
        await find_model_or_headers("nobody", tmp_path, tmp_path, said.append, hub=hub)
    assert (said, web.asked, web.api) == ([], [], [])


@pytest.mark.parametrize(("refusal", "message"), [((401, "GatedRepo"), "a gated repository"), ((403, ""), "may not")])
async def test_a_refusal_of_the_hub_means_the_same_for_headers(
    web: WebServer, hub: Hub, tmp_path: Path, model_bytes: bytes, refusal: tuple[int, str], message: str
) -> None:
    published(web, model_bytes)
    web.refusals["owner/tiny-GGUF"] = refusal
    with pytest.raises(QuantError, match=message):
        await find_model_or_headers("hf:owner/tiny-GGUF", tmp_path, tmp_path, lambda text: None, hub=hub)


def test_a_header_is_told_from_a_model_by_where_it_lies(tmp_path: Path) -> None:
    assert is_header(headers_folder(tmp_path) / "c0ffee" / "a.gguf", tmp_path)
    assert not is_header(tmp_path / "models" / "headers.gguf", tmp_path)

"""Models of the hub, against a local server that speaks its API; what is there already, and what goes wrong."""

import asyncio
import errno
import hashlib
import json
from pathlib import Path

import pytest
from huggingface_hub import scan_cache_dir, try_to_load_from_cache

from quant.catalogue import CatalogueModel, HubSource
from quant.errors import ModelFetchError, ModelNotFoundError, QuantError
from quant.fetch import fetch_model, find_model
from quant.hub import Hub, HubUnreachableError
from quant.hub_cache import Repository, remove_file
from quant.hub_files import HubFile
from tests.quant.cancelling import cancelled
from tests.quant.web_server import COMMIT, WebServer

REPOSITORY = "owner/tiny-GGUF"
NAME = "hf:owner/tiny-GGUF:Q8_0"
SHARDS = tuple(f"big/tiny-F16-{number:05}-of-00002.gguf" for number in (1, 2))


@pytest.fixture
def repository(web: WebServer, model_bytes: bytes) -> dict[str, bytes]:
    """A repository as they are: one quantisation as a file, one in shards, and what is no model."""
    web.repositories[REPOSITORY] = {
        "README.md": b"# tiny",
        "mmproj-tiny-F16.gguf": b"GGUF image part",
        "tiny-Q8_0.gguf": model_bytes,
        SHARDS[0]: b"first" * 30_000,
        SHARDS[1]: b"second" * 30_000,
    }
    return web.repositories[REPOSITORY]


def quiet(done: int, total: int) -> None:
    """Progress nobody looks at."""


def blobs(hub: Hub) -> list[str]:
    return sorted(path.name for path in (hub.cache / "models--owner--tiny-GGUF" / "blobs").iterdir())


async def pull(name: str, tmp_path: Path, hub: Hub, said: list[str] | None = None) -> Path:
    return await fetch_model(name, tmp_path / "cache", quiet, say=(said if said is not None else []).append, hub=hub)


async def test_a_quantisation_is_fetched_into_the_hubs_own_cache(
    repository: dict[str, bytes], hub: Hub, tmp_path: Path, model_bytes: bytes
) -> None:
    seen: list[tuple[int, int]] = []
    path = await fetch_model(NAME, tmp_path / "cache", lambda *step: seen.append(step), hub=hub)
    assert path == hub.cache / "models--owner--tiny-GGUF" / "snapshots" / COMMIT / "tiny-Q8_0.gguf"
    assert path.read_bytes() == model_bytes
    assert seen[-1] == (len(model_bytes), len(model_bytes))
    assert blobs(hub) == [hashlib.sha256(model_bytes).hexdigest()]


async def test_the_hubs_own_library_finds_what_was_fetched(
    repository: dict[str, bytes], hub: Hub, tmp_path: Path, model_bytes: bytes
) -> None:
    path = await pull(NAME, tmp_path, hub)
    assert try_to_load_from_cache(REPOSITORY, "tiny-Q8_0.gguf", cache_dir=hub.cache) == str(path)
    (kept,) = scan_cache_dir(hub.cache).repos
    assert (kept.repo_id, kept.size_on_disk, set(kept.refs)) == (REPOSITORY, len(model_bytes), {"main"})


async def test_a_second_fetch_asks_nobody(
    repository: dict[str, bytes], web: WebServer, hub: Hub, tmp_path: Path
) -> None:
    first = await pull(NAME, tmp_path, hub)
    web.api.clear()
    web.asked.clear()
    assert await pull(NAME, tmp_path, hub) == first
    assert find_model(NAME, tmp_path / "cache", tmp_path, hub=hub) == first
    assert (web.api, web.asked) == ([], [])


async def test_shards_are_one_model(repository: dict[str, bytes], hub: Hub, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = await fetch_model("hf:owner/tiny-GGUF:f16", tmp_path / "cache", lambda *step: seen.append(step), hub=hub)
    snapshot = hub.cache / "models--owner--tiny-GGUF" / "snapshots" / COMMIT
    assert path == snapshot / SHARDS[0]
    assert [(snapshot / name).read_bytes() for name in SHARDS] == [repository[name] for name in SHARDS]
    assert seen[-1] == (330_000, 330_000)
    assert seen == sorted(seen)


async def test_without_a_quantisation_one_is_chosen_and_said_and_stays_the_same(
    repository: dict[str, bytes], hub: Hub, tmp_path: Path
) -> None:
    said: list[str] = []
    path = await pull("hf:owner/tiny-GGUF", tmp_path, hub, said)
    assert path.name == "tiny-Q8_0.gguf"
    assert said == ["taking Q8_0 (752 KiB) of 2: F16 (322 KiB), Q8_0 (752 KiB)"]
    repository["tiny-Q4_K_M.gguf"] = b"a better choice, later"
    assert await pull("hf:owner/tiny-GGUF", tmp_path, hub) == path


async def test_an_unknown_quantisation_lists_those_that_exist(
    repository: dict[str, bytes], web: WebServer, hub: Hub, tmp_path: Path
) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        await pull("hf:owner/tiny-GGUF:Q4_K_M", tmp_path, hub)
    assert (str(caught.value), caught.value.hint) == (
        "hf:owner/tiny-GGUF:Q4_K_M: the repository has no Q4_K_M",
        "choose one of F16 (322 KiB), Q8_0 (752 KiB)",
    )
    assert web.asked == []


async def test_a_broken_transfer_goes_on_where_it_broke(
    repository: dict[str, bytes], web: WebServer, hub: Hub, tmp_path: Path, model_bytes: bytes
) -> None:
    web.breaks = [200_000]
    assert (await pull(NAME, tmp_path, hub)).read_bytes() == model_bytes
    last = len(model_bytes) - 1
    assert web.ranges_of("/lfs/owner/tiny-GGUF/tiny-Q8_0.gguf") == [f"bytes=0-{last}", f"bytes=200000-{last}"]


async def test_what_is_not_what_the_hub_publishes_is_deleted(
    repository: dict[str, bytes], web: WebServer, hub: Hub, tmp_path: Path, model_bytes: bytes
) -> None:
    published = hashlib.sha256(model_bytes).hexdigest()
    web.changed["tiny-Q8_0.gguf"] = model_bytes[:-1] + b"!"
    with pytest.raises(ModelFetchError, match=f"instead of {published}; it is deleted"):
        await pull(NAME, tmp_path, hub)
    assert blobs(hub) == []
    with pytest.raises(ModelNotFoundError, match="has not been fetched yet"):
        find_model(NAME, tmp_path / "cache", tmp_path, hub=hub)


async def test_a_file_that_git_keeps_itself_has_gits_hash(
    repository: dict[str, bytes], web: WebServer, hub: Hub, tmp_path: Path, model_bytes: bytes
) -> None:
    web.small.add("tiny-Q8_0.gguf")
    assert (await pull(NAME, tmp_path, hub)).read_bytes() == model_bytes
    assert blobs(hub) == [hashlib.sha1(b"blob %d\0" % len(model_bytes) + model_bytes).hexdigest()]


async def test_a_model_that_somebody_has_changed_is_fetched_again(
    repository: dict[str, bytes], hub: Hub, tmp_path: Path, model_bytes: bytes
) -> None:
    path = await pull(NAME, tmp_path, hub)
    path.write_bytes(model_bytes[:-1] + b"!")
    said: list[str] = []
    assert (await pull(NAME, tmp_path, hub, said)).read_bytes() == model_bytes
    assert said == [
        "tiny-Q8_0.gguf was touched since it was fetched: comparing it with its hash",
        "tiny-Q8_0.gguf has changed: it is fetched again",
    ]


async def test_a_model_that_was_only_touched_is_compared_once(
    repository: dict[str, bytes], web: WebServer, hub: Hub, tmp_path: Path, model_bytes: bytes
) -> None:
    path = await pull(NAME, tmp_path, hub)
    path.write_bytes(model_bytes)
    web.asked.clear()
    said: list[str] = []
    for _ in range(2):
        assert await pull(NAME, tmp_path, hub, said) == path
    assert said == ["tiny-Q8_0.gguf was touched since it was fetched: comparing it with its hash"]
    assert web.asked == []


async def test_the_token_goes_to_the_hub_and_to_nobody_else(
    repository: dict[str, bytes], web: WebServer, hub: Hub, tmp_path: Path
) -> None:
    web.refusals[REPOSITORY] = (403, "GatedRepo")
    web.tokens.add("Bearer hf_mine")
    web.breaks = [200_000]
    await pull(NAME, tmp_path, Hub(hub.endpoint, hub.cache, token="hf_mine"))
    told = {(one.path.partition("/owner/")[0], one.range.partition("-")[0]): one.authorization for one in web.asked}
    first, second = "bytes=0", "bytes=200000"
    mine = "Bearer hf_mine"
    assert told == {("", first): mine, ("/lfs", first): "", ("", second): mine, ("/lfs", second): ""}


REFUSALS = {
    "gated": (
        (401, "GatedRepo"),
        ModelFetchError,
        "hf:owner/tiny-GGUF:Q8_0: its owner wants to be asked first (a gated repository)",
        "accept its terms at {hub}/owner/tiny-GGUF, then make a token at {hub}/settings/tokens and set HF_TOKEN, "
        "or run: hf auth login",
    ),
    "private or not there": (
        (401, "RepoNotFound"),
        ModelNotFoundError,
        "hf:owner/tiny-GGUF:Q8_0: there is no such repository, or it is private",
        "check {hub}/owner/tiny-GGUF; if it is private, make a token at {hub}/settings/tokens and set HF_TOKEN, "
        "or run: hf auth login",
    ),
    "forbidden": (
        (403, ""),
        ModelFetchError,
        "hf:owner/tiny-GGUF:Q8_0: the token may not read it",
        "accept its terms at {hub}/owner/tiny-GGUF, or make a token at {hub}/settings/tokens and set HF_TOKEN, "
        "or run: hf auth login",
    ),
    "too many": (
        (429, ""),
        HubUnreachableError,
        "hf:owner/tiny-GGUF:Q8_0: {hub} answers with 429",
        "try again in a few minutes",
    ),
    "broken": (
        (500, ""),
        HubUnreachableError,
        "hf:owner/tiny-GGUF:Q8_0: {hub} answers with 500",
        "try again in a few minutes",
    ),
}


@pytest.mark.parametrize(("refusal", "kind", "message", "hint"), REFUSALS.values(), ids=REFUSALS)
async def test_every_refusal_is_one_error_with_the_next_move(
    repository: dict[str, bytes],
    web: WebServer,
    hub: Hub,
    tmp_path: Path,
    refusal: tuple[int, str],
    kind: type[QuantError],
    message: str,
    hint: str,
) -> None:
    web.refusals[REPOSITORY] = refusal
    with pytest.raises(kind) as caught:
        await pull(NAME, tmp_path, hub)
    assert (str(caught.value), caught.value.hint) == (message.format(hub=hub.endpoint), hint.format(hub=hub.endpoint))


async def test_a_token_that_the_hub_does_not_accept_is_said(
    repository: dict[str, bytes], web: WebServer, hub: Hub, tmp_path: Path
) -> None:
    """Also of a public repository; the hub has no code for it."""
    web.refusals[REPOSITORY], web.said = (401, ""), "Invalid credentials in Authorization header"
    with pytest.raises(ModelFetchError) as caught:
        await pull(NAME, tmp_path, hub)
    assert (str(caught.value), caught.value.hint) == (
        f"{NAME}: the hub does not accept the token (of HF_TOKEN, or of hf auth login)",
        f"make a new one at {hub.endpoint}/settings/tokens; what is public needs none: unset HF_TOKEN, "
        "or run: hf auth logout",
    )


async def test_an_unknown_revision_is_said(repository: dict[str, bytes], hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        await pull("hf:owner/tiny-GGUF@v9:Q8_0", tmp_path, hub)
    assert (str(caught.value), caught.value.hint) == (
        "hf:owner/tiny-GGUF@v9:Q8_0: the repository has no revision v9",
        f"see its branches at {hub.endpoint}/owner/tiny-GGUF",
    )


async def test_a_refusal_of_the_bytes_means_the_same(
    repository: dict[str, bytes], web: WebServer, hub: Hub, tmp_path: Path
) -> None:
    web.statuses = [403]
    with pytest.raises(ModelFetchError, match="the token may not read it"):
        await pull(NAME, tmp_path, hub)


async def test_no_network_is_one_error(tmp_path: Path) -> None:
    hub = Hub("http://127.0.0.1:9", tmp_path / "hub")
    with pytest.raises(
        HubUnreachableError, match=r"^hf:owner/tiny-GGUF:Q8_0: http://127\.0\.0\.1:9 cannot be reached: "
    ):
        await pull(NAME, tmp_path, hub)


async def test_offline_nothing_is_asked(repository: dict[str, bytes], web: WebServer, hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(HubUnreachableError) as caught:
        await pull(NAME, tmp_path, Hub(hub.endpoint, hub.cache, offline=True))
    assert (str(caught.value), caught.value.hint) == (
        "hf:owner/tiny-GGUF:Q8_0 is not on this machine, and HF_HUB_OFFLINE is set",
        "unset HF_HUB_OFFLINE to fetch it",
    )
    assert (web.api, web.asked) == ([], [])


async def test_what_another_program_fetched_is_compared_once_and_used(
    repository: dict[str, bytes], web: WebServer, hub: Hub, tmp_path: Path, model_bytes: bytes
) -> None:
    """Also offline; the record of meshctl is somewhere else than it was when the file came."""
    first = await pull(NAME, tmp_path, hub)
    web.api.clear()
    web.asked.clear()
    offline, said = Hub(hub.endpoint, hub.cache, offline=True), list[str]()
    for name in (NAME, "hf:owner/tiny-GGUF"):
        assert await fetch_model(name, tmp_path / "new", quiet, say=said.append, hub=offline) == first
        assert find_model(name, tmp_path / "none", tmp_path, hub=offline) == first
    again = "comparing tiny-Q8_0.gguf with its hash"
    assert said == [again, again, "the hub cannot be asked: taking tiny-Q8_0.gguf, which is here"]
    assert (web.api, web.asked) == ([], [])
    said.clear()
    assert await fetch_model(NAME, tmp_path / "new", quiet, say=said.append, hub=offline) == first
    assert said == []


async def test_what_another_program_left_damaged_is_fetched_again(
    repository: dict[str, bytes], hub: Hub, tmp_path: Path, model_bytes: bytes
) -> None:
    path = await pull(NAME, tmp_path, hub)
    path.write_bytes(model_bytes[:-1] + b"!")
    said: list[str] = []
    assert await fetch_model(NAME, tmp_path / "new", quiet, say=said.append, hub=hub) == path
    assert path.read_bytes() == model_bytes
    assert said == [
        "comparing tiny-Q8_0.gguf with its hash",
        f"tiny-Q8_0.gguf in {hub.cache} is not what was published",
        "comparing tiny-Q8_0.gguf with its hash",
        f"tiny-Q8_0.gguf in {hub.cache} is not what was published",
    ]


async def test_what_is_damaged_stays_where_it_cannot_be_replaced(
    repository: dict[str, bytes], hub: Hub, tmp_path: Path, model_bytes: bytes
) -> None:
    path = await pull(NAME, tmp_path, hub)
    path.write_bytes(model_bytes[:-1] + b"!")
    said: list[str] = []
    for name in (NAME, "hf:owner/tiny-GGUF"):
        with pytest.raises(HubUnreachableError, match=r"and HF_HUB_OFFLINE is set$"):
            await pull(name, tmp_path / "new", Hub(hub.endpoint, hub.cache, offline=True), said)
    compared = ["comparing tiny-Q8_0.gguf with its hash", f"tiny-Q8_0.gguf in {hub.cache} is not what was published"]
    assert said == [*compared, *compared]
    assert path.read_bytes() == model_bytes[:-1] + b"!"


async def test_what_others_fetched_is_not_taken_for_what_the_repository_has_besides(
    repository: dict[str, bytes], hub: Hub, tmp_path: Path, model_bytes: bytes
) -> None:
    repository |= {"tiny-UD-IQ2_M.gguf": model_bytes[:-1] + b"U", "tiny-IQ2_M.gguf": model_bytes[:-1] + b"I"}
    await pull("hf:owner/tiny-GGUF:UD-IQ2_M", tmp_path / "other", hub)
    for name in ("hf:owner/tiny-GGUF:IQ2_M", "hf:owner/tiny-GGUF"):
        with pytest.raises(ModelNotFoundError, match="has not been fetched yet"):
            find_model(name, tmp_path / "cache", tmp_path, hub=hub)
        offline = Hub(hub.endpoint, hub.cache, offline=True)
        assert find_model(name, tmp_path / "cache", tmp_path, hub=offline).name == "tiny-UD-IQ2_M.gguf"
    assert (await pull("hf:owner/tiny-GGUF:IQ2_M", tmp_path, hub)).name == "tiny-IQ2_M.gguf"
    assert (await pull("hf:owner/tiny-GGUF", tmp_path, hub)).name == "tiny-Q8_0.gguf"
    exactly = find_model("hf:owner/tiny-GGUF:ud-iq2_m", tmp_path / "cache", tmp_path, hub=hub)
    assert exactly.name == "tiny-UD-IQ2_M.gguf"


@pytest.mark.parametrize("page", ["", "/resolve/main/tiny-Q8_0.gguf", "/blob/main/tiny-Q8_0.gguf"])
async def test_the_hash_of_a_link_to_the_hub_counts(
    repository: dict[str, bytes], web: WebServer, hub: Hub, tmp_path: Path, model_bytes: bytes, page: str
) -> None:
    link, digest = f"https://huggingface.co/{REPOSITORY}{page}", hashlib.sha256(model_bytes).hexdigest()
    with pytest.raises(ModelFetchError, match=f"publishes the hash {digest}, but {'f' * 64} is wanted$"):
        await pull(f"{link}#sha256={'f' * 64}", tmp_path, hub)
    assert web.asked == []
    assert (await pull(f"{link}#sha256={digest}", tmp_path, hub)).read_bytes() == model_bytes
    with pytest.raises(ModelNotFoundError, match="has not been fetched yet"):
        find_model(f"{link}#sha256={'f' * 64}", tmp_path / "cache", tmp_path, hub=hub)


async def test_a_file_of_a_users_own_behind_a_link_is_never_removed(
    repository: dict[str, bytes], hub: Hub, tmp_path: Path, model_bytes: bytes
) -> None:
    path = await pull(NAME, tmp_path, hub)
    own = tmp_path / "my-finetune.gguf"
    own.write_bytes(model_bytes[:-1] + b"!")
    path.unlink()
    path.symlink_to(own)
    assert (await pull(NAME, tmp_path, hub)).read_bytes() == model_bytes
    assert own.read_bytes() == model_bytes[:-1] + b"!"
    path.unlink()
    path.symlink_to(own)
    remove_file(path)
    assert (path.is_symlink(), own.exists()) == (False, True)


async def test_a_file_that_is_there_under_another_name_is_not_fetched_twice(
    repository: dict[str, bytes], web: WebServer, hub: Hub, tmp_path: Path, model_bytes: bytes
) -> None:
    await pull(NAME, tmp_path, hub)
    repository["copy-Q5_0.gguf"] = model_bytes
    web.asked.clear()
    path = await pull("hf:owner/tiny-GGUF:Q5_0", tmp_path, hub)
    assert path.read_bytes() == model_bytes
    assert (web.asked, len(blobs(hub))) == ([], 1)


async def test_a_full_disk_is_noticed_before_anything_is_fetched(
    repository: dict[str, bytes], web: WebServer, hub: Hub, tmp_path: Path
) -> None:
    web.sizes["tiny-Q8_0.gguf"] = 2**60
    with pytest.raises(ModelFetchError, match=r"^fetching hf:owner/tiny-GGUF:Q8_0 needs 1,073,741,824 GiB of disk; "):
        await pull(NAME, tmp_path, hub)
    assert web.asked == []


def tiny(sha256: str, size_bytes: int) -> CatalogueModel:
    source = HubSource(REPOSITORY, COMMIT, "Q8_0")
    return CatalogueModel("tiny", "for tests", source, size_bytes, sha256, "MIT", 16, 16)


async def test_a_model_of_the_catalogue_may_come_from_the_hub(
    repository: dict[str, bytes], hub: Hub, tmp_path: Path, model_bytes: bytes
) -> None:
    catalogue = {"tiny": tiny(hashlib.sha256(model_bytes).hexdigest(), len(model_bytes))}
    with pytest.raises(ModelNotFoundError) as caught:
        find_model("tiny", tmp_path / "cache", tmp_path, catalogue, hub)
    assert (str(caught.value), caught.value.hint) == (
        "the model tiny has not been fetched yet",
        "run: meshctl pull tiny",
    )
    path = await fetch_model("tiny", tmp_path / "cache", quiet, catalogue=catalogue, hub=hub)
    assert path.read_bytes() == model_bytes
    assert find_model("tiny", tmp_path / "cache", tmp_path, catalogue, hub) == path


async def test_the_hash_of_the_catalogue_counts(
    repository: dict[str, bytes], web: WebServer, hub: Hub, tmp_path: Path
) -> None:
    catalogue = {"tiny": tiny("f" * 64, 1)}
    with pytest.raises(ModelFetchError, match=r"but ffff.* is wanted$") as caught:
        await fetch_model("tiny", tmp_path / "cache", quiet, catalogue=catalogue, hub=hub)
    assert caught.value.hint == "if you trust what is there now, name it without its hash: hf:owner/tiny-GGUF:Q8_0"
    assert web.asked == []


FILE = {"rfilename": "m-Q8_0.gguf", "size": 1}
NO_ANSWERS: dict[str, object] = {
    "a list": [],
    "no commit": {"id": "a/b", "siblings": []},
    "a commit that is a path": {"id": "a/b", "sha": "../../x", "siblings": []},
    "a hash that is a path": {
        "id": "a/b",
        "sha": COMMIT,
        "siblings": [{**FILE, "lfs": {"sha256": "../../../x", "size": 1, "pointerSize": 1}}],
    },
    "less than nothing": {"id": "a/b", "sha": COMMIT, "siblings": [{**FILE, "size": -1}]},
    "more than any disk has": {"id": "a/b", "sha": COMMIT, "siblings": [{**FILE, "size": 10**20}]},
    "a size that is a word": {"id": "a/b", "sha": COMMIT, "siblings": [{**FILE, "size": "1"}]},
    "siblings that are a word": {"id": "a/b", "sha": COMMIT, "siblings": "none"},
    "a page": "<!DOCTYPE html><title>Sign in</title>",
}


@pytest.mark.parametrize("answer", NO_ANSWERS.values(), ids=NO_ANSWERS)
async def test_what_no_hub_says_is_one_error(web: WebServer, hub: Hub, tmp_path: Path, answer: object) -> None:
    web.answer = answer if isinstance(answer, str) else json.dumps(answer)
    with pytest.raises(ModelFetchError) as caught:
        await pull(NAME, tmp_path, hub)
    assert str(caught.value) == f"{NAME}: {hub.endpoint} does not answer as a hub does"


async def test_names_that_lead_out_of_the_cache_are_no_models(web: WebServer, hub: Hub, tmp_path: Path) -> None:
    web.repositories[REPOSITORY] = {"../../../../../escape-Q8_0.gguf": b"x", "/etc/escape-Q8_0.gguf": b"x"}
    with pytest.raises(ModelNotFoundError, match="the repository has no GGUF models"):
        await pull(NAME, tmp_path, hub)
    assert not list(tmp_path.rglob("*escape*"))


async def test_again_takes_what_has_changed_and_only_that(
    repository: dict[str, bytes], web: WebServer, hub: Hub, tmp_path: Path, model_bytes: bytes
) -> None:
    first = await pull(NAME, tmp_path, hub)
    web.asked.clear()
    said: list[str] = []
    assert await fetch_model(NAME, tmp_path / "cache", quiet, say=said.append, hub=hub, again=True) == first
    assert (web.asked, said) == ([], ["comparing tiny-Q8_0.gguf with its hash"])
    web.commit = "beef" + "0" * 36
    repository["tiny-Q8_0.gguf"] = model_bytes[:-1] + b"!"
    assert await pull(NAME, tmp_path, hub) == first
    later = await fetch_model(NAME, tmp_path / "cache", quiet, hub=hub, again=True)
    assert (later.parent.name, later.read_bytes()) == (web.commit, repository["tiny-Q8_0.gguf"])
    assert find_model(NAME, tmp_path / "cache", tmp_path, hub=hub) == later


async def test_two_at_once_fetch_once(
    repository: dict[str, bytes], web: WebServer, hub: Hub, tmp_path: Path, model_bytes: bytes
) -> None:
    first, second = await asyncio.gather(pull(NAME, tmp_path / "a", hub), pull(NAME, tmp_path / "b", hub))
    assert first == second
    assert len(web.ranges_of("/lfs/owner/tiny-GGUF/tiny-Q8_0.gguf")) == 1


async def test_on_a_disk_without_links_files_lie_under_their_names(
    repository: dict[str, bytes], web: WebServer, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    path = await pull(NAME, tmp_path, hub)
    assert (path.is_symlink(), blobs(hub)) == (False, [])
    web.asked.clear()
    assert await pull(NAME, tmp_path, hub) == path
    assert await pull(NAME, tmp_path / "other", hub) == path
    assert web.asked == []


async def test_shards_that_came_before_a_cancel_do_not_come_again(
    repository: dict[str, bytes], web: WebServer, hub: Hub, tmp_path: Path
) -> None:
    repository[SHARDS[0]], repository[SHARDS[1]] = b"first" * 1000, b"second" * 30_000
    name, cache = "hf:owner/tiny-GGUF:F16", tmp_path / "cache"
    await cancelled(web, lambda listen: fetch_model(name, cache, listen, hub=hub), 5000)
    path = await pull("hf:owner/tiny-GGUF:F16", tmp_path, hub)
    assert [path.with_name(Path(name).name).read_bytes() for name in SHARDS] == [repository[name] for name in SHARDS]
    assert web.ranges_of(SHARDS[0]) == []
    assert web.ranges_of(SHARDS[1])[0] != f"bytes=0-{180_000 - 1}"


def blob_of(hub: Hub) -> tuple[Repository, HubFile]:
    """A file in the hub's cache that has no name yet."""
    repository, file = Repository(hub.cache, REPOSITORY), HubFile("tiny-Q8_0.gguf", 4, "8" * 64)
    repository.blob(file).parent.mkdir(parents=True)
    repository.blob(file).write_bytes(b"GGUF")
    return repository, file


def test_a_name_is_never_missing_while_a_file_gets_it(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where something else had it; a link that is right stays the one that it is."""
    repository, file = blob_of(hub)
    link = repository.link(COMMIT, file)
    link.parent.mkdir(parents=True)
    link.write_bytes(b"what another program put there")
    there: list[bool] = []
    make = Path.symlink_to

    def watched(self: Path, target: Path) -> None:
        there.append(link.exists())
        make(self, target)

    monkeypatch.setattr(Path, "symlink_to", watched)
    assert repository.publish(COMMIT, file).read_bytes() == b"GGUF"
    assert there == [True]
    assert repository.publish(COMMIT, file) == link
    assert there == [True]


def test_a_file_stays_where_it_is_when_it_gets_no_name(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    repository, file = blob_of(hub)

    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    with pytest.raises(OSError, match="No space left"):
        repository.publish(COMMIT, file)
    assert repository.blob(file).read_bytes() == b"GGUF"
    assert list(repository.link(COMMIT, file).parent.iterdir()) == []

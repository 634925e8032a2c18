"""Which models lie where: read from the caches of this machine and of hosts, and what is removed of them."""

import os
from pathlib import Path

import pytest

from orchestrator.cache import Cleaned
from orchestrator.errors import ConnectError, UsageError
from orchestrator.folders import Folders
from orchestrator.host_cache import HostCache, Item
from orchestrator.hosts import OpenHost
from orchestrator.inventory import Host, Inventory
from orchestrator.inventory_file import load_inventory
from orchestrator.kept_models import Kept, kept_in, list_models, remove_model
from orchestrator.models_quota import keep_to_quota, over_quota, read_quota, room_in_quota, write_quota
from orchestrator.shell.local import LocalShell
from orchestrator.shell.ssh_config import SshFiles
from orchestrator.state import ClusterState, hold, write_state
from quant.gguf_file import read_model
from quant.model import Model
from quant.pack import pack_name
from quant.pulled import PulledFile, pulled_file, write_pulled
from quant.synthetic import Shape, write_random_model
from tests.orchestrator.plan.examples import FACTS
from tests.orchestrator.shell.ssh_server import USER, Server
from workers.agent import hold_item

SHAPE = Shape(layers=2, embedding=64, feed_forward=128, heads=2, kv_heads=1, vocabulary=32)
INVENTORY = """\
cluster: demo
model: MODEL
hosts:
  - {name: here, connection: local}
  - {name: there, connection: ssh, address: 127.0.0.1, port: PORT, user: nobody}
"""


def ignore(text: str) -> None:
    """Nobody listens."""


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    found = Folders(tmp_path / "cache", tmp_path / "state")
    (found.cache / "models").mkdir(parents=True)
    return found


@pytest.fixture
def model(folders: Folders) -> Model:
    path = folders.cache / "models" / "small-Q4_0.gguf"
    write_random_model(path, SHAPE, "Q4_0")
    return read_model(path)


@pytest.fixture
def inventory(tmp_path: Path, closed_port: int, model: Model) -> Inventory:
    path = tmp_path / "inventory.yaml"
    path.write_text(INVENTORY.replace("PORT", str(closed_port)).replace("MODEL", str(model.path)))
    return load_inventory(path)


@pytest.fixture
def on_ssh(tmp_path: Path, model: Model, server: Server, trusted: SshFiles, login: Path) -> Inventory:
    """An inventory whose host `there` is a real SSH server; `trusted` has its key."""
    path = tmp_path / "ssh.yaml"
    text = INVENTORY.replace("PORT", str(server.port)).replace("MODEL", str(model.path))
    path.write_text(text.replace("user: nobody", f"user: {USER}, key: {login}"))
    return load_inventory(path)


def item(kind: str, name: str, size_bytes: int = 10, used_s: float = 0.0, files: tuple[str, ...] = ()) -> Item:
    is_folder = kind == "packs" or bool(files)
    return Item(kind, name, size_bytes, used_s, False, True, is_folder, files=files)


def kept(name: str, size_bytes: int, used_s: float, *, in_use: bool = False) -> Kept:
    item = Item("models", name, size_bytes, used_s, in_use, True, False)
    return Kept(name, "controller", "model", (item,), in_use=in_use)


def test_what_lies_on_a_host_is_told_by_the_model_it_is_of(model: Model) -> None:
    copy = item("models", model.files_digest, files=(model.path.name,))
    weights, other = item("packs", pack_name(model)), item("packs", "llama_8b-0123456789ab")
    stranger = item("models", "0f12", files=("other.gguf", "other.json"))
    engine = item("engines", "cpu-1")
    found = tuple(kept_in("nuc", HostCache((copy, weights, other, stranger, engine), 1), (model,)))
    assert found == (
        Kept("small-Q4_0.gguf", "nuc", "copy", (copy,), "Q4_0"),
        Kept("small-Q4_0.gguf", "nuc", "weights", (weights,), "Q4_0"),
        Kept("llama_8b", "nuc", "weights", (other,)),
        Kept("other.gguf", "nuc", "copy", (stranger,)),
    )


def test_shards_are_one_model_as_old_as_the_one_used_last() -> None:
    shards = tuple(item("models", f"big-0000{n}-of-00002.gguf", 5, float(n)) for n in (1, 2))
    (found,) = kept_in("controller", HostCache(shards, 1), ())
    assert found == Kept("big-00001-of-00002.gguf", "controller", "model", shards)
    assert (found.size_bytes, found.used_s) == (10, 2.0)


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", True),
        ("SmolLM2-135M-Instruct.Q4_1", True),
        ("/anywhere/SmolLM2-135M-Instruct.Q4_1.gguf", False),
        ("https://example.org/SmolLM2-135M-Instruct.Q4_1.gguf", False),
        ("smollm2-135m", True),
        ("SmolLM2-135M", False),
        ("", False),
    ],
)
def test_a_model_answers_to_its_file_and_to_the_catalogue(name: str, called: bool) -> None:
    assert kept("SmolLM2-135M-Instruct.Q4_1.gguf", 1, 0.0).is_called(name) is called


async def test_this_machine_is_listed_with_or_without_hosts(
    model: Model, folders: Folders, inventory: Inventory
) -> None:
    alone = await list_models(None, folders, ignore)
    assert list(alone) == ["controller"]
    both = await list_models(inventory, folders, ignore)
    assert isinstance(both["there"], ConnectError)
    for here in (alone["controller"], both["controller"]):
        assert not isinstance(here, Exception)
        assert [(one.model, one.what, one.quantisation) for one in here] == [("small-Q4_0.gguf", "model", "Q4_0")]


async def test_a_file_that_is_no_model_is_listed_all_the_same(folders: Folders) -> None:
    (folders.cache / "models" / "broken.gguf").write_text("no model")
    (here,) = (await list_models(None, folders, ignore)).values()
    assert not isinstance(here, Exception)
    assert [(one.model, one.quantisation, one.size_bytes) for one in here] == [("broken.gguf", "", 8)]


async def test_a_model_is_removed_here_and_its_weights_everywhere(
    model: Model, folders: Folders, inventory: Inventory
) -> None:
    pack = folders.cache / "packs" / pack_name(model) / "rpc"
    pack.mkdir(parents=True)
    here = (await remove_model("small-Q4_0", ("controller",), None, folders, ignore))["controller"]
    assert isinstance(here, Cleaned)
    assert [one.place for one in here.removed] == ["packs/" + pack_name(model), "models/small-Q4_0.gguf"]
    assert (here.left, model.path.exists(), pack.exists()) == ((), False, False)


async def test_what_a_host_has_of_a_model_is_listed_and_removed_there_alone(
    model: Model, folders: Folders, on_ssh: Inventory, server: Server
) -> None:
    cache = server.home / ".cache" / "meshctl"
    for place in (f"packs/{pack_name(model)}/rpc", f"models/{model.files_digest}", "models/0f12"):
        (cache / place).mkdir(parents=True)
        (cache / place / "other.gguf").write_bytes(b"12345")
    there = (await list_models(on_ssh, folders, ignore))["there"]
    assert not isinstance(there, Exception)
    assert sorted((one.model, one.what, one.quantisation) for one in there) == [
        ("other.gguf", "copy", ""),
        ("small-Q4_0.gguf", "copy", "Q4_0"),
        ("small-Q4_0.gguf", "weights", "Q4_0"),
    ]
    (answer,) = (await remove_model("small-Q4_0", ("there",), on_ssh, folders, ignore)).values()
    assert isinstance(answer, Cleaned)
    assert {one.place for one in answer.removed} == {f"packs/{pack_name(model)}", f"models/{model.files_digest}"}
    assert [path.name for path in (*(cache / "packs").glob("*"), *(cache / "models").glob("*"))] == ["0f12"]
    assert model.path.exists()


async def test_a_host_that_cannot_be_asked_is_told_and_the_others_are_done(
    model: Model, folders: Folders, inventory: Inventory
) -> None:
    removed = await remove_model("small-Q4_0.gguf", None, inventory, folders, ignore)
    assert isinstance(removed["there"], ConnectError)
    assert isinstance(removed["controller"], Cleaned)
    assert not model.path.exists()


async def test_what_a_process_or_a_cluster_uses_stays(model: Model, folders: Folders, inventory: Inventory) -> None:
    held = hold_item(str(model.path))
    used = (await remove_model("small-Q4_0", ("controller",), None, folders, ignore))["controller"]
    assert isinstance(used, Cleaned)
    assert (used.removed, [one.name for one in used.left]) == ((), ["small-Q4_0.gguf"])
    assert held > 0


async def test_what_a_cluster_between_two_lives_needs_stays(
    model: Model, folders: Folders, inventory: Inventory
) -> None:
    folder = folders.cluster("demo")
    with hold(folder):
        write_state(folder, ClusterState("demo", str(inventory.path), 1, "recovering", "", ""))
        used = (await remove_model("small-Q4_0", ("controller",), None, folders, ignore))["controller"]
    assert isinstance(used, Cleaned)
    assert (used.removed, model.path.exists()) == ((), True)


async def test_names_that_nothing_has_are_errors(model: Model, folders: Folders, inventory: Inventory) -> None:
    with pytest.raises(UsageError, match="controller: there is no model none"):
        await remove_model("none", ("controller",), None, folders, ignore)
    with pytest.raises(UsageError, match="--host nuc: no such host") as caught:
        await remove_model("small-Q4_0", ("nuc",), inventory, folders, ignore)
    assert caught.value.hint == "choose one of controller, there"


def test_the_longest_unused_go_first_until_the_quota_is_kept() -> None:
    day = 24 * 3600.0
    models = (
        kept("new", 40, 9 * day),
        kept("old", 30, day),
        kept("older", 20, 0.0),
        kept("used", 50, 0.0, in_use=True),
    )

    def going(quota: int, *names: str, coming: int = 0) -> list[str]:
        return [one.model for one in over_quota(models, quota, 10 * day, names, coming)]

    assert going(140) == []
    assert going(139) == ["older"]
    assert going(119) == ["older", "old"]
    assert going(0) == ["older", "old", "new"]
    assert going(60, "old") == ["older", "new"]
    assert going(139, coming=20) == ["older", "old"]


def test_nothing_goes_for_what_is_larger_than_the_quota_alone() -> None:
    models = (kept("source", 40, 0.0), kept("other", 40, 0.0))
    assert over_quota(models, 99, 1e9, ("source",), 60) == ()
    assert over_quota(models, 100, 1e9, ("source",), 60) == models[1:]


def test_what_was_used_within_the_hour_stays() -> None:
    assert over_quota((kept("fresh", 40, 1000.0),), 0, 4000.0) == ()


def test_there_is_no_quota_until_one_is_set(folders: Folders) -> None:
    assert read_quota(folders) is None
    write_quota(folders, 5)
    assert read_quota(folders) == 5
    write_quota(folders, None)
    assert read_quota(folders) is None


async def test_what_the_quota_drops_is_told(model: Model, folders: Folders) -> None:
    told: list[str] = []
    new = folders.cache / "models" / "new.gguf"
    write_random_model(new, SHAPE, "Q8_0")
    os.utime(model.path, (1000.0, 1000.0))
    await keep_to_quota(folders, told.append)
    assert (told, model.path.exists()) == ([], True)
    write_quota(folders, new.stat().st_size)
    await keep_to_quota(folders, told.append, kept=("new.gguf",))
    assert [new.exists(), model.path.exists()] == [True, False]
    assert told == ["small-Q4_0.gguf (45.7 KiB), used longest ago, is removed: the quota is full"]


async def test_what_comes_is_told_where_it_alone_exceeds_the_quota_and_drives_nothing_out(
    model: Model, folders: Folders
) -> None:
    told: list[str] = []
    os.utime(model.path, (1000.0, 1000.0))
    write_quota(folders, 50 * 1024)
    await room_in_quota(folders, told.append)({"huge.gguf": 60 * 1024})
    assert (len(told), model.path.exists()) == (1, True)
    assert told[0].startswith("the models take 106 KiB, over the quota of 50.0 KiB, but no others go: they are in use")
    await room_in_quota(folders, told.append)({model.path.name: 40 * 1024})
    assert (len(told), model.path.exists()) == (1, True)
    await room_in_quota(folders, told.append)({"small.gguf": 40 * 1024})
    assert (told[1:], model.path.exists()) == (
        ["small-Q4_0.gguf (45.7 KiB), used longest ago, is removed: the quota is full"],
        False,
    )


@pytest.fixture
def of_the_hub(folders: Folders, tmp_path: Path) -> Path:
    """A model in the hub's cache, as it was pulled, and beside it another quantisation that nobody pulled by a name."""
    snapshot = tmp_path / "hub" / "models--owner--tiny" / "snapshots" / ("c0ffee" + "0" * 34)
    (snapshot.parents[1] / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for kind in ("Q8_0", "Q4_0"):
        blob = snapshot.parents[1] / "blobs" / (kind[1] * 64)
        write_random_model(blob, SHAPE, kind)
        (snapshot / f"tiny-{kind}.gguf").symlink_to(blob)
    link = snapshot / "tiny-Q8_0.gguf"
    write_pulled(folders.cache, "hf:owner/tiny:Q8_0", (pulled_file(link, "8" * 64),))
    write_pulled(folders.cache, "https://example.org/gone.gguf", (PulledFile("/nowhere/gone.gguf", 1, "", 0),))
    return link


async def test_models_of_the_hub_are_listed_where_they_lie(folders: Folders, of_the_hub: Path) -> None:
    listed = await list_models(None, folders, ignore)
    (kept,) = (one for one in as_kept(listed["controller"]) if one.what == "hub")
    assert (kept.model, kept.host, kept.quantisation) == ("tiny-Q8_0.gguf", "controller", "Q8_0")
    assert [(one.place, one.size_bytes) for one in kept.items] == [(str(of_the_hub), of_the_hub.stat().st_size)]


@pytest.mark.parametrize("name", ["tiny-Q8_0", "hf:owner/tiny:Q8_0"])
async def test_a_model_of_the_hub_is_removed_and_what_was_not_named_stays(
    folders: Folders, of_the_hub: Path, name: str
) -> None:
    blob, other = of_the_hub.resolve(), of_the_hub.with_name("tiny-Q4_0.gguf")
    removed = await remove_model(name, None, None, folders, ignore)
    cleaned = removed["controller"]
    assert isinstance(cleaned, Cleaned)
    assert [one.place for one in cleaned.removed] == [str(of_the_hub)]
    assert (of_the_hub.exists(), blob.exists(), other.is_file()) == (False, False, True)


async def test_bytes_that_another_commit_has_too_stay(folders: Folders, of_the_hub: Path) -> None:
    blob = of_the_hub.resolve()
    twin = of_the_hub.parents[1] / ("beef" + "0" * 36) / "tiny-Q8_0.gguf"
    twin.parent.mkdir()
    twin.symlink_to(blob)
    await remove_model("tiny-Q8_0", None, None, folders, ignore)
    assert (of_the_hub.exists(), twin.is_file()) == (False, True)


async def test_every_name_that_led_to_a_model_of_the_hub_means_it(folders: Folders, of_the_hub: Path) -> None:
    names = ("hf:owner/tiny", "https://huggingface.co/owner/tiny/resolve/main/tiny-Q8_0.gguf")
    for name in names:
        write_pulled(folders.cache, name, (pulled_file(of_the_hub, "8" * 64),))
        await remove_model(name, None, None, folders, ignore)
        assert not of_the_hub.exists()
        (of_the_hub.parents[2] / "blobs" / ("8" * 64)).parent.mkdir(exist_ok=True)
        write_random_model(of_the_hub.parents[2] / "blobs" / ("8" * 64), SHAPE, "Q8_0")
        of_the_hub.symlink_to(of_the_hub.parents[2] / "blobs" / ("8" * 64))


async def test_a_path_means_that_very_file_and_what_is_of_it(model: Model, folders: Folders, tmp_path: Path) -> None:
    """Not another one of that name, whatever folder it is in."""
    own = tmp_path / "data" / model.path.name
    own.parent.mkdir()
    write_random_model(own, SHAPE, "Q4_0")
    with pytest.raises(UsageError, match="there is no model"):
        await remove_model(str(own), ("controller",), None, folders, ignore)
    copies = [folders.cache / "models" / read_model(path).files_digest for path in (model.path, own)]
    for copy in copies:
        copy.mkdir()
        (copy / model.path.name).write_bytes(b"a copy")
    await remove_model(str(model.path.parent / ".." / "models" / model.path.name), None, None, folders, ignore)
    assert [path.exists() for path in (model.path, own, *copies)] == [False, True, False, True]


async def test_a_name_that_several_models_here_have_removes_none(
    model: Model, folders: Folders, of_the_hub: Path
) -> None:
    twin = folders.cache / "models" / of_the_hub.name
    write_random_model(twin, SHAPE, "Q8_0")
    with pytest.raises(UsageError, match=r"^2 models on this machine are called tiny-Q8_0: ") as caught:
        await remove_model("tiny-Q8_0", None, None, folders, ignore)
    assert all(str(path) in str(caught.value) and path.exists() for path in (twin, of_the_hub))
    assert caught.value.hint == "name one by its path"
    for path in (twin, of_the_hub):
        await remove_model(str(path), None, None, folders, ignore)
        assert not path.exists()


async def test_a_model_of_the_hub_that_a_program_of_ours_uses_stays(folders: Folders, of_the_hub: Path) -> None:
    """What remembers its names is held, as nothing of ours lies beside it."""
    host = OpenHost(Host("here", "local"), LocalShell("here", folders.cache, folders.cache), "", FACTS)
    (held,) = host.items(str(of_the_hub))
    descriptor = hold_item(held)
    (kept,) = (one for one in as_kept((await list_models(None, folders, ignore))["controller"]) if one.what == "hub")
    assert kept.in_use
    cleaned = (await remove_model("tiny-Q8_0", None, None, folders, ignore))["controller"]
    assert isinstance(cleaned, Cleaned)
    assert (cleaned.removed, of_the_hub.exists()) == ((), True)
    os.close(descriptor)
    await remove_model("tiny-Q8_0", None, None, folders, ignore)
    assert not of_the_hub.exists()


async def test_the_model_that_a_cluster_runs_stays_whatever_its_inventory_says_by_now(
    folders: Folders, inventory: Inventory, model: Model, of_the_hub: Path
) -> None:
    folder = folders.cluster("demo")
    with hold(folder):
        state = ClusterState("demo", str(inventory.path), 1, "recovering", "", "", model_path=str(of_the_hub))
        write_state(folder, state)
        listed = {one.model: one.in_use for one in as_kept((await list_models(None, folders, ignore))["controller"])}
    assert listed == {model.path.name: False, of_the_hub.name: True}


def as_kept(answer: object) -> tuple[Kept, ...]:
    assert isinstance(answer, tuple)
    return answer

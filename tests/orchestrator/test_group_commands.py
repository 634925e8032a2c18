"""What the processes of a plan are told, and every command of a dry run."""

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from orchestrator.dry_run import commands_of
from orchestrator.engine.store import Engine
from orchestrator.folders import Folders
from orchestrator.group_commands import head_place, own_gpus, placement_of
from orchestrator.hosts import OpenHost, OpenHosts
from orchestrator.inventory import Host, Inventory
from orchestrator.network import PrivateNetwork
from orchestrator.plan.experience import NO_EXPERIENCE
from orchestrator.prepare import Prepared
from orchestrator.shell.local import LocalShell
from orchestrator.shell.protocol import Shell
from orchestrator.shell.ssh_config import SshFiles
from orchestrator.survey.values import Device
from quant.model import Model
from tests.orchestrator.groups import make_group, make_plan_of, make_share
from tests.orchestrator.plan.examples import FACTS, LOOPBACK, make_device, make_gpu, make_memory, make_survey
from workers.engine_commands import OnGpu, Placement

HERE = Host("here", "local", threads=3, run_with=("taskset", "-c", "0"))
PI = Host("pi", "ssh", address="pi.local")
FOLDERS = Folders(Path("/cache"), Path("/state"))


class Far:
    """A shell that only says where its host keeps our files."""

    root = "/home/ada/.cache/meshctl"
    is_local = False


def open_host(host: Host) -> OpenHost:
    shell = LocalShell(host.name, Path("/cache"), Path("/home")) if host.connection == "local" else cast(Shell, Far())
    return OpenHost(host, shell, "agent.py", FACTS)


HOSTS = OpenHosts(
    open_host(Host("controller", "local")),
    {"here": open_host(HERE), "pi": open_host(PI)},
    SshFiles(Path("/state/ssh_config"), Path("/state/known_hosts")),
    PrivateNetwork(LocalShell("controller", Path("/cache"), Path("/home")), "agent.py", ""),
)


def device(name: str, threads: int) -> Device:
    return replace(make_device(name, 4000, link=LOOPBACK), threads=threads)


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    model = cast(Model, _Model(file))
    survey = make_survey([device("here/cpu", 3), device("pi/cpu", 4)], local=["here"])
    return Prepared(
        inventory=Inventory(Path("inventory.yaml"), "home", "model.gguf", (HERE, PI)),
        engine=cast(Engine, _Engine()),
        engine_folders={"here": "/engine", "pi": "/far/engine"},
        model=model,
        memories=(make_memory(10),),
        survey=survey,
        experience=NO_EXPERIENCE,
    )


class _Engine:
    folder = Path("/engine")


class _Model:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.shards = (path,)


NO_CARDS = ("CUDA_VISIBLE_DEVICES", "")
LAYERS = make_group(make_share("here/cpu", 4), make_share("pi/cpu", 6))
OWN = make_group(make_share("here/cpu", 4, native=True), make_share("pi/cpu", 6))
TENSOR = make_group(make_share("here/cpu", part=1), make_share("pi/cpu", part=2), mode="tensor")
ON_PI = make_group(make_share("pi/cpu", native=True), mode="single", head="pi", parallel=2)
ON_HERE = make_group(make_share("here/cpu", native=True), mode="single", head="here")


def test_a_placement_says_how_layers_are_split(prepared: Prepared) -> None:
    ends = ("127.0.0.1:1", "127.0.0.1:2")
    fixed = Placement((), (), output_on_head=True, output_tied=False, block_count=10)
    both = replace(fixed, endpoints=ends, names=("RPC0", "RPC1"))
    one = replace(fixed, endpoints=ends[:1], names=("RPC0",))
    assert placement_of(prepared, LAYERS, ends) == replace(both, tensor_split=(4, 7))
    assert placement_of(prepared, OWN, ends[:1]) == replace(one, tensor_split=(7,), head_layers=4)
    assert placement_of(prepared, TENSOR, ends) == replace(both, tensor_split=(1, 2), mode="tensor")
    assert placement_of(prepared, ON_PI, ()) is None


def cards(*names: str) -> list[Device]:
    return [make_gpu(name, 4000, gib_per_s=100, native_gib_per_s=200) for name in names]


def test_a_head_sees_only_the_cards_that_it_computes_on_and_counts_them_anew(prepared: Prepared) -> None:
    """It takes a context's memory on every card that it sees."""
    devices = [device("here/cpu", 3), device("pi/cpu", 4), *cards("here/cuda0", "here/cuda1", "here/cuda3")]
    with_cards = replace(prepared, survey=make_survey(devices, local=["here"]))
    shares = (make_share("here/cpu", 2, native=True), make_share("pi/cpu", 5))
    for own, names, shown in (
        ((make_share("here/cuda1", 3, gpu="CUDA1"),), ("RPC0", "CUDA0"), "1"),
        (
            (make_share("here/cuda3", 2, gpu="CUDA3"), make_share("here/cuda0", 1, gpu="CUDA0")),
            ("RPC0", "CUDA1", "CUDA0"),
            "0,3",
        ),
    ):
        group = make_group(*shares, *own, head="here")
        placement = placement_of(with_cards, group, ("127.0.0.1:1",))
        assert isinstance(placement, Placement)
        assert placement.names == names
        assert head_place(with_cards, HOSTS, group).environment == (("CUDA_VISIBLE_DEVICES", shown),)
        assert own_gpus(with_cards, group) == {names[1 + number]: share for number, share in enumerate(own)}
    alone = make_group(make_share("here/cuda3", native=True), mode="single", head="here")
    assert placement_of(with_cards, alone, ()) == OnGpu("CUDA0")
    assert head_place(with_cards, HOSTS, alone).environment == (("CUDA_VISIBLE_DEVICES", "3"),)
    of_workers = make_group(make_share("here/cuda0", 5), make_share("here/cuda1", 5), head="here")
    assert head_place(with_cards, HOSTS, of_workers).environment == (("CUDA_VISIBLE_DEVICES", ""),)


def test_a_head_that_computes_runs_on_its_devices_host_with_its_threads(prepared: Prepared) -> None:
    """A split's head otherwise runs on the controller, with a thread for each of its cores."""
    places = [head_place(prepared, HOSTS, group) for group in (LAYERS, OWN, TENSOR, ON_PI, ON_HERE)]
    assert [(place.host.name, place.engine, place.threads) for place in places] == [
        ("controller", "/engine", 8),
        ("here", "/engine", 3),
        ("controller", "/engine", 8),
        ("pi", "/far/engine", 4),
        ("here", "/engine", 3),
    ]


def test_a_head_with_a_gpu_of_its_own_sees_it_as_its_worker_would(prepared: Prepared) -> None:
    """Also beside layers on the same host's CPU; from CUDA it is kept away."""
    variables = (("GGML_VK_VISIBLE_DEVICES", "0"),)
    card = replace(device("here/vulkan0", 2), kind="vulkan", engine_name="Vulkan0", environment=variables)
    survey = make_survey([device("here/cpu", 3), card, device("pi/cpu", 4)], local=["here"])
    engines = {"here": "/engines/cuda-linux", "pi": "/far/engine"}
    with_card = replace(prepared, survey=survey, engine_folders=engines)
    shares = (make_share("here/cpu", 2, native=True), make_share("pi/cpu", 5))
    own = make_group(*shares, make_share("here/vulkan0", 3, gpu="Vulkan0"), head="here")
    place = head_place(with_card, HOSTS, own)
    assert (place.host.name, place.engine, place.environment) == ("here", "/engines/cuda-linux", (*variables, NO_CARDS))
    without = head_place(with_card, HOSTS, make_group(*shares, head="here"))
    assert without.environment == (NO_CARDS,)


def test_a_dry_run_has_every_process_of_every_group(prepared: Prepared) -> None:
    commands = commands_of(prepared, make_plan_of(ON_PI, ON_HERE), HOSTS, FOLDERS)
    assert [where for where, _ in commands] == ["pi: head1", "controller: link to pi", "here: head2"]
    remote, link, local = (words for _, words in commands)
    assert remote[0] == "/far/engine/llama-server"
    assert remote[remote.index("--model") + 1].startswith("/home/ada/.cache/meshctl/models/")
    assert remote[remote.index("--api-key-file") + 1] == "/home/ada/.cache/meshctl/clusters/home/head1.key"
    assert remote[remote.index("--parallel") + 1] == "2"
    assert remote[remote.index("--host") + 1] == "/home/ada/.cache/meshctl/run/20000.sock"
    assert "/cache/run/20001.sock:/home/ada/.cache/meshctl/run/20000.sock" in link
    assert local[:4] == ("taskset", "-c", "0", "/engine/llama-server")
    assert local[local.index("--api-key-file") + 1] == "/state/clusters/home/head2.key"


def test_heads_are_told_that_flash_attention_is_off(prepared: Prepared) -> None:
    plan = replace(make_plan_of(ON_PI, ON_HERE), flash_attention="off")
    heads = [words for where, words in commands_of(prepared, plan, HOSTS, FOLDERS) if "head" in where]
    assert [words[words.index("--flash-attn") + 1] for words in heads] == ["off", "off"]


def test_a_dry_run_places_a_group_over_its_workers_and_links(prepared: Prepared) -> None:
    commands = commands_of(prepared, make_plan_of(TENSOR), HOSTS, FOLDERS)
    assert [where for where, _ in commands] == [
        "here: worker",
        "pi: worker",
        "controller: link to pi",
        "controller: head",
    ]
    head = commands[-1][1]
    assert head[head.index("--rpc") + 1] == "127.0.0.1:20000,127.0.0.1:20004"
    assert head[head.index("--split-mode") + 1] == "tensor"
    assert head[head.index("--api-key-file") + 1] == "/state/clusters/home/head.key"

"""What the processes of a plan are told, and every command of a dry run."""

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from orchestrator.dry_run import commands_of
from orchestrator.engine.store import Engine
from orchestrator.folders import Folders
from orchestrator.group_commands import head_place, placement_of
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
from tests.orchestrator.plan.examples import FACTS, LOOPBACK, make_device, make_memory, make_survey
from workers.engine_commands import Placement

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


LAYERS = make_group(make_share("here/cpu", 4), make_share("pi/cpu", 6))
OWN = make_group(make_share("here/cpu", 4, native=True), make_share("pi/cpu", 6))
TENSOR = make_group(make_share("here/cpu", part=1), make_share("pi/cpu", part=2), mode="tensor")
ON_PI = make_group(make_share("pi/cpu", native=True), mode="single", head="pi", parallel=2)
ON_HERE = make_group(make_share("here/cpu", native=True), mode="single", head="here")


def test_a_placement_says_how_layers_are_split(prepared: Prepared) -> None:
    ends = ("127.0.0.1:1", "127.0.0.1:2")
    fixed = {"output_on_head": True, "output_tied": False, "block_count": 10}
    assert placement_of(prepared, LAYERS, ends) == Placement(ends, (4, 7), **fixed)  # type: ignore[arg-type]
    assert placement_of(prepared, OWN, ends[:1]) == Placement(ends[:1], (7,), **fixed, head_layers=4)  # type: ignore[arg-type]
    assert placement_of(prepared, TENSOR, ends) == Placement(ends, (1, 2), **fixed, mode="tensor")  # type: ignore[arg-type]
    assert placement_of(prepared, ON_PI, ()) is None


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

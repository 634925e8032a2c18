"""`link: direct`: a worker that is reached without SSH in between, at one private address and nowhere else."""

from pathlib import Path

import pytest

from lab_folder import LabHost
from orchestrator.engine.store import Engine
from tests.end_to_end.answers import answers, plain_head
from tests.end_to_end.inventories import free_port
from tests.end_to_end.refusals import change, wait_idle
from tests.lab_fixture import MakeLab
from tests.program import Meshctl

pytestmark = [pytest.mark.engine, pytest.mark.lab]


def test_a_direct_host_answers_as_usual_and_listens_at_its_one_address(
    make_lab: MakeLab, meshctl: Meshctl, engine: Engine, demo_model: Path
) -> None:
    """No tunnel is opened; `doctor` and `up` say in a line what that means."""
    lab = make_lab(LabHost("host1", rate="1gbit"))
    (host,) = lab.hosts
    path = lab.inventory(context=512, memory="120MiB", gateway_port=free_port())
    inventory = change(path, {"host1": {"link": "direct", "plaintext_rpc": "accept"}})
    meshctl.ok("trust", inventory, "--yes")
    meaning = (
        f"link: direct, its worker listens at {host.address} without password and encryption: whoever reaches it "
        "there runs code as root and reads what is asked"
    )
    assert meaning.removeprefix("link: ") in " ".join(meshctl.ok("doctor", inventory).stdout.split())
    said = " ".join(meshctl.ok("up", inventory, "--detach", "--split", "host1/cpu=30").stderr.split())
    assert said.count(f"host1: {meaning}") == 1
    state = meshctl.ok("status", "--json").json
    assert sorted(process["name"].rpartition("-")[0] for process in state["processes"]) == ["head", "worker-cpu"]
    listening = {(one.address, one.program) for one in host.listening()}
    assert listening == {(host.address, "sshd"), (host.address, "ggml-rpc-server")}
    with plain_head(engine, demo_model) as plain:
        assert answers(state["gateway"].removesuffix("/v1"), meshctl.key()) == answers(plain)
    meshctl.ok("down")
    wait_idle(host, deadline_s=15)

"""Hosts that cannot be used: each case is one clear error with its fix, `doctor` says the same, nothing is left."""

import re
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab_folder import LabHost
from lab_hosts import Lab
from tests.end_to_end.inventories import free_port, write_local
from tests.end_to_end.refusals import assert_nothing_left, change, error_of, failed_checks, files_of
from tests.lab_fixture import MakeLab
from tests.program import Meshctl, processes_with

pytestmark = [pytest.mark.engine, pytest.mark.lab]

KIB, MIB = 1024, 1024 * 1024


def test_every_host_that_does_not_let_us_work_is_named_with_its_fix(make_lab: MakeLab, meshctl: Meshctl) -> None:
    """One good host among bad ones: all are tried, each bad one has a line and a hint, the good one stays as it is."""
    names = ("good", "closed", "stranger", "keyless", "bare", "nameless")
    lab = make_lab(*(LabHost(name, python=name != "bare") for name in names))
    path = trusted(lab, meshctl)
    other_key = make_key(meshctl.folder / "other_key")
    changes: dict[str, dict[str, object]] = {
        "closed": {"port": 23},
        "stranger": {"user": "nobody"},
        "keyless": {"key": other_key},
        "nameless": {"address": "no-such-host.invalid"},
    }
    inventory = change(path, changes)
    address = {host.name: host.address for host in lab.hosts}
    said = {
        "closed": f"nothing listens at {address['closed']} port 23 (connection refused)",
        "stranger": f"login as nobody at {address['stranger']} port 22 was refused; tried {lab.client_key}",
        "keyless": f"login as root at {address['keyless']} port 22 was refused; tried {other_key}",
        "bare": "has no python3",
        "nameless": "the name no-such-host.invalid is not known (...)",
    }
    fixes = {
        "closed": "start its SSH server (Debian: `sudo systemctl start ssh`; macOS: Remote Login) or set `port`",
        "stranger": put_key(f"nobody@{address['stranger']}"),
        "keyless": put_key(f"root@{address['keyless']}"),
        "bare": "install it there: `apt install python3`, `dnf install python3`, or on a Mac `brew install python3`",
        "nameless": "correct `address` in the inventory, or use the machine's IP address",
    }
    errors = [f"{name}: {text}" for name, text in said.items()]
    hints = [f"hint: {name}: {text}" for name, text in fixes.items()]
    assert resolver_left_out(error_of(meshctl.run("up", inventory, "--detach"))) == "\n".join(errors + hints)
    assert_nothing_left(meshctl, lab)
    titles = dict.fromkeys(said, "reachable") | {"bare": "python"}
    examined = failed_checks(meshctl.run("doctor", inventory, "--json"))
    assert examined.pop("good") == []
    found = {host: [(title, resolver_left_out(text), fix)] for host, ((title, text, fix),) in examined.items()}
    assert found == {name: [(titles[name], text, fixes[name])] for name, text in said.items()}
    assert "engines" not in files_of(lab.hosts[0])


def test_unknown_and_changed_host_keys_are_refused_by_every_command(make_lab: MakeLab, meshctl: Meshctl) -> None:
    """Trust is the user's word alone: not `up`, not `doctor`, and not `trust --yes` once another key is known."""
    lab = make_lab(LabHost("host1"))
    (host,) = lab.hosts
    inventory = str(lab.inventory(context=512, gateway_port=free_port()))
    unknown = f"the host key of {host.address} is not known yet: {host.fingerprint()}"
    scan = f"run `meshctl trust {inventory}` and compare the fingerprint with what the machine itself says"
    for words in (("up", inventory), ("up", inventory, "--detach"), ("plan", inventory)):
        assert error_of(meshctl.run(*words)) == f"host1: {unknown}\nhint: {scan}"
    assert failed_checks(meshctl.run("doctor", inventory, "--json")) == {"host1": [("host key", unknown, scan)]}
    assert meshctl.run("trust", inventory, stdin="n\n").status == 1
    assert known_hosts(meshctl) == ""
    assert meshctl.ok("trust", inventory, stdin="y\n").stderr.count(host.fingerprint()) == 1
    old, old_print = known_hosts(meshctl), host.fingerprint()
    host.new_host_key()
    changed = (
        f"THE HOST KEY OF {host.address} HAS CHANGED; somebody may be in between\n"
        f"  trusted: {old_print} (ssh-ed25519)\n  offered: {host.fingerprint()}"
    )
    replace = (
        "on the machine itself run `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub`; only if it prints the offered "
        f"fingerprint (the machine was set up anew) run `meshctl trust {inventory} --replace host1`"
    )
    for command in (("up", inventory, "--detach"), ("trust", inventory), ("trust", inventory, "--yes")):
        assert error_of(meshctl.run(*command)) == f"host1: {changed}\nhint: {replace}"
    assert failed_checks(meshctl.run("doctor", inventory, "--json")) == {"host1": [("host key", changed, replace)]}
    assert (known_hosts(meshctl), files_of(host)) == (old, [])
    assert_nothing_left(meshctl, lab)
    assert "1 key trusted" in meshctl.ok("trust", inventory, "--replace", "host1").stderr
    assert known_hosts(meshctl) == f"{host.address} {host.public_key()}\n"
    assert failed_checks(meshctl.ok("doctor", inventory, "--json")) == {"host1": []}


def test_a_full_disk_is_named_at_every_size_and_holds_no_half_file(make_lab: MakeLab, meshctl: Meshctl) -> None:
    """No room for the agent, for the engine's archive, or for what is in the archive beside it."""
    sizes = {"stuffed": 32 * KIB, "small": 10 * MIB, "medium": 40 * MIB}
    lab = make_lab(*(LabHost(name, disk_bytes=size) for name, size in sizes.items()))
    inventory = trusted(lab, meshctl)
    checks = failed_checks(meshctl.run("doctor", str(inventory), "--json"))
    assert [title for failed in checks.values() for title, _, _ in failed] == ["disk", "disk", "disk"]
    assert checks["stuffed"][0][2] == "free some space on that host's disk and try again"
    assert checks["medium"][0][2] == "free at least 200 MiB in /root/.cache/meshctl"
    error = error_of(meshctl.run("up", str(inventory), "--detach"))
    agent = r"stuffed: /root/\.cache/meshctl/agent/agent-\w+\.py does not fit: [\d.]+ KiB needed, \d\d\.\d KiB free"
    assert re.fullmatch(rf"{agent}\nhint: free some space on that host's disk and try again", error), error
    assert_nothing_left(meshctl, lab)
    error = error_of(meshctl.run("up", change(inventory, {}, only=("small", "medium")), "--detach"))
    needed = r"the engine needs (\d\d\.\d MiB) of disk in /root/\.cache/meshctl"
    assert re.fullmatch(
        rf"small: {needed}, \d\.\d MiB are free\nmedium: {needed}, \d\d\.\d MiB are free\n"
        r"hint: free at least \1 there",
        error,
    ), error
    assert_nothing_left(meshctl, lab)
    for host in lab.hosts:
        assert [name for name in files_of(host) if name.startswith("engines/") and not name.endswith(".lock")] == []


def test_too_little_memory_is_told_with_every_shortfall(make_lab: MakeLab, meshctl: Meshctl) -> None:
    """One host that could hold a part, one too small even to be measured: both have their numbers."""
    lab = make_lab(LabHost("poor", memory_bytes=90 * MIB), LabHost("poorer", memory_bytes=40 * MIB))
    inventory = str(trusted(lab, meshctl))
    ((title, text, fix),) = failed_checks(meshctl.run("doctor", inventory, "--json"))["poorer"]
    assert title == "memory"
    assert re.fullmatch(r"\d\d\.\d MiB available, budget 0 B", text), text
    assert fix == f"free memory there, or raise `memory` of poorer in {inventory}"
    error = error_of(meshctl.run("up", inventory, "--detach"))
    assert re.fullmatch(
        r"smollm2-135m needs \d+ MiB at context 512; the devices have \d\d\.\d MiB \(poor/cpu \d\d\.\d\)\n"
        r"split, each device also needs \d\d\.\d MiB or more for its buffers and margin, and layers stay whole: "
        r"they hold \d+ of 30 layers, with the output layer on the head\n"
        r"poorer/cpu: \d\d\.\d MiB of memory available, \d\d\.\d MiB needed to measure its speed\n"
        r"hint: choose a smaller quantisation of the model, or add a host to the inventory",
        error,
    ), error
    assert_nothing_left(meshctl, lab)


def test_a_host_without_forwarding_is_told_apart_from_an_unreachable_one(make_lab: MakeLab, meshctl: Meshctl) -> None:
    """Login and files work there, tunnels do not."""
    lab = make_lab(LabHost("inward", forwarding=False))
    inventory = str(trusted(lab, meshctl))
    ((title, text, fix),) = failed_checks(meshctl.run("doctor", inventory, "--json"))["inward"]
    assert title == "forwarding"
    assert text.startswith("`ssh` carries nothing to it: ")
    assert "open failed" in text
    assert fix == "allow it there: `AllowStreamLocalForwarding yes` in its sshd_config, then restart sshd"
    error = error_of(meshctl.run("up", inventory, "--detach"))
    assert error == (
        "inward: the tunnel link carries nothing: the far end closed the connection\n"
        "hint: the host's sshd must allow forwarding to sockets and ports (AllowStreamLocalForwarding and "
        "AllowTcpForwarding yes in its sshd_config)"
    )
    assert_nothing_left(meshctl, lab)


@pytest.mark.parametrize("how", [(), ("--detach",)])
def test_a_taken_gateway_port_is_told_before_anything_starts(meshctl: Meshctl, how: tuple[str, ...]) -> None:
    inventory = str(write_local(meshctl.folder / "inventory.yaml", context=512))
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        write_local(meshctl.folder / "inventory.yaml", context=512, gateway={"port": port})
        error = error_of(meshctl.run("up", inventory, *how))
    assert error == (
        f"port {port} on 127.0.0.1 is taken: the gateway cannot listen there\n"
        f"hint: choose another `gateway.port` in the inventory, or end what holds it: ss -ltnp 'sport = :{port}'"
    )
    assert_nothing_left(meshctl)


def test_two_starts_at_once_make_one_cluster(meshctl: Meshctl) -> None:
    """The second waits for the first; every later one says that it is up, and refuses to be planned otherwise."""
    inventory = str(write_local(meshctl.folder / "inventory.yaml", context=512))
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda _: meshctl.ok("up", inventory, "--detach"), range(2)))
    waited, told = sorted((outcome.stderr for outcome in outcomes), key=len, reverse=True)
    assert "test answers at http://127.0.0.1:" in waited
    state = meshctl.ok("status", "--json").json
    assert told == f"test is starting already; waiting until it answers\ntest answers at {state['gateway']}\n"
    assert error_of(meshctl.run("up", inventory, "--mode", "single")) == (
        "test is up already and keeps its plan: --mode single would not be followed\n"
        "hint: `meshctl down` first; see its plan with `meshctl status`"
    )
    later = meshctl.ok("up", inventory, "--detach").stderr
    assert later == f"test is up already at {state['gateway']}; see `meshctl status`\n"
    assert len(processes_of_supervisors(meshctl)) == 1
    meshctl.ok("down", inventory)
    assert processes_of_supervisors(meshctl) == []


def trusted(lab: Lab, meshctl: Meshctl) -> Path:
    """The lab's inventory, its hosts' keys trusted."""
    path = lab.inventory(context=512, memory="80%", gateway_port=free_port())
    meshctl.ok("trust", str(path), "--yes")
    return path


def make_key(path: Path) -> str:
    subprocess.run(("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)), check=True, timeout=30)
    return str(path)


def put_key(reach: str) -> str:
    return f"put a key there with `ssh-copy-id -p 22 {reach}`, or set `user` and `key` in the inventory"


def resolver_left_out(text: str) -> str:
    """The resolver's own words depend on whether it reached a name server."""
    return re.sub(r"(is not known) \([^)]*\)", r"\1 (...)", text)


def known_hosts(meshctl: Meshctl) -> str:
    return (meshctl.folder / "state/meshctl/known_hosts").read_text()


def processes_of_supervisors(meshctl: Meshctl) -> list[str]:
    return [line for line in processes_with(str(meshctl.folder)) if " supervise " in line]

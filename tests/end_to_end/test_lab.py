"""The lab itself: hosts that are separate, limited as asked, reached by OpenSSH's own `ssh`, and leave nothing."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab_command import main
from lab_hosts import Lab, LabError, LabHost, LabSpec, RunningHost, down, find_lab, unavailable, up
from lab_kernel import Names, leftovers, wait_until
from tests.lab_fixture import MakeLab

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[2]
MIB = 1024 * 1024
DEADLINE_S = 60


def ssh_words(lab: Lab, host: RunningHost, *words: str) -> tuple[str, ...]:
    known_hosts = lab.folder / "known_hosts"
    known_hosts.write_text(lab.known_hosts())
    options = ("BatchMode=yes", "StrictHostKeyChecking=yes", f"UserKnownHostsFile={known_hosts}", "ConnectTimeout=10")
    flags = tuple(word for option in options for word in ("-o", option))
    return ("ssh", "-F", "none", *flags, "-i", str(lab.client_key), f"{host.user}@{host.address}", *words)


def ssh(lab: Lab, host: RunningHost, *words: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ssh_words(lab, host, *words), input=data, capture_output=True, timeout=DEADLINE_S, check=False
    )


def answer(lab: Lab, host: RunningHost, *words: str) -> str:
    done = ssh(lab, host, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().strip()


def runs(pid: int) -> bool:
    """False for a process that has ended, even if nobody has asked for its status yet."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_hosts_are_reached_by_ssh_and_have_names_homes_and_processes_of_their_own(make_lab: MakeLab) -> None:
    lab = make_lab()
    one, two = lab.hosts
    assert [answer(lab, host, "hostname") for host in lab.hosts] == ["host1", "host2"]
    answer(lab, one, "echo first > ~/file; echo first > /tmp/file; mkdir -p ~/.cache/meshctl")
    assert answer(lab, one, "cat ~/file /tmp/file") == "first\nfirst"
    assert ssh(lab, two, "ls ~/file /tmp/file").returncode == 2
    assert answer(lab, two, "ls -A ~") == ".ssh"
    assert answer(lab, one, "ps -o comm= -p 1") == "sh"
    assert "Read-only" in ssh(lab, one, "touch /usr/file").stderr.decode()


def test_limits_of_processor_and_memory_hold_inside(make_lab: MakeLab) -> None:
    lab = make_lab(LabHost("host1", cpu=0.25, memory_bytes=100 * MIB))
    (host,) = lab.hosts
    spin = (
        "import time; start = time.monotonic(); used = time.process_time()\n"
        "while time.monotonic() - start < 2: pass\n"
        "print((time.process_time() - used) / (time.monotonic() - start))"
    )
    share = float(answer(lab, host, f"python3 -c '{spin}'"))
    assert 0.05 < share < 0.32
    grab = "python3 -c 'held = bytearray(300 << 20); print(len(held))'"
    assert answer(lab, host, f"{grab}; echo $?") == "137"
    assert answer(lab, host, grab.replace("300", "30")) == str(30 * MIB)
    assert 0 < host.memory_used_bytes() <= 100 * MIB


@pytest.mark.parametrize("rate", ["40mbit", None])
def test_a_link_has_its_rate_in_both_directions(make_lab: MakeLab, rate: str | None) -> None:
    """From the beginning, or since it became slow."""
    lab = make_lab(LabHost("host1", rate=rate))
    (host,) = lab.hosts
    if rate is None:
        host.slow_link("40mbit")
    data = os.urandom(4 * 1000 * 1000)
    start = time.monotonic()
    assert ssh(lab, host, "cat > /dev/null", data=data).returncode == 0
    sent_s = time.monotonic() - start
    start = time.monotonic()
    assert len(ssh(lab, host, "head -c 4000000 /dev/zero").stdout) == 4000000
    fetched_s = time.monotonic() - start
    assert min(sent_s, fetched_s) > 0.7  # 0.8 s at the rate, less what may pass at once
    assert max(sent_s, fetched_s) < 10


def test_a_delay_shows_in_the_round_trip(make_lab: MakeLab) -> None:
    lab = make_lab(LabHost("near"), LabHost("far", delay_s=0.03))
    near_s, far_s = (round_trip_s(lab, host) for host in lab.hosts)
    assert near_s + 0.055 < far_s < near_s + 0.5


def round_trip_s(lab: Lab, host: RunningHost) -> float:
    """The best of ten bytes there and back through one session."""
    with subprocess.Popen(ssh_words(lab, host, "cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as cat:
        assert cat.stdin is not None
        assert cat.stdout is not None
        times = []
        for _ in range(10):
            start = time.monotonic()
            cat.stdin.write(b"x")
            assert cat.stdout.read(1) == b"x"
            times.append(time.monotonic() - start)
        cat.stdin.close()
        assert cat.wait(DEADLINE_S) == 0
    return min(times)


def test_listening_shows_addresses_and_programs(make_lab: MakeLab) -> None:
    lab = make_lab(LabHost("near"), LabHost("far", delay_s=0.001))
    near, far = lab.hosts
    assert near.listening() == ((near.address, 22, "sshd"),)
    assert far.listening() == ((far.address, 22, "lab_relay"), ("127.0.0.1", 2222, "sshd"))


def test_processes_are_the_sessions_and_what_they_started(make_lab: MakeLab) -> None:
    lab = make_lab(LabHost("host1"))
    (host,) = lab.hosts
    assert [process.command.split()[:2] for process in host.processes()] == [["sshd:", "/usr/sbin/sshd"]]
    answer(lab, host, "nohup setsid sleep 1000 > /dev/null 2>&1 < /dev/null &")
    assert wait_until(lambda: [one.command for one in host.processes()][1:] == ["sleep 1000"], DEADLINE_S)


@pytest.mark.parametrize("how", [RunningHost.cut_link, RunningHost.black_hole_link])
def test_a_cut_link_loses_everything_until_it_is_restored(
    make_lab: MakeLab, how: Callable[[RunningHost], None]
) -> None:
    lab = make_lab(LabHost("host1"))
    (host,) = lab.hosts
    with subprocess.Popen(ssh_words(lab, host, "cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as cat:
        assert cat.stdin is not None
        assert cat.stdout is not None
        cat.stdin.write(b"1")
        assert cat.stdout.read(1) == b"1"
        how(host)
        cat.stdin.write(b"2")
        with pytest.raises(subprocess.TimeoutExpired):
            cat.wait(1)
        host.restore_link()
        assert cat.stdout.read(1) == b"2"
        cat.stdin.close()
        assert cat.wait(DEADLINE_S) == 0


def test_a_restarted_sshd_ends_every_session_and_lets_in_whoever_comes_next(make_lab: MakeLab) -> None:
    lab = make_lab(LabHost("host1"))
    (host,) = lab.hosts
    with subprocess.Popen(ssh_words(lab, host, "cat"), stdin=subprocess.PIPE) as cat:
        assert wait_until(lambda: "cat" in [one.command for one in host.processes()], DEADLINE_S)
        host.restart_sshd()
        assert cat.wait(DEADLINE_S) == 255
    assert answer(lab, host, "echo in") == "in"
    assert wait_until(lambda: len(host.processes()) == 1, DEADLINE_S)


def test_a_new_host_key_is_shown_to_the_next_who_comes(make_lab: MakeLab) -> None:
    lab = make_lab(LabHost("host1", delay_s=0.0005))
    (host,) = lab.hosts
    old, old_print = lab.known_hosts(), host.fingerprint()
    host.new_host_key()
    assert host.fingerprint() != old_print
    assert answer(lab, host, "echo in") == "in"
    words = ssh_words(lab, host, "true")
    (lab.folder / "known_hosts").write_text(old)
    refused = subprocess.run(words, capture_output=True, timeout=DEADLINE_S, check=False)
    assert refused.returncode == 255
    assert b"REMOTE HOST IDENTIFICATION HAS CHANGED" in refused.stderr


def test_a_host_without_python_has_none_anywhere_and_works_otherwise(make_lab: MakeLab) -> None:
    lab = make_lab(LabHost("host1", python=False))
    (host,) = lab.hosts
    assert ssh(lab, host, "python3 -V").returncode == 127
    assert ssh(lab, host, "/usr/bin/python3 -V").returncode == 127
    assert answer(lab, host, "echo a b | awk '{print $2}'") == "b"


def test_a_full_disk_is_really_full(make_lab: MakeLab) -> None:
    lab = make_lab(LabHost("host1", disk_bytes=5 * MIB))
    (host,) = lab.hosts
    done = ssh(lab, host, "head -c 6000000 /dev/zero > ~/file")
    assert b"No space left on device" in done.stderr


def test_a_host_without_forwarding_refuses_tunnels(make_lab: MakeLab) -> None:
    lab = make_lab(LabHost("yes"), LabHost("no", forwarding=False))
    results = [
        subprocess.run(
            ("ssh", "-W", f"{host.address}:22", *ssh_words(lab, host)[1:]),
            input=b"SSH-2.0-test\r\n",
            capture_output=True,
            timeout=DEADLINE_S,
            check=False,
        )
        for host in lab.hosts
    ]
    assert results[0].stdout.startswith(b"SSH-2.0-OpenSSH")
    assert b"administratively prohibited" in results[1].stderr


def test_the_inventory_of_a_lab_is_one_that_meshctl_reads(make_lab: MakeLab) -> None:
    from orchestrator.inventory import GatewaySettings, Host, Inventory
    from orchestrator.inventory_file import load_inventory
    from workers.budget import MemoryCap

    lab = make_lab(LabHost("host1"))
    path = lab.inventory(model="smollm2-135m", context=2048, memory="100MiB", gateway_port=20080)
    host = lab.hosts[0]
    assert load_inventory(path) == Inventory(
        path=path,
        cluster=lab.name,
        model="smollm2-135m",
        hosts=(
            Host(
                name="host1",
                connection="ssh",
                address=host.address,
                user=host.user,
                key=str(lab.client_key),
                memory=MemoryCap(limit_bytes=100 * MIB),
            ),
        ),
        context=2048,
        gateway=GatewaySettings(port=20080),
    )


def test_two_labs_at_once_do_not_meet(make_lab: MakeLab) -> None:
    one, two = make_lab(LabHost("host1")), make_lab(LabHost("host1"))
    assert one.hosts[0].address != two.hosts[0].address
    assert one.hosts[0].public_key() != two.hosts[0].public_key()
    one.down()
    assert answer(two, two.hosts[0], "hostname") == "host1"


def test_a_subnet_in_use_is_refused_and_leaves_nothing(make_lab: MakeLab, tmp_path: Path) -> None:
    subnet = ".".join(make_lab(LabHost("host1")).hosts[0].address.split(".")[:3]) + ".0/24"
    name = f"second-{os.getpid()}"
    with pytest.raises(LabError) as caught:
        up(LabSpec(tmp_path / "second", (LabHost("host1"),), name, subnet))
    assert str(caught.value) == f"{subnet} is in use here; choose another --subnet"
    assert (leftovers(Names(name)), (tmp_path / "second").exists()) == ((), False)


def test_nothing_is_left_after_down(make_lab: MakeLab) -> None:
    lab = make_lab(LabHost("host1", delay_s=0.001, disk_bytes=5 * MIB))
    answer(lab, lab.hosts[0], "nohup setsid sleep 1000 > /dev/null 2>&1 < /dev/null &")
    pids = [process.pid for process in lab.hosts[0].processes()]
    lab.down()
    assert leftovers(Names(lab.name)) == ()
    assert [pid for pid in pids if runs(pid)] == []
    assert (lab.folder.exists(), find_lab(lab.name), down(lab.name)) == (False, None, False)


def test_a_lab_whose_maker_was_killed_is_swept_by_the_next_up(tmp_path: Path) -> None:
    reason = unavailable()
    if reason:
        pytest.skip(reason)
    name, folder = f"crash-{os.getpid()}", tmp_path / "lab"
    maker = (
        "import sys, time; from pathlib import Path; from lab_hosts import *\n"
        "spec = LabSpec(Path(sys.argv[1]), (LabHost('host1', delay_s=0.001), LabHost('host2')), sys.argv[2])\n"
        "print('up' if up(spec) else '', flush=True); time.sleep(1000)"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'scripts'}:{ROOT}"}
    words = (sys.executable, "-c", maker, str(folder), name)
    try:
        with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            process.send_signal(signal.SIGKILL)
        left = find_lab(name)
        assert left is not None
        old = [one.pid for host in left.hosts for one in host.processes()]
        assert old
        with up(LabSpec(folder, (LabHost("host1"),), name)) as lab:
            assert [pid for pid in old if runs(pid)] == []
            assert answer(lab, lab.hosts[0], "hostname") == "host1"
    finally:
        down(name)
    assert (leftovers(Names(name)), folder.exists()) == ((), False)


def test_the_command_leaves_a_lab_that_is_up_alone(
    make_lab: MakeLab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = make_lab(LabHost("host1"))
    words = ("up", "--hosts", "1", "--name", lab.name, "--folder", str(tmp_path / "other"))
    assert main(words, {}) == 1
    assert capsys.readouterr().err == (
        f'error: lab "{lab.name}" is up (hosts: 1, in {lab.folder}); choose another --name, end it with'
        " scripts/lab down, or make this one in its place with --replace\n"
    )
    assert main((*words, "--replace"), {}) == 0
    assert not lab.folder.exists()
    assert main(("status", "--name", lab.name), {}) == 0
    assert main(("down", "--name", lab.name), {}) == 0
    assert capsys.readouterr().out.endswith(f'lab "{lab.name}" is gone\n')
    assert main(("status", "--name", lab.name), {}) == 1

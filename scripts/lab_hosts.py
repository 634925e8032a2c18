"""Real hosts on one Linux machine, to try and to test meshctl in: own address, own sshd, own home, own limits.

Each host is a network namespace behind a link that can be slow, late or cut, a set of mount, pid, host name and IPC
namespaces in which the login user's home, /tmp and /run are its own, and a cgroup that limits processor and memory
(the kernel counts the pages of files that were read, too). What is shared with the real machine is its system: the
programs in /usr, read-only. Standard library only; needs root.

`up` and `down` first take away whatever an earlier lab of that name left, also after a crash.
"""

import fcntl
import ipaddress
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType

import lab_kernel as kernel
from lab_folder import LOGIN, SSHD_PORT_BEHIND_RELAY, LabHost, fill_folder, make_key
from lab_kernel import LabError, Names
from lab_running import LabProcess, Listener, RunningHost

__all__ = [
    "Lab",
    "LabError",
    "LabHost",
    "LabProcess",
    "LabSpec",
    "Listener",
    "RunningHost",
    "down",
    "find_lab",
    "unavailable",
    "up",
]

RECORDS = Path("/run/meshctl-lab")
MARK = ".meshctl-lab"
SCRIPTS = Path(__file__).resolve().parent
LOCK_DEADLINE_S = 120.0
PACKAGES = {
    "sshd": "openssh-server",
    "ssh-keygen": "openssh-client",
    "ssh-keyscan": "openssh-client",
    "ip": "iproute2",
    "tc": "iproute2",
    "ss": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "setsid": "util-linux",
    "mount": "mount",
}


@dataclass(frozen=True)
class LabSpec:
    """A lab to make. `folder` is made, and removed with all it holds at `down`; `subnet` None: the first free /24."""

    folder: Path
    hosts: tuple[LabHost, ...]
    name: str = "lab"
    subnet: str | None = None


@dataclass(frozen=True)
class Lab:
    """A lab that is up; leaving it as a context manager takes it down."""

    name: str
    folder: Path
    hosts: tuple[RunningHost, ...]

    def __enter__(self) -> "Lab":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    @property
    def client_key(self) -> Path:
        """The private key that every host lets in."""
        return self.folder / "client_key"

    def down(self) -> None:
        down(self.name)

    def reboot(self, host: RunningHost) -> None:
        """Every process there ends at once, as when the power fails; then it starts again, with its disk as it was."""
        kernel.end_host(host.namespace)
        _start(host)
        host.wait_until_ready()

    def known_hosts(self) -> str:
        """The hosts' keys as lines of a known-hosts file."""
        return "".join(f"{host.address} {host.public_key()}\n" for host in self.hosts)

    def inventory(
        self,
        path: Path | None = None,
        *,
        model: str = "smollm2-135m",
        context: int = 4096,
        parallel: int = 1,
        memory: str = "80%",
        gateway_port: int = 11435,
    ) -> Path:
        """Write an inventory of the lab's hosts, by default into the lab's folder; gives its path."""
        path = path or self.folder / "inventory.yaml"
        top: Mapping[str, object] = {
            "cluster": self.name,
            "model": model,
            "context": context,
            "parallel": parallel,
            "gateway": {"port": gateway_port},
        }
        lines = [f"{key}: {json.dumps(value)}" for key, value in top.items()] + ["hosts:"]
        for host in self.hosts:
            keys = {"name": host.name, "connection": "ssh", "address": host.address, "user": host.user}
            keys |= {"key": str(self.client_key), "memory": memory}
            lines += [f"{'  - ' if key == 'name' else '    '}{key}: {json.dumps(keys[key])}" for key in keys]
        path.write_text("\n".join(lines) + "\n")
        return path


def up(spec: LabSpec) -> Lab:
    """Make the lab; an earlier one of its name is taken away first. LabError (nothing is left) if it cannot be made."""
    _check(spec)
    with _lock():
        _take_away(spec.name)
        try:
            return _made(spec)
        except BaseException:
            _take_away(spec.name)
            raise


def down(name: str = "lab") -> bool:
    """Take away everything of the lab of that name; False when there was nothing."""
    _check_machine()
    with _lock():
        return _take_away(name)


def find_lab(name: str = "lab") -> Lab | None:
    """The lab of that name as it was made, or None."""
    record = RECORDS / f"{name}.json"
    if not record.is_file() or not kernel.leftovers(Names(name)):
        return None
    data = json.loads(record.read_text())
    spec = LabSpec(Path(data["folder"]), tuple(LabHost(**host) for host in data["hosts"]), name, data["subnet"])
    return Lab(name, spec.folder, _planned(spec)) if spec.subnet else None


def unavailable() -> str | None:
    """Why no lab can be made on this machine, with the fix; None when it can."""
    if not sys.platform.startswith("linux"):
        return "the lab needs Linux: it is made of network namespaces and cgroups"
    if os.geteuid() != 0:
        return "the lab needs root, for network namespaces, mounts and cgroups; run it with sudo"
    missing = [program for program in PACKAGES if _program(program) is None]
    if missing:
        packages = " ".join(sorted({PACKAGES[program] for program in missing}))
        return f"{', '.join(missing)} missing; install them: apt-get install {packages}"
    return None


def _check(spec: LabSpec) -> None:
    _check_machine()
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", spec.name):
        raise LabError(f'"{spec.name}" is no name for a lab; use letters, digits, "-" and "_"')
    names = [host.name for host in spec.hosts]
    if not 1 <= len(names) <= 200 or len(set(names)) < len(names):
        raise LabError("a lab has 1 to 200 hosts, each with a name of its own")
    for host in spec.hosts:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", host.name):
            raise LabError(f'"{host.name}" is no host name; use letters, digits, "-" and "_"')
        if host.rate:
            kernel.burst_bytes(host.rate)
        if host.cpu is not None and not 0.01 <= host.cpu <= 1024:
            raise LabError(f"{host.name}: {host.cpu:g} cores are not possible; give at least 1%")
    if spec.folder.exists() and not (spec.folder / MARK).exists() and any(spec.folder.iterdir()):
        raise LabError(f"{spec.folder} holds other things; name a folder that does not exist")


def _check_machine() -> None:
    reason = unavailable()
    if reason:
        raise LabError(reason)


@contextmanager
def _lock() -> Iterator[None]:
    """One lab is made or taken away at a time, so that two do not choose the same subnet."""
    RECORDS.mkdir(mode=0o755, exist_ok=True)
    with (RECORDS / "lock").open("w") as file:
        if not kernel.wait_until(lambda: _locked(file.fileno()), LOCK_DEADLINE_S):
            raise LabError(f"another lab has been in the making for {LOCK_DEADLINE_S:g} s; see who holds {file.name}")
        yield


def _take_away(name: str) -> bool:
    names = Names(name)
    record = RECORDS / f"{name}.json"
    existed = record.exists() or bool(kernel.leftovers(names))
    kernel.sweep(names)
    if record.exists():
        folder = Path(json.loads(record.read_text())["folder"])
        if (folder / MARK).is_file():
            shutil.rmtree(folder)
        record.unlink()
    return existed


def _made(spec: LabSpec) -> Lab:
    names = Names(spec.name)
    subnet = kernel.free_subnet(spec.subnet)
    spec = replace(spec, folder=spec.folder.absolute(), subnet=str(subnet))
    _make_folder(spec)
    lab = Lab(spec.name, spec.folder, _planned(spec))
    make_key(lab.client_key, f"meshctl lab {spec.name}")
    kernel.add_bridge(names, subnet)
    for host in lab.hosts:
        fill_folder(host.folder, host.spec, host.address, lab.client_key.with_suffix(".pub").read_text())
        kernel.add_link(names, host.name, host.number, f"{host.address}/{subnet.prefixlen}", host.spec.rate)
        _start(host)
    for host in lab.hosts:
        host.wait_until_ready()
    lab.inventory()
    return lab


def _planned(spec: LabSpec) -> tuple[RunningHost, ...]:
    subnet = ipaddress.IPv4Network(str(spec.subnet))
    names = Names(spec.name)
    return tuple(
        RunningHost(host, number, str(subnet[10 + number]), LOGIN.pw_name, spec.folder / "hosts" / host.name, names)
        for number, host in enumerate(spec.hosts, start=1)
    )


def _make_folder(spec: LabSpec) -> None:
    spec.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    (spec.folder / MARK).touch()
    record = {"folder": str(spec.folder), "subnet": spec.subnet, "hosts": [asdict(host) for host in spec.hosts]}
    fresh = RECORDS / f"{spec.name}.json.new"
    fresh.write_text(json.dumps(record))
    fresh.replace(RECORDS / f"{spec.name}.json")


def _start(host: RunningHost) -> None:
    spec, log = host.spec, host.folder / "log"
    cgroup = kernel.add_cgroup(host.namespace, spec.cpu, spec.memory_bytes)
    unshare = ("unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc")
    enter = ("sh", str(SCRIPTS / "lab_enter.sh"), str(host.folder), LOGIN.pw_dir, host.name, str(spec.disk_bytes or 0))
    inside = kernel.joined(cgroup, (*enter, str(_program("sshd"))))
    kernel.start(kernel.within(host.namespace, *unshare, *inside), log)
    if spec.delay_s > 0:
        target = ("127.0.0.1", str(SSHD_PORT_BEHIND_RELAY), str(spec.delay_s))
        relay = (sys.executable, "-I", str(SCRIPTS / "lab_relay.py"), host.address, "22", *target)
        kernel.start(kernel.within(host.namespace, *relay), log)


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin")


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

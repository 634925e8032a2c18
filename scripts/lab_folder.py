"""What a lab host is, and the folder that becomes its own part of the file system: home, /tmp, /run, sshd's files."""

import pwd
from dataclasses import dataclass
from pathlib import Path

from lab_kernel import run as run_command

SSHD_PORT_BEHIND_RELAY = 2222
LOGIN = pwd.getpwuid(0)
"""Who logs in on a lab host: root, under whatever name."""


@dataclass(frozen=True)
class LabHost:
    """What one host shall be. None: no limit. `delay_s` is one way, so a round trip takes twice as much longer.

    `cpu` is in cores (0.25: a quarter of one). `rate` is in tc's words, such as `1gbit`. `disk_bytes` makes the home a
    file system of that size in memory, which counts against `memory_bytes` as far as it is filled. Without `python`
    no path leads to a Python; without `forwarding` sshd refuses `ssh -L`.
    """

    name: str
    cpu: float | None = None
    memory_bytes: int | None = None
    rate: str | None = None
    delay_s: float = 0.0
    disk_bytes: int | None = None
    python: bool = True
    forwarding: bool = True


def fill_folder(folder: Path, host: LabHost, address: str, authorized_keys: str) -> None:
    """What the host will see: `home`, `tmp`, and `run` with what its sshd needs."""
    run = folder / "run"
    for name, mode in (("home", 0o700), ("tmp", 0o1777), ("run", 0o755), ("run/sshd", 0o755)):
        (folder / name).mkdir(parents=True)
        (folder / name).chmod(mode)
    make_key(run / "host_key", host.name)
    (run / "authorized_keys").write_text(authorized_keys)
    (run / "authorized_keys").chmod(0o600)
    (run / "shadow").write_text(f"{LOGIN.pw_name}:*:19000:0:99999:7:::\n")
    (run / "shadow").chmod(0o600)
    (run / "sshd_config").write_text(_sshd_config(host, address))
    if not host.python:
        _hide_python(run / "without_python")


def _sshd_config(host: LabHost, address: str) -> str:
    delayed = host.delay_s > 0
    lines = (
        f"ListenAddress {'127.0.0.1' if delayed else address}",
        f"Port {SSHD_PORT_BEHIND_RELAY if delayed else 22}",
        "HostKey /run/host_key",
        "PidFile none",
        "UsePAM no",  # a session module could move sessions out of the host's cgroup
        "PermitRootLogin prohibit-password",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "AuthorizedKeysFile .ssh/authorized_keys",
        *(f"Allow{kind}Forwarding {'yes' if host.forwarding else 'no'}" for kind in ("Tcp", "StreamLocal")),
        "Subsystem sftp internal-sftp",
        "PrintMotd no",
        "PrintLastLog no",
        "UseDNS no",
    )
    return "\n".join(lines) + "\n"


def _hide_python(target: Path) -> None:
    """Folders of links to everything in the system's program folders but Python; `lab_enter.sh` mounts them there."""
    reals = {Path(folder).resolve() for folder in ("/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/sbin")}
    for number, real in enumerate(sorted(real for real in reals if any(real.glob("python*")))):
        links = target / str(number)
        links.mkdir(parents=True)
        links.with_suffix(".path").write_text(f"{real}\n")
        for program in real.iterdir():
            if not program.name.startswith(("python", "pypy")):
                (links / program.name).symlink_to(f"/run/without_python/{number}.real/{program.name}")


def make_key(path: Path, comment: str) -> None:
    """A new key pair in place of any other, never half there."""
    fresh = path.with_name(path.name + ".new")
    run_command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(fresh))
    fresh.with_name(fresh.name + ".pub").replace(path.with_name(path.name + ".pub"))
    fresh.replace(path)

"""How `ssh` would reach a host: our strict configuration file, and what OpenSSH makes of it and the user's own.

OpenSSH itself resolves users, ports, keys and jumps (`ssh -G`), so that everything in ~/.ssh/config works as usual.
Our file comes first and the first value wins in ssh, so nothing in the user's configuration can weaken the checking
of host keys. This module opens no connection. Needs OpenSSH 8.7 or later on the controller.
"""

import os
import pwd
import re
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.errors import ConnectError
from orchestrator.inventory import Host
from orchestrator.shell.host_keys import pinned_name
from orchestrator.shell.local import LocalShell
from orchestrator.shell.protocol import Words
from orchestrator.shell.turns import Turns

_QUESTION_S = 20.0
_MOST_HOPS = 8
_SYSTEM_CONFIG = Path("/etc/ssh/ssh_config")

_STRICT = (
    "GlobalKnownHostsFile none",
    "StrictHostKeyChecking yes",
    "NoHostAuthenticationForLocalhost no",
    "CheckHostIP no",
    "HashKnownHosts no",
    "UpdateHostKeys no",
    "VerifyHostKeyDNS no",
    "KnownHostsCommand none",
    "BatchMode yes",
    "AddKeysToAgent no",
    "ControlMaster no",
    "ControlPath none",
    "ControlPersist no",
    "ForwardAgent no",
    "ForwardX11 no",
    "ForkAfterAuthentication no",
    "PermitLocalCommand no",
    "RemoteCommand none",
    "RequestTTY no",
    "Tunnel no",
    "LogLevel INFO",
)


@dataclass(frozen=True)
class SshFiles:
    """Our own files for ssh: the only known hosts that count, and the configuration that says so. Absolute paths.

    `inventory` is the file whose hosts are reached with them; hints name it. `turns`: who logs in takes one.
    """

    known_hosts: Path
    config: Path
    inventory: Path = Path("inventory.yaml")
    turns: Turns = field(default_factory=Turns, compare=False, repr=False)


@dataclass(frozen=True)
class SshTarget:
    """One hop as OpenSSH resolved it. Paths are absolute; "" and () mean not set."""

    hostname: str
    port: int
    user: str
    identity_files: tuple[str, ...] = ()
    certificate_files: tuple[str, ...] = ()
    identity_agent: str = ""  # a socket, "none", or "" for the agent of the environment
    identities_only: bool = False
    host_key_alias: str = ""
    proxy_command: str = ""  # for the user's shell, tokens filled in
    proxy_jump: str = ""
    address_family: str = "any"  # "any", "inet" or "inet6"
    forwards: tuple[str, ...] = ()

    @property
    def known_as(self) -> str:
        """The name under which this host's keys stand in a known-hosts file."""
        if self.host_key_alias:
            return self.host_key_alias
        return self.plain_name

    @property
    def plain_name(self) -> str:
        """The same without regard to any HostKeyAlias."""
        name = self.hostname.lower()
        return name if self.port == 22 else f"[{name}]:{self.port}"

    def __str__(self) -> str:
        return f"{self.user}@{self.hostname} port {self.port}"


def write_ssh_files(
    folder: Path, inventory: Path, *, user_config: Path | None = None, system_config: Path = _SYSTEM_CONFIG
) -> SshFiles:
    """Write our configuration into `folder` (made if missing, 0700) and return it; known hosts are kept.

    `user_config` is ~/.ssh/config of the account, unless another is given.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = SshFiles(folder / "known_hosts", folder / "ssh_config", inventory)
    text = config_text(files.known_hosts, (user_config or account_home() / ".ssh" / "config", system_config))
    partial = folder / f".ssh_config.{os.getpid()}.part"
    partial.touch(mode=0o600)
    partial.write_text(text)
    partial.replace(files.config)
    files.known_hosts.touch(mode=0o600, exist_ok=True)
    return files


def config_text(known_hosts: Path, included: tuple[Path, ...]) -> str:
    """The configuration: our strict options for every host, then the files whose other options still count."""
    lines = [
        "# Written by meshctl; changes are lost. The first value of an option wins, so these cannot be overridden.",
        f"UserKnownHostsFile {_quoted(str(known_hosts).replace('%', '%%'))}",
        *_STRICT,
        *(f"Include {_quoted(_literal_glob(str(path)))}" for path in included),
    ]
    return "\n".join(lines) + "\n"


def account_home() -> Path:
    """The home folder that ssh uses: the account's, whatever the environment says."""
    return Path(pwd.getpwuid(os.getuid()).pw_dir)


def destination_words(host: Host) -> Words:
    """What `ssh` needs after its other options to reach the host; a pinned key stands under a name of its own."""
    pinned = ("-o", f"HostKeyAlias={pinned_name(host.host_key)}") if host.host_key else ()
    return (*pinned, *_options(host.user, host.port, host.key, host.jump), "--", host.address)


def question(ssh: SshFiles, destination: Words) -> Words:
    """The command that prints how ssh would reach a destination; it connects to nothing."""
    return ("ssh", "-G", "-F", str(ssh.config), *destination)


def read_target(answer: str, home: Path) -> SshTarget:
    """Read what `ssh -G` printed; ValueError when it is not such an answer."""
    options = _read_options(answer)
    if not {"hostname", "port", "user"} <= options.keys():
        raise ValueError("no hostname, port and user in the answer of `ssh -G`")
    first = {name: values[0] for name, values in options.items()}
    fill = _Tokens(first, home)
    return SshTarget(
        hostname=first["hostname"],
        port=int(first["port"]),
        user=first["user"],
        identity_files=tuple(fill.path(file) for file in options.get("identityfile", ()) if file != "none"),
        certificate_files=tuple(fill.path(file) for file in options.get("certificatefile", ()) if file != "none"),
        identity_agent=_agent(first.get("identityagent", ""), fill),
        identities_only=first.get("identitiesonly") == "yes",
        host_key_alias=first.get("hostkeyalias", ""),
        proxy_command="" if first.get("proxycommand", "none") == "none" else fill.tokens(first["proxycommand"]),
        proxy_jump="" if first.get("proxyjump", "none") == "none" else first["proxyjump"],
        address_family=first.get("addressfamily", "any"),
        forwards=tuple(
            f"{name} {value}"
            for name in ("localforward", "remoteforward", "dynamicforward")
            for value in options.get(name, ())
        ),
    )


async def resolve_route(host: Host, ssh: SshFiles) -> tuple[SshTarget, ...]:
    """Every hop on the way to the host, itself last, each resolved by OpenSSH. ConnectError when ssh cannot say."""
    home = account_home()
    shell = LocalShell(host.name, home, home)
    route: list[SshTarget] = []
    destination: Words | None = destination_words(host)
    while destination is not None:
        if len(route) == _MOST_HOPS:
            raise ConnectError(host.name, f"more than {_MOST_HOPS} jumps: ProxyJump in ssh's configuration is a circle")
        target = await _ask(shell, question(ssh, destination), home)
        route.insert(0, target)
        destination = _jump_words(target.proxy_jump) if target.proxy_jump else None
    return tuple(route)


async def _ask(shell: LocalShell, words: Words, home: Path) -> SshTarget:
    finished = await shell.run(words, deadline_s=_QUESTION_S, check=False)
    said = finished.stderr.decode(errors="replace").strip()
    if finished.status == 127:
        raise ConnectError(shell.host, "there is no `ssh` on this machine", hint="install OpenSSH's client")
    if finished.status != 0:
        hint = "the lines below name the file and option to correct"
        raise ConnectError(shell.host, "ssh does not accept its configuration", hint=hint, details=said)
    try:
        return read_target(finished.stdout.decode(errors="replace"), home)
    except ValueError as error:
        raise ConnectError(shell.host, f"the answer of `ssh -G` cannot be read: {error}", details=said) from error


def _jump_words(jump: str) -> Words:
    """The destination of the last hop of `a,b,c`, itself reached through the hops before it, as ssh does it."""
    before, _, last = jump.rpartition(",")
    user, _, place = last.removeprefix("ssh://").rpartition("@")
    match = re.fullmatch(r"\[(?P<six>[^]]+)\](?::(?P<six_port>\d+))?|(?P<name>[^:]+)(?::(?P<port>\d+))?", place)
    address = (match["six"] or match["name"]) if match else place
    port = (match["six_port"] or match["port"]) if match else None
    return (*_options(user or None, int(port) if port else None, None, before or None), "--", address)


def _options(user: str | None, port: int | None, key: str | None, jump: str | None) -> Words:
    given = (("-l", user), ("-p", port), ("-i", key), ("-J", jump))
    return tuple(word for flag, value in given if value is not None for word in (flag, str(value)))


def _read_options(answer: str) -> dict[str, list[str]]:
    options: dict[str, list[str]] = {}
    for line in answer.splitlines():
        name, _, value = line.partition(" ")
        options.setdefault(name, []).append(value)
    return options


def _agent(value: str, fill: "_Tokens") -> str:
    if value == "SSH_AUTH_SOCK":
        return ""
    return value if value in ("", "none") or value.startswith("$") else fill.path(value)


class _Tokens:
    """Fills in what `ssh -G` leaves as written: a leading ~ and the %-tokens of ssh_config(5)."""

    def __init__(self, options: dict[str, str], home: Path) -> None:
        host, port, user = options["hostname"], options["port"], options["user"]
        account = pwd.getpwuid(os.getuid()).pw_name
        node = os.uname().nodename
        self._home = home
        self._values = {
            "%": "%",
            "d": str(home),
            "h": host,
            "i": str(os.getuid()),
            "k": options.get("hostkeyalias", host),
            "L": node.partition(".")[0],
            "l": node,
            "n": options.get("host", host),
            "p": port,
            "r": user,
            "u": account,
        }

    def tokens(self, text: str) -> str:
        return re.sub("%(.)", lambda match: self._values.get(match[1], match[0]), text)

    def path(self, text: str) -> str:
        if text == "~" or text.startswith("~/"):
            text = str(self._home) + text[1:]
        return self.tokens(text)


def _quoted(path: str) -> str:
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _literal_glob(path: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", path)

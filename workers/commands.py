"""The words that start the agent's verbs on a host. Pure: nothing here runs anything or knows what is answered."""

from collections.abc import Iterable, Mapping, Sequence

from workers.door import COMPILED

Words = tuple[str, ...]

PYTHON: Words = ("python3", "-I", "-S")
"""Isolated and without site packages: the agent needs neither, and a host's own settings shall not change it."""

PYTHON_VERSION: Words = (*PYTHON, "-c", "import sys; print('%d.%d.%d' % sys.version_info[:3])")
"""Asks which Python a host has; any Python 3 understands it."""


READ_AND_RUN = (
    "import os,sys;r=lambda n:n and(lambda b:b and b+r(n-len(b)))(os.read(0,n))or bytes();exec(r(int(sys.argv.pop(1))))"
)
"""Runs a program of so many bytes that comes first through stdin, and leaves what follows it there. Without quotes and
line breaks, which login shells read differently."""


def door_words(program_bytes: int, root: str, agent: str, become: Words = ()) -> Words:
    """Runs the program of this size that comes through stdin (`workers/door.py`): nothing that lies on the host.

    `become`: the digest of the agent that goes on in its place, and the verb that it runs.
    """
    return (*PYTHON, "-c", READ_AND_RUN, str(program_bytes), root, agent, *become)


RUN_COMPILED = (
    "import sys,os,marshal;from hashlib import sha256 as h;from io import FileIO as f;c=sys.argv[2]+sys.argv[1];"
    "del sys.argv[:2];__file__=sys.argv[0];s=f(__file__).readall();k=os.path.isfile(c)and f(c).readall()or bytes();"
    "exec(marshal.loads(k[32:])if k[:32]==h(sys.version.encode()+h(s).hexdigest().encode()+k[32:]).digest()else s)"
)
"""Runs the agent as `python3 agent.py` would, by what this very Python made of these very bytes where that lies beside
it (`compiled` in `workers/door.py`): to compile it takes a tenth of a second. Without quotes and line breaks, too."""


def agent_words(agent: str, verb: str, *options: str) -> Words:
    """`agent` is the agent's absolute path on the host."""
    return (*PYTHON, "-c", RUN_COMPILED, COMPILED, agent, verb, *options)


ATTEND: Words = ("attend",)
"""The verb that waits for questions, which are verbs of the agent."""


def facts_and_attend(root: str) -> Words:
    """The same, once it has answered `facts`: without a fork, so that the memory that is free is found in full."""
    return (*ATTEND, "--facts", root)


def facts_words(agent: str, root: str) -> Words:
    return agent_words(agent, "facts", "--root", root)


def leash_words(
    agent: str,
    words: Words,
    *,
    name: str,
    log: str,
    log_bytes: int,
    heartbeat_s: float,
    environment: Mapping[str, str],
    uses: Sequence[str] = (),
    temporary: Sequence[str] = (),
    capture: bool = False,
    tell: bool = False,
    network: Words = (),
) -> Words:
    """Run `words` under the leash; `log` is a path on the host, `heartbeat_s` how long silence is borne.

    `uses` are cached items that must be whole and are in use meanwhile, `temporary` files are removed at the end;
    `capture`: what the program writes to stdout comes with its end instead of standing in the log; `tell`: lines of the
    log come as they are written, too. `network`: options made by the functions below.
    """
    given = (("--env", [f"{key}={value}" for key, value in environment.items()]), ("--uses", uses))
    options = [
        word for flag, values in (*given, ("--temporary", temporary)) for value in values for word in (flag, value)
    ]
    wishes = (*(("--capture",) if capture else ()), *(("--tell",) if tell else ()))
    limits = ("--log-bytes", str(log_bytes), "--heartbeat-s", f"{heartbeat_s:g}", *wishes)
    return agent_words(agent, "leash", "--name", name, "--log", log, *limits, *network, *options, "--", *words)


PRIVATE: Words = ("--private",)
"""The program gets a network of its own: a loopback that nobody else on the host can reach."""


def in_network(pid: int) -> Words:
    """The program runs in the network of that process."""
    return ("--network", str(pid))


def bridged(near: str, far: str, network: int = 0) -> Words:
    """What comes in at `near` in the network of the process `network` (0: the program's) is carried to `far`.

    Each is such as `tcp:127.0.0.1:20000`, or `unix:/path`, which leads from one network to another.
    """
    return ("--bridge", f"{near}={far}", *(("--bridge-network", str(network)) if network else ()))


def network_words(agent: str) -> Words:
    """Hold a network for programs of ours as long as stdin brings something now and then."""
    return agent_words(agent, "network")


def enter_words(agent: str, network: Words, words: Words) -> Words:
    """Run a program in a network, by `PRIVATE` or `in_network`, without a leash."""
    return agent_words(agent, "enter", *network, "--", *words)


def link_words(agent: str, address: str, socket: str = "") -> Words:
    """At a port of the address that the host chooses, or at a socket in the file system."""
    return agent_words(agent, "link", *(("--socket", socket) if socket else ("--address", address)))


def ports_words(agent: str, count: int, address: str) -> Words:
    return agent_words(agent, "ports", "--count", str(count), "--address", address)


def unpack_words(agent: str, archive: str, folder: str, sha256: str) -> Words:
    return agent_words(agent, "unpack", archive, folder, sha256)


def check_words(agent: str, folder: str) -> Words:
    return agent_words(agent, "check", folder)


def digest_words(agent: str, file: str) -> Words:
    return agent_words(agent, "digest", file)


def hold_words(agent: str, file: str) -> Words:
    """Hold the lock `file` as long as stdin brings something now and then."""
    return agent_words(agent, "hold", file)


def tools_words(agent: str) -> Words:
    return agent_words(agent, "tools")


def collect_words(agent: str, binaries: str, folder: str, manifest: str, programs: Sequence[str]) -> Words:
    """`manifest`: JSON with what is known of it."""
    return agent_words(agent, "collect", binaries, folder, manifest, *programs)


def orphans_words(agent: str, root: str, keep: Iterable[str]) -> Words:
    """`keep`: the names of the engines whose programs are let be."""
    return agent_words(agent, "orphans", "--root", root, "--keep", *dict.fromkeys(keep))


def tail_words(agent: str, log: str, lines: int, since_s: float | None = None) -> Words:
    """`since_s`: only what was written within so many seconds, by the host's own clock."""
    return agent_words(agent, "tail", log, "--lines", str(lines), *_since(since_s))


def follow_words(
    agent: str,
    folder: str,
    *,
    lines: int,
    since_s: float | None = None,
    from_clock_s: float | None = None,
    heartbeat_s: float,
) -> Words:
    """Follow every log of `folder` from its last `lines` on; `heartbeat_s`: how long silence is borne.

    Only of what was written in the last `since_s` seconds, or since the host's clock said `from_clock_s`.
    """
    clock = () if from_clock_s is None else ("--from-clock-s", f"{from_clock_s:.3f}")
    start = ("--lines", str(lines), *_since(since_s), *clock)
    return agent_words(agent, "follow", folder, *start, "--heartbeat-s", f"{heartbeat_s:g}")


def tidy_words(agent: str, root: str) -> Words:
    return agent_words(agent, "tidy", "--root", root)


def listen_words(agent: str, network: int = 0) -> Words:
    """`network`: in that of the process with this number (0: the host's)."""
    return agent_words(agent, "listen", *(in_network(network) if network else ()))


def look_words(agent: str, item: str, name: str) -> Words:
    return agent_words(agent, "look", item, name)


def record_words(agent: str, item: str, name: str, size_bytes: int, sha256: str) -> Words:
    return agent_words(agent, "record", item, name, str(size_bytes), sha256)


def stored_words(agent: str, root: str, check: str) -> Words:
    return agent_words(agent, "stored", "--root", root, "--check", check)


def forget_words(agent: str, root: str, items: Sequence[str]) -> Words:
    return agent_words(agent, "forget", "--root", root, *items)


def others_words(agent: str) -> Words:
    return agent_words(agent, "others")


def place_words(agent: str, folder: str) -> Words:
    return agent_words(agent, "place", folder)


def held_words(agent: str, item: str, model: str) -> Words:
    """Which weights of stdin a host has, in the pack `item` or the folder `model`."""
    return agent_words(agent, "held", item, model)


def give_words(agent: str, item: str, model: str, address: str, peer: str) -> Words:
    """Let the host at `peer` fetch weights at a port of `address`; which, and by which keys, comes through stdin."""
    return agent_words(agent, "give", item, model, "--address", address, "--peer", peer)


def fetch_words(agent: str, item: str, address: str, port: int, seconds: float | None) -> Words:
    limit = () if seconds is None else ("--seconds", f"{seconds:.1f}")
    return agent_words(agent, "fetch", item, "--address", address, "--port", str(port), *limit)


TELL: Words = ("--tell",)
"""The verb says how far it has come, line by line, before it answers."""


def pack_words(agent: str, item: str, token: str, every_byte: bool) -> Words:
    """Look at a pack; the tensors come through stdin. `token` is this controller's."""
    return agent_words(agent, "pack", item, token, *(("--every-byte",) if every_byte else ()))


def carve_words(agent: str, item: str, model: str) -> Words:
    """`model` is a folder with the model's files there; the tensors come through stdin."""
    return agent_words(agent, "carve", item, model)


def take_words(agent: str, item: str, name: str, token: str, size_bytes: int, blake2b: str) -> Words:
    return agent_words(agent, "take", item, name, token, str(size_bytes), blake2b)


def drop_words(agent: str, item: str, token: str) -> Words:
    """`token` is this controller's."""
    return agent_words(agent, "drop", item, token)


def mend_words(agent: str, item: str) -> Words:
    return agent_words(agent, "mend", item)


def thin_words(agent: str, item: str) -> Words:
    """The tensors that stay come through stdin."""
    return agent_words(agent, "thin", item)


def _since(since_s: float | None) -> Words:
    return () if since_s is None else ("--since-s", f"{since_s:.1f}")

"""What a host says of itself: the agent's answer as frozen values.

The agent (`agent.py facts`) prints one JSON object; `read_facts` turns it into `HostFacts` or raises. Nothing here
talks to a host.
"""

from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from workers.errors import FactsError


@dataclass(frozen=True)
class Gpu:
    """One graphics processor; `kind` is "cuda", "metal" or "vulkan", the backend that reaches it best. Bytes."""

    kind: str
    index: int
    name: str
    memory_total_bytes: int
    memory_free_bytes: int
    compute_capability: str = ""  # of CUDA, such as "8.9"; "" where the driver does not say
    shares_memory: bool = False  # with its host, of which it has none of its own


@dataclass(frozen=True)
class HostFacts:
    """One host at one moment.

    `memory_available_bytes` is what a new process may take without swapping: the kernel's own estimate, or what is
    left below the tightest memory cgroup, whichever is less. `cpu_quota` is the number of cores' worth of time that a
    cgroup allows (None: no limit). `libc` is such as "glibc 2.36" ("" where there is none to name). `clock_s` is the
    host's own wall clock in seconds since 1970 at the moment of the answer.
    """

    os: str  # "Linux" or "Darwin"
    os_name: str  # such as "Debian GNU/Linux 12 (bookworm)"
    architecture: str  # as `uname -m` says: "x86_64", "aarch64", "arm64"
    libc: str
    python: str  # such as "3.11.7"
    hostname: str
    user: str
    cpu_name: str
    cpu_features: tuple[str, ...]
    cores_physical: int
    cores_logical: int
    cpu_quota: float | None
    memory_total_bytes: int
    memory_available_bytes: int
    memory_limited_by: str  # "" or the cgroup that limits memory, for messages
    disk_total_bytes: int
    disk_free_bytes: int  # where `root` lies
    root: str  # the absolute folder for meshctl's files on this host
    clock_s: float
    compiler: str  # such as "c++ (Debian 12.2.0) 12.2.0", "" when there is none
    gpus: tuple[Gpu, ...]
    medium: str = ""  # "wired" or "wireless": over what the SSH connection came in; "" where the host does not tell
    address: str = ""  # the host's own address that the SSH connection came to; "" without SSH
    private_network_refused: str = ""  # why programs there cannot have a network of their own; "" where they can
    processors: tuple[int, ...] = ()  # the kernel's numbers of the logical ones that may be used; () where not told
    boot: str = (
        ""  # the same for all hosts that run on one kernel, another one after each start; "" where it is not told
    )

    @property
    def platform(self) -> str:
        """Such as "linux-x86_64": what an engine build is for."""
        return f"{self.os.lower()}-{self.architecture}"


_ANSWER = TypeAdapter(HostFacts)


def read_facts(answer: bytes | str) -> HostFacts:
    """Read the agent's JSON; FactsError names the first thing that is not as it should be."""
    try:
        return _ANSWER.validate_json(answer)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the answer"
        raise FactsError(
            f"the agent's facts cannot be read: {place}: {first['msg']}",
            hint="run `meshctl doctor` to see the whole answer of the host",
        ) from error

"""Links without SSH in between, for a network that nobody else is on: where a worker may listen, and what it means.

llama.cpp's RPC has no password and no encryption, so this takes an explicit word in the inventory for each host, and a
private address. Everything else, control and heads included, goes through SSH as ever.
"""

import ipaddress

from orchestrator.errors import HostError
from orchestrator.host_agent import LOOPBACK
from orchestrator.inventory import Host
from workers.facts import HostFacts

PRIVATE = tuple(
    ipaddress.ip_network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16")
)
"""RFC 1918 and RFC 3927: what no router of the internet carries."""


def worker_address(host: Host, facts: HostFacts) -> str:
    """Where workers and measuring servers of a host listen: loopback, or with `link: direct` the address that SSH came
    to. HostError when that is no private one."""
    if host.link == "tunnel":
        return LOOPBACK
    problem = _problem(facts.address)
    if problem:
        raise HostError(
            host.name,
            f"`link: direct` is not possible: {problem}",
            hint=f'write "link: tunnel" for {host.name}, or reach it at its private address (10.x, 192.168.x, ...)',
        )
    return facts.address


def direct_warning(host: Host, facts: HostFacts) -> str:
    """What `link: direct` means there, in one line."""
    return (
        f"{host.name}: link: direct, its worker listens at {facts.address} without password and encryption: whoever "
        f"reaches it there runs code as {facts.user} and reads what is asked"
    )


def _problem(address: str) -> str:
    if not address:
        return "the host does not say at which of its addresses it was reached"
    parsed = ipaddress.ip_address(address)
    if parsed.version == 6:
        return f"it was reached at {address}, and the engine's RPC speaks IPv4 only"
    if not any(parsed in network for network in PRIVATE):
        return f"it was reached at {address}, which is no private address"
    return ""

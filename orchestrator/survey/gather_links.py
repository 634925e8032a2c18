"""Measure the links to all hosts: each way is opened, all side by side, then they are measured in turn; then all close.

How much a link carries is measured at two starts, of which the faster counts, then kept for a day, and is good for as
long as its round trip is what it was: that is asked each time. A wireless one is measured each time.
"""

import asyncio
import hashlib
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter

from orchestrator.fanout import all_or_raise, each_host
from orchestrator.host_agent import LOOPBACK, LinkServer, start_link_server
from orchestrator.hosts import OpenHost, OpenHosts
from orchestrator.processes import Started, open_link
from orchestrator.survey import links
from orchestrator.survey.kept import read_kept, write_kept
from orchestrator.survey.links import Line, Place, bulk_s, is_alike, measure_link
from orchestrator.survey.timing import stopping
from orchestrator.survey.values import Link
from workers.agent import medium_at
from workers.budget import MIB

TWO_AGENTS_BYTES = 96 * MIB
"""A host with less is asked nothing while its measuring server runs: each is a Python of up to 30 MB."""

WAYS_AT_ONCE = 32
"""A tunnel takes some 20 MB of this machine's memory while it is open."""

WIRELESS = "wireless"
KEPT_S = 24 * 3600.0
FORMAT = "links 3"


@dataclass(frozen=True)
class KeptLink:
    """A link as it was measured whole, in seconds since 1970; `twice`: it is the faster of two measurements, since what
    disturbs one makes it slower."""

    link: Link
    measured_at: float
    twice: bool


_KEPT = TypeAdapter(KeptLink)


@dataclass(frozen=True)
class _Way:
    """Where the measuring server of a host is reached, and over what."""

    kind: str
    place: Place


_Measure = Callable[[OpenHost, _Way], Awaitable[Link]]


async def gather_links(hosts: OpenHosts, logs: str, kept: Path, *, again: bool = False) -> dict[str, Link]:
    """The link of every host, on the very path that carries the tensors: a tunnel, the network itself, or plain
    loopback on this machine. `kept` is the folder of what was measured before; `again`: measure all of it.

    HostsError has every host whose link carries nothing, of the first `WAYS_AT_ONCE` with one.
    """
    target_s = bulk_s(sum(not host.is_local for host in hosts.by_name.values()))
    names, found = list(hosts.by_name), dict[str, Link]()
    measure = partial(_measured, line=Line(), target_s=target_s, kept=kept, again=again)
    for first in range(0, len(names), WAYS_AT_ONCE):
        found |= await _gather(hosts, names[first : first + WAYS_AT_ONCE], logs, measure)
    return found


async def _gather(hosts: OpenHosts, names: Sequence[str], logs: str, measure: _Measure) -> dict[str, Link]:
    async with stopping() as started:
        servers: list[LinkServer] = []
        try:
            opening = {name: _opened(hosts, hosts.by_name[name], logs, started, servers) for name in names}
            ways = all_or_raise(await each_host(opening, limit=len(names)))
            asked = {name: measure(hosts.by_name[name], way) for name, way in ways.items()}
            return all_or_raise(await each_host(asked, limit=len(names)))
        finally:
            await asyncio.shield(asyncio.gather(*(one.close() for one in servers), return_exceptions=True))


async def _opened(hosts: OpenHosts, host: OpenHost, logs: str, started: Started, servers: list[LinkServer]) -> _Way:
    """Start the measuring server, and the tunnel to it where it is reached by one."""
    address, door = host.worker_address, host.new_socket() if host.is_private else ""
    # The name of a socket is known before anybody listens there.
    opening = asyncio.create_task(open_link(started, hosts, logs, host, door)) if door else None
    try:
        if host.facts.memory_available_bytes < TWO_AGENTS_BYTES:
            await host.rest()
        server = await start_link_server(host.shell, host.agent, address=address, socket=door)
        servers.append(server)
        if host.is_local:
            return _Way("loopback", (LOOPBACK, server.port))
        if not host.is_linked:
            return _Way("direct", (address, server.port))
        link = await (opening or open_link(started, hosts, logs, host, f"{LOOPBACK}:{server.port}"))
        return _Way("tunnel", link.near)
    finally:
        if opening is not None:
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)


async def _measured(host: OpenHost, way: _Way, *, line: Line, target_s: float, kept: Path, again: bool) -> Link:
    medium = "" if host.is_local else await asyncio.to_thread(_medium, host)
    file = kept / f"link-{_key(host, way.kind)}.json"
    known = None if again else _kept(file)
    link = await measure_link(
        *(host.name, way.kind, way.place),
        line=line,
        medium=medium,
        before=known.link if known is not None and known.twice and medium != WIRELESS else None,
        target_s=target_s,
    )
    if known is not None and _has_rates_of(known.link, link):
        return link
    found = KeptLink(link, time.time(), twice=False)
    lasts = medium != WIRELESS and links.tells_of_rates(link)  # else it is measured anew each time
    if known is not None and not known.twice and lasts and is_alike(link.round_trip_s, known.link.round_trip_s):
        found = replace(found, link=_faster(known.link, link), twice=True)
    write_kept(file, _KEPT, found)
    return found.link


def _medium(host: OpenHost) -> str:
    """Wireless at either end, else what the host says. Of this end by the way to the address that SSH came to there,
    which nothing is sent to."""
    if host.facts.medium == WIRELESS:
        return WIRELESS
    own = ""
    with suppress(OSError):
        family = socket.AF_INET6 if ":" in host.facts.address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as way:
            way.connect((host.facts.address, 9))
            own = medium_at(way.getsockname()[0])
    return WIRELESS if own == WIRELESS else host.facts.medium


def _faster(before: Link, link: Link) -> Link:
    """In each direction."""
    return replace(
        link,
        up_bytes_per_s=max(before.up_bytes_per_s, link.up_bytes_per_s),
        down_bytes_per_s=max(before.down_bytes_per_s, link.down_bytes_per_s),
    )


def _has_rates_of(before: Link, link: Link) -> bool:
    """Whether they were not measured anew."""
    return (before.up_bytes_per_s, before.down_bytes_per_s) == (link.up_bytes_per_s, link.down_bytes_per_s)


def _kept(file: Path) -> KeptLink | None:
    """None where there is none of the last day; one that cannot be read is measured again."""
    found = read_kept(file, _KEPT)
    return found if found is not None and 0 <= time.time() - found.measured_at < KEPT_S else None


def _key(host: OpenHost, kind: str) -> str:
    """What a kept link is good for: this host at this address, by this way."""
    at = host.host
    parts = (FORMAT, host.name, host.facts.hostname, str(at.address), str(at.port), str(at.jump), kind)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]

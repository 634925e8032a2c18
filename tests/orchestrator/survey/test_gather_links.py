"""Links of several hosts: opened together, measured in turn, kept for a day."""

import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.folders import Folders
from orchestrator.hosts import OpenHost, OpenHosts, open_hosts
from orchestrator.inventory_file import load_inventory
from orchestrator.report import silent
from orchestrator.survey import gather_links as gathered
from orchestrator.survey import links
from orchestrator.survey.gather_links import KEPT_S, gather_links
from orchestrator.survey.values import Link

INVENTORY = """
cluster: test
model: /a.gguf
hosts:
  - {name: one, connection: local, memory: 1GiB}
  - {name: two, connection: local, memory: 1GiB}
"""


@pytest.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[OpenHosts]:
    path = tmp_path / "inventory.yaml"
    path.write_text(INVENTORY)
    folders = Folders(tmp_path / "cache", tmp_path / "state")
    async with open_hosts(load_inventory(path), folders, silent()) as opened:
        yield opened


@pytest.fixture
def alike(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What is said of every round trip: by chance it may be another one on a busy machine."""
    said = [True]
    monkeypatch.setattr(links, "is_alike", lambda *_: said[0])
    monkeypatch.setattr(links, "tells_of_rates", lambda _: True)
    monkeypatch.setattr(gathered, "is_alike", lambda *_: said[0])
    return said


async def settled(hosts: OpenHosts, kept: Path) -> dict[str, Link]:
    """Measured twice: kept from now on."""
    await gather_links(hosts, "logs", kept)
    return await gather_links(hosts, "logs", kept)


def rates(found: dict[str, Link]) -> list[tuple[float, float]]:
    return [(one.up_bytes_per_s, one.down_bytes_per_s) for one in found.values()]


def rewrite(kept: Path, change: dict[str, object]) -> None:
    for file in kept.glob("link-*.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | change))


async def test_rates_are_kept_while_the_round_trip_is_what_it_was(
    hosts: OpenHosts, tmp_path: Path, alike: list[bool]
) -> None:
    kept = tmp_path / "kept"
    first = await settled(hosts, kept)
    assert list(first) == ["one", "two"]
    again = await gather_links(hosts, "logs", kept)
    assert rates(again) == rates(first)
    assert [one.round_trip_s for one in again.values()] != [one.round_trip_s for one in first.values()]
    alike[0] = False
    changed = await gather_links(hosts, "logs", kept)
    assert not set(rates(changed)) & set(rates(first))
    alike[0] = True
    faster = rates(await gather_links(hosts, "logs", kept))
    assert rates(await gather_links(hosts, "logs", kept)) == faster


async def test_the_faster_of_two_measurements_is_kept(
    hosts: OpenHosts, tmp_path: Path, alike: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one only where the round trip is as it was."""
    measured: list[tuple[float, float]] = []

    async def measure(host: str, kind: str, place: object, **options: object) -> Link:
        before = options["before"]
        if isinstance(before, Link):
            return replace(before, round_trip_s=0.002)
        measured.append((10e6 + len(measured), 20e6 - len(measured)))
        return Link(kind, 0.001, *measured[-1])

    monkeypatch.setattr(gathered, "measure_link", measure)
    one, kept = replace(hosts, by_name={"one": hosts.by_name["one"]}), tmp_path / "kept"
    alike[0] = False
    seen = [rates(await gather_links(one, "logs", kept))[0] for _ in range(2)]
    alike[0] = True
    seen += [rates(await gather_links(one, "logs", kept))[0] for _ in range(3)]
    assert len(measured) == 3
    assert seen == [*measured[:2], *[(measured[2][0], measured[1][1])] * 3]


async def test_of_many_hosts_some_are_open_at_a_time(
    hosts: OpenHosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathered, "WAYS_AT_ONCE", 1)
    assert list(await gather_links(hosts, "logs", tmp_path / "kept")) == ["one", "two"]


async def test_rates_of_which_the_round_trip_does_not_tell_are_measured_again(
    hosts: OpenHosts, tmp_path: Path, alike: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen: a link with a round trip of 4 ms went from 1 Gbit/s to 100 Mbit/s, and was planned with as before."""
    first = await settled(hosts, tmp_path / "kept")
    monkeypatch.setattr(links, "tells_of_rates", lambda _: False)
    assert not {*rates(await gather_links(hosts, "logs", tmp_path / "kept"))} & {*rates(first)}


async def test_a_rate_of_which_the_round_trip_does_not_tell_is_never_taken_for_the_one_before(
    hosts: OpenHosts, tmp_path: Path, alike: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second measurement that is slower is no worse one there: the network has become slower."""
    told = iter(((25e6, 25e6), (12e6, 12e6), (14e6, 14e6)))

    async def measure(host: str, kind: str, place: object, **options: object) -> Link:
        return Link(kind, 0.005, *next(told))

    monkeypatch.setattr(gathered, "measure_link", measure)
    monkeypatch.setattr(links, "tells_of_rates", lambda _: False)
    one = replace(hosts, by_name={"one": hosts.by_name["one"]})
    seen = [rates(await gather_links(one, "logs", tmp_path / "kept"))[0] for _ in range(3)]
    assert seen == [(25e6, 25e6), (12e6, 12e6), (14e6, 14e6)]


async def test_what_is_old_or_cannot_be_read_is_measured_again(
    hosts: OpenHosts, tmp_path: Path, alike: list[bool]
) -> None:
    kept = tmp_path / "kept"
    seen = {*rates(await settled(hosts, kept))}
    changes: tuple[dict[str, object], ...] = (
        {"measured_at": time.time() - KEPT_S - 1},
        {"measured_at": time.time() + 3600},
        {"link": 7},
    )
    for change in changes:
        rewrite(kept, change)
        found = rates(await gather_links(hosts, "logs", kept))
        assert not seen & {*found}, change
        found += rates(await settled(hosts, kept))
        seen |= {*found}
    assert not seen & {*rates(await gather_links(hosts, "logs", kept, again=True))}


async def test_a_wireless_link_is_measured_each_time(
    hosts: OpenHosts, tmp_path: Path, alike: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This machine, as if it were another one that is reached over a network card."""
    monkeypatch.setattr(OpenHost, "is_local", property(lambda _: False))
    monkeypatch.setattr(OpenHost, "worker_address", property(lambda _: "127.0.0.1"))
    one, here = hosts.by_name["one"], ["wired"]
    monkeypatch.setattr(gathered, "medium_at", lambda address: here[0] if address == "127.0.0.1" else "")
    cases = (("wired", "wired", "wired"), ("wireless", "wired", "wireless"), ("wired", "wireless", "wireless"))
    for number, (there, here[0], medium) in enumerate(cases):
        facts = replace(one.facts, medium=there, address="127.0.0.1")
        far = replace(hosts, by_name={"one": replace(one, host=replace(one.host, link="direct"), facts=facts)})
        kept = tmp_path / str(number)
        first, second = await settled(far, kept), await gather_links(far, "logs", kept)
        assert (first["one"].kind, first["one"].medium) == ("direct", medium)
        assert (rates(first) == rates(second)) == (medium == "wired")


@pytest.mark.parametrize(
    ("one", "other", "alike"), [(1.0, 1.39, True), (1.39, 1.0, True), (1.0, 1.41, False), (3.0, 1.0, False)]
)
def test_round_trips_are_compared_as_ratios(one: float, other: float, alike: bool) -> None:
    assert links.is_alike(one, other) == alike


@pytest.mark.parametrize(
    ("mbit_per_s", "round_trip_ms", "tells"),
    [(1000, 0.5, True), (1000, 2.4, True), (1000, 3.2, False), (100, 4, True), (100, 24, True), (100, 32, False)],
)
def test_a_round_trip_tells_of_rates_unless_it_is_long_by_itself(
    mbit_per_s: float, round_trip_ms: float, tells: bool
) -> None:
    link = Link("tunnel", round_trip_ms / 1000, mbit_per_s * 125_000, mbit_per_s * 125_000)
    assert links.tells_of_rates(link) == tells


def test_the_more_links_the_shorter_each_is_measured() -> None:
    assert [links.bulk_s(count) for count in (0, 1, 8, 16, 24, 100)] == pytest.approx([0.3, 0.3, 0.3, 0.15, 0.1, 0.1])

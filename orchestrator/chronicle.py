"""Writes down what becomes of a cluster: faults, hosts that go and come back, recoveries and how long they took.

It only looks at the transitions of the life cycle; whoever makes one tells it, before the phase itself is written.
"""

from collections.abc import Callable, Iterable

from orchestrator.gateway.state import Counters
from orchestrator.history import EventKind
from orchestrator.lifecycle import CannotStart, Event, Lifecycle, Lost, Up
from orchestrator.state import Phase

Note = Callable[[EventKind, Phase, str, str, float | None], None]
"""Called with the kind, the phase, the message, the host ("" for none) and the seconds, as in `HistoryEvent`."""


class Chronicle:
    """`note` writes an event of the cluster's history; `counters` count the recoveries."""

    def __init__(self, note: Note, counters: Counters) -> None:
        self._note = note
        self._counters = counters
        self._away = frozenset[str]()
        self._lost_at_s: float | None = None

    def interrupted(self, now_s: float) -> None:
        """Nothing answers from now on; what was lost is told later, when the rest has been stopped."""
        self._lost_at_s = now_s

    def turn(self, before: Lifecycle, after: Lifecycle, event: Event, now_s: float) -> None:
        """The event has made one life cycle of the other."""
        match event:
            case Lost(host, what):
                self._blame((host,), what, after)
            case CannotStart(why, hosts):
                self._blame(hosts, why, after)
            case Up(missing):
                self._back(missing.keys() | after.without(now_s).keys(), after)
                for host in sorted(missing.keys() - self._away):
                    self._note("missing", after.state, missing[host], host, None)
                self._away = frozenset(missing.keys() | after.without(now_s).keys())
        self._set_aside(before, after, now_s)
        self._recovery(before, after, event, now_s)

    def _blame(self, hosts: Iterable[str], what: str, after: Lifecycle) -> None:
        for host in hosts:
            self._note("fault", after.state, what, host, None)

    def _back(self, away: Iterable[str], after: Lifecycle) -> None:
        for host in sorted(self._away - set(away)):
            self._note("taken_back", after.state, "it can be used again", host, None)

    def _set_aside(self, before: Lifecycle, after: Lifecycle, now_s: float) -> None:
        for host, one in after.aside.items():
            if one != before.aside.get(host):
                self._note("set_aside", after.state, one.reason, host, round(one.until_s - now_s, 1))
                self._away |= {host}

    def _recovery(self, before: Lifecycle, after: Lifecycle, event: Event, now_s: float) -> None:
        """A head that is lost while others serve has to be replaced, too."""
        if isinstance(event, Lost):
            self._lost_at_s = now_s if self._lost_at_s is None else self._lost_at_s
        elif after.state == "failed" and before.state != "failed":
            self._counters.recover("failed")
        elif isinstance(event, Up) and self._lost_at_s is not None:
            seconds, self._lost_at_s = round(now_s - self._lost_at_s, 1), None
            self._counters.recover("ready" if after.state == "ready" else "degraded", seconds)
            self._note("recovery", after.state, f"it serves again after {seconds:.1f} s", "", seconds)

"""Notice that the memory of a host runs out, before its kernel ends whatever it finds largest. Pure; values are fed in.

What other programs take grows while ours is planned: so the present fall of what is free, less what our own processes
have grown by, is taken to go on.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from orchestrator.leash import Leashed

LEAST_PART, MOST_LEAST_BYTES = 0.01, 256 * 1024 * 1024
"""Of a host's memory at least this much is to stay available."""

AHEAD = 2
"""So many words of a host into the future."""

TIMES = 2
"""It has to be so for so many words in a row: what is free for a moment only is not a shortage."""


@dataclass(frozen=True)
class _Word:
    """The newest word of a host: when it came, and the bytes that were available and that ours held."""

    at_s: float
    free: int
    ours: int


class MemoryWatch:
    """Looks at every host from time to time; `totals` is the memory of each.

    Hosts speak about as often as they are looked at, but not at the same moments: a look that finds no newer word
    learns nothing, least of all that nobody takes memory any more.
    """

    def __init__(self, totals: Mapping[str, int]) -> None:
        self._least = {host: min(MOST_LEAST_BYTES, int(LEAST_PART * total)) for host, total in totals.items()}
        self._before: dict[str, _Word] = {}
        self._short = Counter[str]()

    def short(self, processes: Iterable[Leashed]) -> dict[str, int]:
        """Hosts whose memory is about to run out, with the bytes that are available there now."""
        now = _now(processes)
        for host, word in now.items():
            before = self._before.get(host)
            if before is not None and word.at_s == before.at_s:
                continue
            expected = word.free - AHEAD * _taken_by_others(before or word, word)
            self._short[host] = self._short[host] + 1 if expected < self._least.get(host, 0) else 0
            self._before[host] = word
        return {host: word.free for host, word in sorted(now.items()) if self._short[host] >= TIMES}


def _taken_by_others(before: _Word, now: _Word) -> int:
    return max(0, before.free - now.free - max(0, now.ours - before.ours))


def _now(processes: Iterable[Leashed]) -> dict[str, _Word]:
    """Per host what is available, by the newest word of any of its processes, and what ours hold."""
    newest, ours = dict[str, tuple[float, int]](), Counter[str]()
    for process in processes:
        ours[process.host] += process.rss_bytes or 0
        if process.available_bytes is not None:
            word = (process.told_s, process.available_bytes)
            newest[process.host] = max(newest.get(process.host, word), word)
    return {host: _Word(at_s, free, ours[host]) for host, (at_s, free) in newest.items()}

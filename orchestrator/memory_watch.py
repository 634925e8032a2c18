"""Notice that the memory of a host runs out, before its kernel ends whatever it finds largest. Pure; values are fed in.

What other programs take grows while ours is planned: so the present fall of what is free, less what our own processes
have grown by, is taken to go on.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from orchestrator.leash import Leashed

LEAST_PART, MOST_LEAST_BYTES = 0.01, 256 * 1024 * 1024
"""Of a host's memory at least this much is to stay available."""

AHEAD = 2
"""So many looks into the future."""

TIMES = 2
"""It has to be so for so many looks in a row: what is free for a moment only is not a shortage."""


class MemoryWatch:
    """Looks at every host from time to time; `totals` is the memory of each."""

    def __init__(self, totals: Mapping[str, int]) -> None:
        self._least = {host: min(MOST_LEAST_BYTES, int(LEAST_PART * total)) for host, total in totals.items()}
        self._before: dict[str, tuple[int, int]] = {}  # available, and ours
        self._short = Counter[str]()

    def short(self, processes: Iterable[Leashed]) -> dict[str, int]:
        """Hosts whose memory is about to run out, with the bytes that are available there now."""
        now = _now(processes)
        expected = {host: free - AHEAD * self._taken_by_others(host, free, ours) for host, (free, ours) in now.items()}
        self._before = now
        short = {host for host, free in expected.items() if free < self._least.get(host, 0)}
        self._short = Counter({host: self._short[host] + 1 for host in short})
        return {host: now[host][0] for host in sorted(short) if self._short[host] >= TIMES}

    def _taken_by_others(self, host: str, free: int, ours: int) -> int:
        """Since the last look."""
        free_before, ours_before = self._before.get(host, (free, ours))
        return max(0, free_before - free - max(0, ours - ours_before))


def _now(processes: Iterable[Leashed]) -> dict[str, tuple[int, int]]:
    """Per host what is available, by the last word of any of its processes, and what ours hold."""
    free, ours = dict[str, int](), Counter[str]()
    for process in processes:
        ours[process.host] += process.rss_bytes or 0
        if process.available_bytes is not None:
            free[process.host] = min(free.get(process.host, process.available_bytes), process.available_bytes)
    return {host: (size, ours[host]) for host, size in free.items()}

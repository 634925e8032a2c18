"""When in each period the kernel lets a process of a cgroup compute again: run inside one, it prints microseconds.

It computes for some periods and looks for the gaps in its own time. The clock is CLOCK_MONOTONIC, which the kernel's
timers for quotas go by.
"""

import statistics
import sys
import time

GAP_NS = 400_000
"""Longer than what else interrupts a process for, shorter than a quota leaves over."""


def main(cgroup_procs: str, period_us: int, periods: int) -> None:
    with open(cgroup_procs, "w", encoding="ascii") as file:
        file.write("0")
    period_ns = period_us * 1000
    begun = before = time.monotonic_ns()
    resumed = []
    while before < begun + periods * period_ns:
        now = time.monotonic_ns()
        if now - before > GAP_NS:
            resumed.append((now + period_ns // 2) % period_ns - period_ns // 2)
        before = now
    print(round(statistics.median(resumed) / 1000) if resumed else "")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

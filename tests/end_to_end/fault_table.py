"""One fault after the other under load, each timed and judged: the rows of the table in docs/reliability.md."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

from tests.end_to_end.load import PROMPTS, Asked, ask, asking, body_of
from tests.program import Meshctl

SERVES = ("ready", "degraded")
LOOK_S = 0.02
SERVING_DEADLINE_S = 150.0


@dataclass(frozen=True)
class Row:
    """What a fault led to. Seconds after it: noticed by the supervisor, serving again, the first stream going on (None:
    did not happen or does not apply); requests by outcome; streams whose text behind the seam was what a fresh request
    with the text before it gives, of those compared."""

    fault: str
    noticed_s: float | None
    serving_s: float | None
    goes_on_s: float | None
    outcomes: Counter[str]
    equal: int
    compared: int

    def cells(self) -> tuple[str, ...]:
        times = (self.noticed_s, self.serving_s, self.goes_on_s)
        counts = (str(self.outcomes[one]) for one in ("undisturbed", "resumed", "replayed", "failed", "lost"))
        return (
            self.fault,
            *("-" if one is None else f"{one:.1f} s" for one in times),
            *counts,
            f"{self.equal} of {self.compared}" if self.compared else "-",
        )


HEADINGS = (
    "fault",
    "noticed after",
    "serves again after",
    "streams go on after",
    "undisturbed",
    "resumed",
    "replayed",
    "failed explicitly",
    "lost",
    "equal behind the seam",
)


def as_markdown(rows: Iterable[Row]) -> str:
    """The table as it stands in the documentation."""
    return table_of(row.cells() for row in rows)


def table_of(rows: Iterable[tuple[str, ...]]) -> str:
    """The same of rows whose cells are texts already."""
    lines = [HEADINGS, tuple("---" for _ in HEADINGS), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


@dataclass
class Watch:
    """The cluster's state, read all the time in a thread: when each phase began, by the monotonic clock."""

    meshctl: Meshctl
    phases: list[tuple[float, str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = Event()
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def first(self, since_s: float, wanted: Callable[[str], bool]) -> float | None:
        """When the first such phase began that began after that moment."""
        return next((at_s for at_s, phase, _ in self.phases if at_s > since_s and wanted(phase)), None)

    def wait(self, since_s: float, wanted: Callable[[str], bool], deadline_s: float = SERVING_DEADLINE_S) -> float:
        end = time.monotonic() + deadline_s
        while (found := self.first(since_s, wanted)) is None:
            assert time.monotonic() < end, (
                f"in vain after {deadline_s} s; phases: {self.phases[:8]} ... {self.phases[-2:]}"
            )
            time.sleep(LOOK_S)
        return found

    def _run(self) -> None:
        last = ""
        while not self._stop.wait(LOOK_S):
            state = self.meshctl.state()
            mark = f"{state['phase']} {state['since']} {state['message']}"
            if mark != last:
                self.phases.append((time.monotonic(), state["phase"], state["message"]))
                last = mark


@dataclass(frozen=True)
class Cluster:
    """A cluster that is up, as a test sees it."""

    meshctl: Meshctl

    @property
    def url(self) -> str:
        return str(self.meshctl.state()["gateway"]).removesuffix("/v1")

    def pid(self, name: str) -> int:
        """Of a process of this cluster whose name begins so."""
        every = self.meshctl.state()["processes"]
        pids: list[int] = [one["pid"] for one in every if one["name"].startswith(name)]
        return pids[0]


def parent_of(pid: int) -> int:
    """The leash of a program on this machine."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("PPid:")))


def calm_row_of(cluster: Cluster, fault: str, strike: Callable[[], None]) -> Row:
    """Strike, with what must not disturb a cluster, while four streams and two whole answers are made, and ask for the
    same again as long as it lasts: it serves all the time, and every answer comes to its own end."""
    requests: list[Asked] = []
    watch = Watch(cluster.meshctl)
    try:
        with ThreadPoolExecutor(1) as beside:
            struck: Future[None] | None = None
            while struck is None or not struck.done():
                requests += (load := _load(waiting=2))
                with asking(cluster.url, cluster.meshctl.key(), load):
                    struck = struck or beside.submit(strike)
            struck.result()
    finally:
        watch.close()
    assert {phase for _, phase, _ in watch.phases} <= set(SERVES), watch.phases
    assert all(one.finish and not one.error for one in requests), requests
    for one in requests:
        if one.stream:
            _check_whole(one)
    return Row(fault, None, None, None, Counter(undisturbed=len(requests)), equal=0, compared=0)


def end_row_of(cluster: Cluster, fault: str, strike: Callable[[], None]) -> Row:
    """Strike with what nobody survives who could tell the clients: each sees a connection that breaks."""
    requests = _load(waiting=2)
    with asking(cluster.url, cluster.meshctl.key(), requests) as wait:
        strike()
        wait()
    assert [one.error for one in requests] == ["connection"] * len(requests)
    return Row(fault, None, None, None, Counter(failed=len(requests)), equal=0, compared=0)


def row_of(
    cluster: Cluster,
    fault: str,
    strike: Callable[[], None],
    *,
    after: Callable[[], None] | None = None,
    waiting: int = 2,
) -> Row:
    """Strike while four streams and a whole answer are made and another one waits for a slot; see it through, and judge
    every answer.

    `after` is done when the fault has been noticed, such as putting a link back. Afterwards nothing may be lost or be
    there twice, and what followed a seam is compared with what a fresh request is given.
    """
    requests = _load(waiting)
    watch = Watch(cluster.meshctl)
    try:
        with asking(cluster.url, cluster.meshctl.key(), requests) as wait:
            fault_s = time.monotonic()
            strike()
            noticed_s = watch.wait(fault_s, lambda phase: phase == "recovering")
            if after is not None:
                after()
            serving_s = watch.wait(noticed_s, lambda phase: phase in SERVES)
            wait()
    finally:
        watch.close()
    outcomes = Counter[str](one.outcome(fault_s) for one in requests)
    assert outcomes["lost"] == 0, requests
    resumed = [one for one in requests if one.outcome(fault_s) == "resumed" and one.stream]
    for one in resumed:
        _check_whole(one)
    goes_on = [one.times_s[one.seam(fault_s)] - fault_s for one in resumed]
    pairs = [(one, fresh(cluster, one, fault_s)) for one in resumed]
    return Row(
        fault,
        noticed_s - fault_s,
        serving_s - fault_s,
        max(goes_on, default=None),
        outcomes,
        equal=sum("".join(one.pieces[one.seam(fault_s) :]) == text for one, text in pairs),
        compared=len(pairs),
    )


def _load(waiting: int) -> list[Asked]:
    """Four streams, and whole answers: one for the fifth slot, the others wait for one."""
    return [Asked(prompt) for prompt in PROMPTS] + [Asked(PROMPTS[0], stream=False) for _ in range(waiting)]


def fresh(cluster: Cluster, one: Asked, fault_s: float) -> str:
    """What a fresh request with the text up to the seam is given."""
    seam = one.seam(fault_s)
    body = body_of(one.prompt, tokens=one.usage["completion_tokens"] - seam)
    body["messages"].append({"role": "assistant", "content": "".join(one.pieces[:seam])})
    body |= {"continue_final_message": True, "add_generation_prompt": False, "cache_prompt": False}
    again = Asked(one.prompt)
    ask(cluster.url, cluster.meshctl.key(), again, body)
    return again.text


def _check_whole(one: Asked) -> None:
    """One id, and as many tokens as were counted: a piece that came twice or never would show."""
    assert len(one.ids) == 1, one
    assert one.usage["completion_tokens"] - len(one.pieces) in (0, 1), one  # the last one may be an end of text


def kill(pid: int, number: int) -> Callable[[], None]:
    """A strike: this signal to this process."""
    return lambda: os.kill(pid, number)

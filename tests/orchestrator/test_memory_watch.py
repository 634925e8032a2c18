"""What counts as memory that runs out, look after look."""

from dataclasses import dataclass
from typing import cast

from orchestrator.leash import Leashed
from orchestrator.memory_watch import MOST_LEAST_BYTES, MemoryWatch

TOTAL = 1000


@dataclass
class Held:
    """Stands for a process under its leash: what it holds, and what is available on its host."""

    host: str
    rss_bytes: int | None
    available_bytes: int | None
    told_s: float


def looks(watch: MemoryWatch, *states: tuple[int, int | None]) -> list[dict[str, int]]:
    """Our one process holds so much and so much is available, one look and word after the other."""
    words = [Held("a", ours, free, float(at_s)) for at_s, (ours, free) in enumerate(states)]
    return [watch.short([cast(Leashed, word)]) for word in words]


def test_a_host_with_room_is_never_short() -> None:
    assert looks(MemoryWatch({"a": TOTAL}), (100, 500), (100, 490), (100, 495)) == [{}, {}, {}]


def test_what_stays_below_the_least_is_told_at_the_second_look() -> None:
    assert looks(MemoryWatch({"a": TOTAL}), (100, 9), (100, 8), (100, 7)) == [{}, {"a": 8}, {"a": 7}]


def test_what_others_take_is_taken_to_go_on() -> None:
    """There is room left at the moment at which it is told, else it would be too late."""
    assert looks(MemoryWatch({"a": TOTAL}), (100, 400), (100, 250), (100, 120)) == [{}, {}, {"a": 120}]


def test_what_we_take_ourselves_was_planned() -> None:
    assert looks(MemoryWatch({"a": TOTAL}), (100, 400), (300, 200), (480, 20)) == [{}, {}, {}]


def test_a_moment_is_no_shortage() -> None:
    assert looks(MemoryWatch({"a": TOTAL}), (100, 500), (100, 5), (100, 500), (100, 5), (100, 500)) == [{}] * 5


def test_where_nothing_is_known_nothing_is_said() -> None:
    assert looks(MemoryWatch({"a": TOTAL}), (100, None), (100, None)) == [{}, {}]
    assert looks(MemoryWatch({}), (100, 1), (100, 1), (100, 1)) == [{}, {}, {}]


def test_large_hosts_need_not_keep_a_hundredth_free() -> None:
    watch = MemoryWatch({"a": 10**12})
    assert looks(watch, (0, MOST_LEAST_BYTES), (0, MOST_LEAST_BYTES)) == [{}, {}]


def test_a_look_without_a_newer_word_does_not_make_a_fall_look_ended() -> None:
    """Seen: a look every two seconds met a word every two seconds twice, and the kernel ended a program."""
    watch = MemoryWatch({"a": TOTAL})
    words = [Held("a", 100, free, at_s) for at_s, free in ((0.0, 400), (2.0, 250), (2.0, 250), (4.0, 120))]
    assert [watch.short([cast(Leashed, word)]) for word in words] == [{}, {}, {}, {"a": 120}]


def test_one_word_is_no_shortage_however_often_it_is_looked_at() -> None:
    watch = MemoryWatch({"a": TOTAL})
    assert [watch.short([cast(Leashed, Held("a", 100, 5, 1.0))]) for _ in range(4)] == [{}] * 4


def test_the_newest_word_of_a_host_counts() -> None:
    """Its processes speak at different moments."""
    watch, old = MemoryWatch({"a": TOTAL}), Held("a", 50, 5, 0.5)
    for at_s in (1.0, 3.0, 5.0):
        words = [old, Held("a", 50, 600, at_s)]
        assert watch.short([cast(Leashed, word) for word in words]) == {}

"""The line before the heads: who gets the next slot, who is turned away, and that no slot is ever lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from random import Random

import pytest

from orchestrator.gateway.api_error import ApiError
from orchestrator.gateway.line import MIB, Line, LineLimits


class Guests:
    """Clients that wait, and the order in which they got their turns."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.turns: list[str] = []
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._leave: dict[str, asyncio.Event] = {}

    async def come(self, name: str, *, slots: int = 1, body_bytes: int = 0) -> None:
        """`name` is the client and, behind a dot, which of its requests it is."""
        self._leave[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._stay(name, slots, body_bytes))
        await settle()

    async def leave(self, name: str) -> None:
        self._leave[name].set()
        await settle()

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        await settle()

    async def end(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _stay(self, name: str, slots: int, body_bytes: int) -> None:
        async with self.line.turn(name.partition(".")[0], slots=slots, body_bytes=body_bytes):
            self.turns.append(name)
            await self._leave[name].wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@asynccontextmanager
async def guests(slots: int, limits: LineLimits | None = None) -> AsyncIterator[Guests]:
    there = Guests(Line(slots, limits, situation=lambda: {"state": "ready"}))
    try:
        yield there
    finally:
        await there.end()


async def refusal(line: Line, client: str, body_bytes: int = 0) -> ApiError:
    with pytest.raises(ApiError) as caught:
        async with line.turn(client, body_bytes=body_bytes):
            pass
    return caught.value


async def test_slots_are_given_at_once_and_whoever_comes_later_waits() -> None:
    async with guests(2) as there:
        for name in ("a", "b", "c"):
            await there.come(name)
        assert (there.turns, there.line.waiting) == (["a", "b"], 1)
        await there.leave("a")
        assert (there.turns, there.line.waiting) == (["a", "b", "c"], 0)


async def test_one_client_after_the_other_gets_a_turn_however_many_requests_it_has() -> None:
    async with guests(1) as there:
        for name in ("a.1", "a.2", "a.3", "a.4", "b.1", "b.2", "c.1"):
            await there.come(name)
        for _ in range(6):
            await there.leave(there.turns[-1])
        assert there.turns == ["a.1", "a.2", "b.1", "c.1", "a.3", "b.2", "a.4"]


async def test_a_request_with_several_choices_waits_for_as_many_slots_and_is_not_overtaken() -> None:
    async with guests(3) as there:
        await there.come("a")
        await there.come("b", slots=3)
        await there.come("c")
        assert there.turns == ["a"]
        await there.leave("a")
        assert there.turns == ["a", "b"]
        await there.leave("b")
        assert there.turns == ["a", "b", "c"]


async def test_more_choices_than_there_are_slots_take_all_of_them() -> None:
    async with guests(2) as there:
        await there.come("a", slots=5)
        assert there.turns == ["a"]


async def test_when_too_many_wait_the_next_one_is_told_when_to_come_back() -> None:
    async with guests(2, LineLimits(requests=4)) as there:
        for name in ("a.1", "a.2", "a.3", "a.4"):
            await there.come(name)
        own = await refusal(there.line, "a")
        assert (own.status, own.code) == (429, "too_many_requests")
        for name in ("b.1", "b.2"):
            await there.come(name)
        full = await refusal(there.line, "c")
        assert (full.status, full.code, full.more) == (
            429,
            "queue_full",
            {"state": "ready", "waiting": 4, "expected_s": 25.0},
        )
        assert str(full) == "too many requests wait already (4); ask again in 25 s"
        assert full.headers == {"retry-after": "25"}
        await there.leave("a.1")
        await there.come("c")
        assert there.line.waiting == 4


async def test_large_bodies_do_not_wait_beside_each_other_beyond_the_limit() -> None:
    async with guests(1, LineLimits(body_bytes=10 * MIB)) as there:
        await there.come("a", body_bytes=8 * MIB)
        await there.come("b", body_bytes=8 * MIB)
        assert (await refusal(there.line, "c", 8 * MIB)).code == "queue_full"
        await there.come("d", body_bytes=MIB)
        assert there.line.waiting == 2


async def test_nobody_waits_for_ever() -> None:
    async with guests(1, LineLimits(wait_s=0.05)) as there:
        await there.come("a")
        late = await refusal(there.line, "b")
        assert (late.status, late.code) == (503, "wait_timeout")
        assert there.line.waiting == 0


async def test_a_client_that_leaves_the_line_takes_no_slot() -> None:
    async with guests(1) as there:
        for name in ("a", "b", "c"):
            await there.come(name)
        await there.cancel("b")
        await there.leave("a")
        assert there.turns == ["a", "c"]


async def test_a_turn_that_fails_gives_its_slot_back() -> None:
    line = Line(1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            async with line.turn("a"):
                raise ZeroDivisionError
    async with line.turn("a"):
        assert line.waiting == 0


async def test_what_is_expected_follows_how_long_turns_take() -> None:
    now = [0.0]
    line = Line(1, usual_s=10.0, clock=lambda: now[0])
    for _ in range(30):
        async with line.turn("a"):
            now[0] += 2.0
    async with line.turn("a"):
        assert line.expected_s() == pytest.approx(2.0, abs=0.05)
    assert line.expected_s() == 0.0


@pytest.mark.parametrize("seed", range(20))
async def test_after_any_coming_and_going_all_slots_are_free_again(seed: int) -> None:
    """And never more are taken than there are, nor is one left free while somebody waits who would fit."""
    random, slots = Random(seed), 3
    line, taken = Line(slots, LineLimits(requests=6, wait_s=5.0)), 0

    async def guest(client: str) -> None:
        nonlocal taken
        wanted = random.randint(1, slots)
        with suppress(ApiError):  # turned away: the line is full at times
            async with line.turn(client, slots=wanted):
                taken += wanted
                assert taken <= slots
                try:
                    await asyncio.sleep(random.uniform(0, 0.005))
                finally:
                    taken -= wanted

    tasks = []
    for number in range(120):
        tasks.append(asyncio.create_task(guest(f"client{number % 4}")))
        if random.random() < 0.3:
            random.choice(tasks).cancel()
        if random.random() < 0.5:
            await asyncio.sleep(random.uniform(0, 0.003))
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(answer) for answer in answers if answer is not None} <= {asyncio.CancelledError}
    assert (taken, line.waiting) == (0, 0)
    async with AsyncExitStack() as stack:
        for _ in range(slots):
            await asyncio.wait_for(stack.enter_async_context(line.turn("last")), 1)


async def test_whoever_had_a_turn_and_lost_it_goes_before_all_others_and_is_never_turned_away() -> None:
    """A stream whose head was lost has been waited for by its client all along."""
    line = Line(0, LineLimits(requests=1))
    order: list[str] = []

    async def ask(name: str, *, again: bool) -> None:
        async with line.turn(name, again=again):
            order.append(name)

    waiting = [asyncio.create_task(ask("new", again=False))]
    await asyncio.sleep(0)
    with pytest.raises(ApiError):
        await ask("refused", again=False)
    waiting += [asyncio.create_task(ask(name, again=True)) for name in ("first", "second")]
    await asyncio.sleep(0)
    assert line.waiting == 3
    line.set_slots(1)
    await asyncio.gather(*waiting)
    assert order == ["first", "second", "new"]
    assert line.waiting == 0

"""Which head answers: a slot that is free, the least expected finish, the cache that has the conversation, and what is
learnt."""

import heapq
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.gateway.routing import (
    CLEARLY,
    HOLD_OFF_S,
    HeadAddress,
    Question,
    Router,
    Ticket,
    choices_of,
    read_question,
)
from orchestrator.gateway.server import serve
from tests.orchestrator.gateway.heads import HEAD_KEY, FakeHead, gateway_at, json_answer

FAST = HeadAddress("fast", "", "", parallel=2, token_s=0.1, prefill_token_s=0.01)
SLOW = HeadAddress("slow", "", "", parallel=2, token_s=0.25, prefill_token_s=0.025)


def asked(*messages: str, new_tokens: int = 100) -> Question:
    return read_question(
        {"messages": [{"role": "user", "content": text} for text in messages], "max_tokens": new_tokens}
    )


def head_of(ticket: Ticket | None) -> str:
    assert ticket is not None
    return ticket.head


def test_the_fast_head_is_taken_until_the_slow_one_would_be_done_first() -> None:
    """Alone 10 s against 25 s; a second conversation on the fast one takes 20 s; a third has to wait for a slot."""
    router = Router([SLOW, FAST])
    assert [head_of(router.choose(asked(name), 0.0)) for name in ("a", "b", "c")] == ["fast", "fast", "slow"]


def test_an_ended_request_frees_its_slot() -> None:
    router = Router([FAST, SLOW])
    tickets = [router.choose(asked(name), 0.0) for name in ("a", "b")]
    for ticket in tickets:
        assert ticket is not None
        router.release(ticket)
    assert head_of(router.choose(asked("c"), 1.0)) == "fast"


def test_nobody_waits_behind_a_long_answer_while_another_head_is_idle() -> None:
    """An answer without a limit lasts longer than usual; the other head, which is slower, has a slot."""
    router = Router([HeadAddress("a", "", "", 1, token_s=0.05), HeadAddress("b", "", "", 1, token_s=0.06)])
    unlimited = read_question({"prompt": "one"})
    assert head_of(router.choose(unlimited, 0.0)) == "a"
    assert head_of(router.choose(unlimited, 13.0)) == "b"


def test_slots_are_filled_before_anybody_waits_at_a_head_twice_as_fast() -> None:
    """All answers go on for longer than is usual; with four at once the fast one is as fast as the slow one alone."""
    fast = HeadAddress("a", "", "", 4, token_s=0.05, step_s=0.1)
    slow = HeadAddress("b", "", "", 4, token_s=0.1, step_s=0.2)
    router = Router([fast, slow])
    heads = [head_of(router.choose(read_question({"prompt": str(number)}), 10.0 * number)) for number in range(8)]
    assert sorted(heads) == ["a"] * 4 + ["b"] * 4


def test_where_all_slots_are_taken_the_one_that_should_be_free_first_is_waited_for() -> None:
    """An answer that has outlived what is usual may go on for as long again; one with a limit is over by then."""
    slow = HeadAddress("slow", "", "", 1, token_s=0.12)
    router = Router([HeadAddress("fast", "", "", 1, token_s=0.1), slow])
    assert head_of(router.choose(read_question({"prompt": "endless"}), 0.0)) == "fast"
    assert head_of(router.choose(asked("short", new_tokens=50), 36.0)) == "slow"
    left = router.expected_s(asked("new", new_tokens=10), 40.0)
    assert 40.0 < left["fast"] < 42.0
    assert 2.0 < left["slow"] < 4.0
    assert head_of(router.choose(asked("new"), 40.0)) == "slow"


def test_an_answer_with_a_limit_is_over_when_that_is_reached_or_slower_than_was_known() -> None:
    """4,000 tokens of 0.1 s take 400 s: what is left of these is the most that is expected, past them as long again."""
    router = Router([HeadAddress("head", "", "", 1, token_s=0.1, prefill_token_s=1e-9)])
    router.choose(asked("long", new_tokens=4000), 0.0)
    left = [router.expected_s(asked("new", new_tokens=10), now)["head"] for now in (0.0, 300.0, 390.0, 410.0)]
    assert [round(one) for one in left] == [257, 101, 11, 411]


def test_a_conversation_goes_on_where_its_beginning_is_cached() -> None:
    """Two equal heads: the follow-up goes to the one that read the beginning, whichever is named first."""
    equal = [HeadAddress(name, "", "", parallel=2, token_s=0.1, prefill_token_s=0.01) for name in ("one", "two")]
    router = Router(equal)
    first, second = router.choose(asked("long " * 400), 0.0), router.choose(asked("other " * 400), 0.0)
    assert {head_of(first), head_of(second)} == {"one", "two"}
    for ticket in (first, second):
        assert ticket is not None
        router.release(ticket)
    assert head_of(router.choose(asked("other " * 400, "go on"), 9.0)) == head_of(second)
    assert head_of(router.choose(asked("long " * 400, "go on"), 9.0)) == head_of(first)


def test_choices_go_to_a_head_with_as_many_slots_or_to_none() -> None:
    heads = [HeadAddress("large", "", "", 3, 0.2), HeadAddress("small", "", "", 1, 0.1)]
    router = Router(heads)
    three = replace(asked("a"), choices=3, together=3)
    assert head_of(router.choose(three, 0.0)) == "large"
    assert router.choose(three, 0.0, without=["large"]) is None


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ({"messages": [], "n": 3}, 3),
        ({"prompt": "one"}, 1),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": ["one", "two"]}, 2),
        ({"prompt": [[1, 2], [3]], "n": 3}, 6),
    ],
)
def test_the_engine_answers_each_prompt_and_each_choice_by_itself(body: dict[str, object], count: int) -> None:
    assert choices_of(body) == count
    assert read_question(body).choices == count


def test_more_prompts_than_slots_are_answered_by_turns_and_nobody_else_meanwhile() -> None:
    """Six prompts of ten tokens on two slots: three turns, each token 0.2 s beside another one."""
    head = HeadAddress("head", "", "", 2, token_s=0.1, prefill_token_s=1e-9)
    router = Router([head])
    six = read_question({"prompt": ["one"] * 6, "max_tokens": 10})
    assert round(router.expected_s(six, 0.0)["head"], 3) == 6.0
    assert head_of(router.choose(six, 0.0)) == "head"
    assert router.expected_s(asked("next", new_tokens=10), 0.0)["head"] > 6.0


def test_what_is_learnt_of_a_conversation_alone_is_of_conversations_alone() -> None:
    """Eight at once take four times as long each; the last of them to end was not alone either."""
    router = Router([HeadAddress("head", "", "", parallel=8, token_s=0.1, prefill_token_s=0.01, step_s=0.4)])
    before = router.expected_s(asked("new"), 0.0)
    for round_ in range(20):
        tickets = [router.choose(asked(f"{round_} {number}"), 0.0) for number in range(8)]
        for ticket in tickets:
            assert ticket is not None
            router.release(ticket, {"predicted_ms": 40_000.0, "predicted_n": 100})
    assert router.expected_s(asked("new"), 0.0) == before


def test_conversations_with_the_same_instructions_do_not_replace_each_other_while_they_run() -> None:
    def said(*texts: str) -> Question:
        system = {"role": "system", "content": "be brief " * 100}
        users = [{"role": "user", "content": text} for text in texts]
        return read_question({"messages": [system, *users], "max_tokens": 10})

    router = Router([HeadAddress(name, "", "", parallel=4, token_s=0.1, prefill_token_s=0.01) for name in ("a", "b")])
    first = router.choose(said("one " * 300), 0.0, without=["b"])
    second = router.choose(said("two " * 300), 0.0, without=["b"])
    for ticket in (first, second):
        assert ticket is not None
        router.release(ticket)
    expected = router.expected_s(said("one " * 300, "go on"), 1.0)
    assert expected["a"] < 0.5 * expected["b"]
    assert head_of(router.choose(said("one " * 300, "go on"), 1.0)) == "a"


def test_what_another_request_reads_just_now_is_no_cache() -> None:
    """Two conversations with the same long instructions: the second reads them itself, wherever that is earlier."""

    def said(text: str) -> Question:
        system = {"role": "system", "content": "be kind " * 1000}
        return read_question({"messages": [system, {"role": "user", "content": text}], "max_tokens": 10})

    heads = [HeadAddress(name, "", "", 2, token_s=0.1, prefill_token_s=0.02) for name in ("a", "b")]
    router = Router(heads)
    first = router.choose(said("one"), 0.0)
    assert head_of(first) == "a"
    expected = router.expected_s(said("two"), 1.0)
    assert 40.0 < expected["b"] < expected["a"]
    assert head_of(router.choose(said("two"), 1.0)) == "b"
    assert first is not None
    router.release(first)
    assert router.expected_s(said("three"), 50.0)["a"] < 3.0


def test_heads_that_are_down_are_passed_over() -> None:
    router = Router([FAST, SLOW])
    assert head_of(router.choose(asked("a"), 0.0, without=["fast"])) == "slow"
    assert router.choose(asked("a"), 0.0, without=["fast", "slow"]) is None


def test_a_head_that_was_lost_is_left_alone_for_a_while_and_has_nothing_cached() -> None:
    """The conversation goes on elsewhere; later the head is as good as new; with no other left it is tried at once."""
    router = Router([FAST, SLOW])
    ticket = router.choose(asked("long " * 400), 0.0)
    assert ticket is not None
    router.lost(ticket, 0.0)
    assert head_of(router.choose(asked("long " * 400), HOLD_OFF_S - 1)) == "slow"
    assert head_of(router.choose(asked("b"), HOLD_OFF_S - 1, without=["slow"])) == "fast"
    assert head_of(router.choose(asked("c"), HOLD_OFF_S)) == "fast"


def test_instructions_that_all_conversations_share_tie_none_to_a_head() -> None:
    """One head has read them and is only a little later: a new conversation goes to the earlier one, its own stays."""
    heads = [HeadAddress(name, "", "", 2, token_s, 1e-6) for name, token_s in (("a", 0.1), ("b", 0.11))]
    system, question = {"role": "system", "content": "be kind " * 99}, {"role": "user", "content": "one"}
    first = read_question({"messages": [system, question], "max_tokens": 100})
    other = read_question({"messages": [system, {"role": "user", "content": "two"}], "max_tokens": 100})
    router = Router(heads)
    ticket = router.choose(first, 0.0, without=["a"])
    assert ticket is not None
    router.release(ticket)
    assert head_of(ticket) == "b"
    began = router.choose(other, 1.0)
    assert head_of(began) == "a"
    assert began is not None
    router.release(began)
    assert head_of(router.choose(first, 2.0)) == "b"


def test_each_choice_of_a_request_takes_a_slot() -> None:
    """Two choices fill the fast head: the next request is done earlier on the slow one."""
    router = Router([FAST, SLOW])
    two = read_question({"messages": [{"role": "user", "content": "a"}], "max_tokens": 100, "n": 2})
    assert head_of(router.choose(two, 0.0)) == "fast"
    assert head_of(router.choose(asked("b"), 0.0)) == "slow"


def test_a_ticket_is_given_back_once() -> None:
    """Given back again, even with timings, nothing is learnt from it."""
    router = Router([FAST])
    ticket = router.choose(asked("a"), 0.0)
    assert ticket is not None
    router.release(ticket)
    before = router.expected_s(asked("b"), 0.0)
    router.release(ticket, {"predicted_n": 100, "predicted_ms": 900_000, "prompt_n": 100, "prompt_ms": 900_000})
    assert router.expected_s(asked("b"), 0.0) == before


def test_a_head_that_has_become_slow_is_learnt_from_its_timings() -> None:
    router = Router([FAST, SLOW])
    for _ in range(20):
        ticket = router.choose(asked("a"), 0.0)
        assert ticket is not None
        router.release(ticket, {"predicted_n": 100, "predicted_ms": 100_000} if ticket.head == "fast" else {})
    assert head_of(router.choose(asked("new"), 0.0)) == "slow"


@given(st.integers(min_value=0, max_value=10_000))
def test_no_other_head_would_be_clearly_earlier(seed: int) -> None:
    """Over random heads and requests, each choice is the earliest with a free slot, or cached and not clearly later."""
    chance = random.Random(seed)
    heads = [
        HeadAddress(f"head{n}", "", "", chance.randint(1, 4), chance.uniform(0.01, 1), chance.uniform(0.001, 0.1))
        for n in range(chance.randint(1, 5))
    ]
    router, running = Router(heads), list[Ticket]()
    for now in range(30):
        question = asked(str(chance.randint(0, 5)), new_tokens=chance.randint(1, 200))
        expected = router.expected_s(question, now)
        used = [ticket.head for ticket in running]
        free = [head.name for head in heads if used.count(head.name) < head.parallel]
        ticket = router.choose(question, now)
        assert ticket is not None
        assert min(expected[name] for name in free or expected) >= CLEARLY * expected[ticket.head] - 1e-9
        running.append(ticket)
        if chance.random() < 0.7:
            router.release(running.pop(chance.randrange(len(running))))


@given(st.integers(min_value=0, max_value=10_000))
def test_no_request_waits_for_a_slot_while_another_head_has_a_free_one(seed: int) -> None:
    """An answer takes as long as it takes, and the router learns of it only when it is over.

    Most answers are short, some very long; the line lets in as many as there are slots.
    """
    chance = random.Random(seed)
    heads = [
        HeadAddress(f"head{n}", "", "", chance.randint(1, 4), chance.uniform(0.01, 0.1), chance.uniform(0.001, 0.1))
        for n in range(chance.randint(2, 4))
    ]
    token_s = {head.name: head.token_s * chance.uniform(0.5, 2) for head in heads}
    free = {head.name: head.parallel for head in heads}
    router, ends, now = Router(heads), list[tuple[float, int, Ticket]](), 0.0
    for number in range(60):
        now += chance.expovariate(0.5)
        if not any(free.values()):
            now = max(now, ends[0][0])
        while ends and ends[0][0] <= now:
            _, _, over = heapq.heappop(ends)
            free[over.head] += 1
            router.release(over)
        limit = chance.choice((None, 20, 200, 4000))
        begin = chance.choice("abcde") * chance.randint(1, 4000)
        ticket = router.choose(read_question({"prompt": begin, "max_tokens": limit}), now)
        assert ticket is not None
        free[ticket.head] -= 1
        assert free[ticket.head] >= 0
        tokens = min(100 * chance.paretovariate(1), limit or 10_000)
        heapq.heappush(ends, (now + tokens * token_s[ticket.head], number, ticket))


async def test_requests_are_answered_by_several_heads_and_say_by_which() -> None:
    """A head that refuses connections is passed over without the client noticing."""
    whole = {"choices": [], "timings": {"prompt_n": 1, "predicted_n": 1}}
    one, two = FakeHead(whole=json_answer(whole)), FakeHead(whole=json_answer(whole))
    async with (
        serve(one.app(), "127.0.0.1", 0, drain_s=1) as first,
        serve(two.app(), "127.0.0.1", 0, drain_s=1) as other,
    ):
        down = HeadAddress("down", "http://127.0.0.1:9", HEAD_KEY, 8, token_s=0.001, prefill_token_s=0.0001)
        others = [HeadAddress("second", other.url, HEAD_KEY, 2), down]
        async with gateway_at(first.url, others=others) as gateway:
            names = set()
            for question in ("a", "b", "c", "d"):
                body = {"messages": [{"role": "user", "content": question}]}
                response = await gateway.http.post("/v1/chat/completions", json=body)
                assert response.status_code == 200
                names.add(response.headers["x-meshctl-head"])
    assert names <= {"head", "second"}
    assert len(one.bodies) + len(two.bodies) == 4


def test_heads_come_and_go_and_tickets_of_one_that_is_gone_may_be_given_back() -> None:
    """The one that stays keeps what it is doing and has learnt."""
    router = Router([FAST])
    first = router.choose(asked("a"), 0.0)
    router.add([SLOW])
    assert router.slots == 4
    second = router.choose(asked("b"), 0.0)
    assert (head_of(first), head_of(second)) == ("fast", "fast")
    assert head_of(router.choose(asked("c"), 0.0)) == "slow"
    router.remove(["fast"])
    assert router.slots == 2
    assert head_of(router.choose(asked("d"), 0.0)) == "slow"
    assert first is not None
    assert second is not None
    router.release(first, {"predicted_ms": 1000, "predicted_n": 10})
    router.lost(second, 1.0)
    assert router.expected_s(asked("e"), 1.0).keys() == {"slow"}

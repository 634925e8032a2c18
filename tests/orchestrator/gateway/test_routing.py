"""Which head answers: the least expected finish, the cache that has the conversation, and what is learnt."""

import random

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.gateway.routing import CLEARLY, HeadAddress, Question, Router, Ticket, read_question
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


def test_heads_that_are_down_are_passed_over() -> None:
    router = Router([FAST, SLOW])
    assert head_of(router.choose(asked("a"), 0.0, without=["fast"])) == "slow"
    assert router.choose(asked("a"), 0.0, without=["fast", "slow"]) is None


def test_a_head_that_has_become_slow_is_learnt_from_its_timings() -> None:
    router = Router([FAST, SLOW])
    for _ in range(20):
        ticket = router.choose(asked("a"), 0.0)
        assert ticket is not None
        router.release(ticket, {"predicted_n": 100, "predicted_ms": 100_000} if ticket.head == "fast" else {})
    assert head_of(router.choose(asked("new"), 0.0)) == "slow"


@given(st.integers(min_value=0, max_value=10_000))
def test_no_other_head_would_be_clearly_earlier(seed: int) -> None:
    """Over random heads and requests, each choice is the earliest, or cached and not clearly later."""
    chance = random.Random(seed)
    heads = [
        HeadAddress(f"head{n}", "", "", chance.randint(1, 4), chance.uniform(0.01, 1), chance.uniform(0.001, 0.1))
        for n in range(chance.randint(1, 5))
    ]
    router, running = Router(heads), list[Ticket]()
    for now in range(30):
        question = asked(str(chance.randint(0, 5)), new_tokens=chance.randint(1, 200))
        expected = router.expected_s(question, now)
        ticket = router.choose(question, now)
        assert ticket is not None
        assert min(expected.values()) >= CLEARLY * expected[ticket.head] - 1e-9
        running.append(ticket)
        if chance.random() < 0.7:
            router.release(running.pop(chance.randrange(len(running))))


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

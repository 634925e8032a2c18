"""When a head hangs and when it is only slow."""

import httpx
import pytest

from orchestrator.watchdog import BATCH_TOKENS, LEAST_S, TIMES_PREDICTED, TIMES_USUAL, Look, Progress, look_at

METRICS = """\
# HELP llamacpp:n_decode_total Total number of llama_decode() calls
# TYPE llamacpp:n_decode_total counter
llamacpp:n_decode_total {decodes}
# HELP llamacpp:requests_processing Number of requests processing.
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing {working}
"""


def test_an_idle_head_never_hangs() -> None:
    progress = Progress(0.0)
    assert [progress.stuck_s(Look(False, 7), now_s) for now_s in (0.0, 100.0, 1e6)] == [0.0] * 3


def test_a_head_that_works_and_counts_no_further_is_stuck_since_it_last_did() -> None:
    progress = Progress(0.1)
    for second in range(10):
        assert progress.stuck_s(Look(True, second), float(second)) == 0.0
    assert progress.stuck_s(Look(True, 9), 15.0) == 6.0
    assert progress.stuck_s(Look(True, 9), 9.0 + LEAST_S + 1) > progress.limit_s
    assert progress.stuck_s(Look(True, 10), 40.0) == 0.0


def test_a_head_that_has_just_begun_is_not_stuck_since_its_last_answer() -> None:
    progress = Progress(0.1)
    progress.stuck_s(Look(False, 5), 0.0)
    assert progress.stuck_s(Look(True, 5), 1000.0) == 0.0
    assert progress.stuck_s(Look(True, 5), 1010.0) == 10.0


def test_a_head_that_does_not_answer_is_stuck_as_well() -> None:
    progress = Progress(0.1)
    progress.stuck_s(Look(False, 5), 0.0)
    assert progress.stuck_s(None, 10.0) == 0.0
    assert progress.stuck_s(None, 35.0) == 25.0
    assert progress.stuck_s(Look(False, 5), 36.0) == 0.0


def test_slow_heads_are_given_ten_times_what_they_usually_take_and_long_prompts_their_time() -> None:
    slow = Progress(0.1)
    for number in range(100):
        slow.stuck_s(Look(True, number), 8.0 * number)
    assert slow.limit_s == pytest.approx(TIMES_USUAL * 8.0, rel=0.01)


def test_only_a_prompt_that_is_read_is_given_the_time_of_a_long_prompt() -> None:
    """Of what is left of it, up to one batch."""
    progress = Progress(0.1)
    limits = []
    for to_read in (0, 100, 1000, 10_000_000):
        assert progress.stuck_s(Look(True, 1, to_read), 0.0) == 0.0
        limits.append(progress.limit_s)
    batch_s = TIMES_PREDICTED * 0.1 * BATCH_TOKENS
    assert limits == [LEAST_S, TIMES_PREDICTED * 10.0, TIMES_PREDICTED * 100.0, batch_s]
    assert Progress(0.1).limit_s == batch_s


def slot(working: bool, decoded: int, processed: int = 0) -> dict[str, object]:
    next_token = [{"n_decoded": decoded}]
    counts = {"n_prompt_tokens": 500, "n_prompt_tokens_processed": processed}
    return {"id": 0, "is_processing": working, "next_token": next_token, **counts}


@pytest.mark.parametrize(
    ("status", "text", "slots", "look"),
    [
        (200, METRICS.format(decodes=12, working=1), [slot(True, 3), slot(False, 0)], Look(True, 12)),
        (200, METRICS.format(decodes=12, working=1), [slot(True, 0), slot(True, 0, 200)], Look(True, 12, 800)),
        (200, METRICS.format(decodes=12, working=0), [], Look(False, 12)),
        (200, METRICS.format(decodes=12, working=1), [{"id": 0}], None),
        (200, "# nothing\n", [], None),
        (200, "{]", [], None),
        (503, METRICS.format(decodes=12, working=1), [], None),
    ],
)
async def test_a_head_is_looked_at_by_its_metrics_and_slots(
    status: int, text: str, slots: list[dict[str, object]], look: Look | None
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, text=text) if request.url.path == "/metrics" else httpx.Response(200, json=slots)

    transport = httpx.MockTransport(answer)
    async with httpx.AsyncClient(transport=transport, base_url="http://head") as client:
        assert await look_at(client) == look

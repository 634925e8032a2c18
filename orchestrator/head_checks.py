"""What a head is asked after its start: whether the model is loaded, whether its numbers are good, how fast it is.

Every question has a deadline, and a failure comes with the log of what has ended or of the head.
"""

import asyncio
import math
import statistics
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

import httpx

from orchestrator.errors import BringUpError
from orchestrator.head_client import head_client
from orchestrator.plan.values import Group
from orchestrator.processes import POLL_S, Head, Started, ended_by_itself
from orchestrator.survey.values import LONG_PROMPT
from workers.head_log import plain_log

KNOWN_PROMPT = "The capital of France is"
LONG_TEXT = (
    "In the beginning the machines stood alone, each in its own room, and none of them could hold the whole book. "
    "Then somebody laid a cable between them, cut the book into chapters, and let every one read its own part aloud. "
)
"""Read again and again for a long prompt: words as they come, since what an expert layer does depends on them."""

DECODE_TOKENS = 32
DECODE_S = 4.0
PREFILL_S = 3.0
REPETITIONS = 3
ROOM_TOKENS = 16
"""Cells of a conversation that a measured prompt leaves free."""

LATE = 10
LATE_S = 60.0
"""A measurement may take this many times what was predicted, and this much more."""


@dataclass(frozen=True)
class Answer:
    """What the head made of the known prompt."""

    text: str
    tokens: int
    decode_tokens_per_s: float


@dataclass(frozen=True)
class HeadSpeed:
    """As a `Group` predicts it: per token of one conversation, per step of all of them, for its whole prompt."""

    token_s: float
    step_s: float
    prefill_s: float


async def wait_loaded(head: Head, started: Started, *, deadline_s: float, on_wait: Callable[[float], None]) -> None:
    """Wait until the model is loaded; `on_wait` gets the seconds passed.

    BringUpError with the log of what has ended, or with the head's when it is late.
    """
    began = monotonic()
    async with head_client(head.url, head.key, timeout=5) as client:
        while not await _is_healthy(client):
            passed = monotonic() - began
            if not all(process.running for process in started.processes):
                raise await ended_by_itself(started.processes, "while the model was loaded")
            if passed > deadline_s:
                raise await head_failed(head, f"did not load the model within {deadline_s:.0f} s")
            on_wait(passed)
            await asyncio.sleep(POLL_S)


async def check_answer(head: Head, started: Started, *, deadline_s: float, tokens: int = 8) -> Answer:
    """Ask a known prompt; BringUpError unless it answers in time with finite numbers, and with whatever has ended.

    `null` log-probabilities are how NaN logits show while the status is 200 and the health is green.
    """
    fields = {"prompt": KNOWN_PROMPT, "n_predict": tokens, "n_probs": 1}
    reply = await _ask(head, started, "/completion", fields, deadline_s)
    try:
        body = reply.json()
        numbers = [entry.get("logprob") for entry in body.get("completion_probabilities", ())]
        answer = Answer(body["content"], body["tokens_predicted"], body["timings"]["predicted_per_second"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise await _unreadable(head, reply) from error
    if not numbers or not all(isinstance(number, float | int) and math.isfinite(number) for number in numbers):
        raise await head_failed(head, "answers, but its numbers are not finite: the result would be garbage")
    return answer


async def measure_head(head: Head, started: Started, group: Group, context: int) -> HeadSpeed:
    """Run it for a few seconds, by the prediction: single tokens, all conversations at once, and a prompt.

    `context` is the tokens of one conversation. BringUpError as in `check_answer`.
    """
    generate, prompt = decode_tokens(group), measured_prompt(group, context)
    predicted_s = max(generate * group.step_s, group.prefill_s * prompt / group.prompt_tokens)
    patience_s = LATE_S + LATE * predicted_s
    tokens = await _tokens(head, started, prompt)

    async def per_token_s() -> float:
        fields = {"prompt": KNOWN_PROMPT, "n_predict": generate}
        return await _timing_s(head, started, fields, "predicted_per_token_ms", patience_s)

    async def prefill_s() -> float:
        seconds = await _timing_s(head, started, {"prompt": tokens, "n_predict": 1}, "prompt_ms", patience_s)
        return seconds * prompt_scale(group, len(tokens))

    token_s = await _median_of_runs(per_token_s, DECODE_S)
    step_s = token_s
    if group.parallel > 1:
        step_s = statistics.median(await asyncio.gather(*(per_token_s() for _ in range(group.parallel))))
    return HeadSpeed(token_s, step_s, await _median_of_runs(prefill_s, PREFILL_S))


def decode_tokens(group: Group) -> int:
    """How many tokens a decode run has: fewer where all of them are predicted to take longer than `DECODE_S`."""
    return max(4, min(DECODE_TOKENS, int(DECODE_S / group.step_s)))


def measured_prompt(group: Group, context: int) -> int:
    """Tokens of the prompt: those of the prediction, or as many whole micro-batches of them as `PREFILL_S` holds."""
    most = min(group.prompt_tokens, context - ROOM_TOKENS)
    if group.prefill_s <= PREFILL_S:
        return most
    batches = int(PREFILL_S / group.prefill_s * group.prompt_tokens / group.micro_batch)
    return min(most, max(2, batches) * group.micro_batch)


def prompt_scale(group: Group, tokens: int) -> float:
    """How much longer the prompt of the prediction takes than one of `tokens`.

    Of a pipeline of s stages, m micro-batches take (s - 1 + m) times the slowest stage, were all equally slow
    (`plan.costs.pipeline_s`), half a micro-batch half of s; without overlap s counts as one. What the context adds
    grows with the prompt's square, beyond the passes that were timed (`plan.costs.average_context`).
    """
    alone_s, size = group.prefill_s - group.context_s, min(group.micro_batch, LONG_PROMPT)
    whole, part = (count * max(0, count - size) for count in (group.prompt_tokens, tokens))
    context_s = group.context_s * part / whole if whole else 0.0
    return group.prefill_s / (alone_s / _scale_without_context(group, tokens) + context_s)


def _scale_without_context(group: Group, tokens: int) -> float:
    stages = len(group.shares) if group.mode == "layers" and not group.head_layers else 1
    whole, part = (
        stages * count if count < 1 else stages - 1 + count
        for count in (group.prompt_tokens / group.micro_batch, tokens / group.micro_batch)
    )
    return whole / part


async def head_failed(head: Head, what: str) -> BringUpError:
    """The error for a head, with the last lines of its own log."""
    tail = plain_log(await head.process.log_tail(lines=30))
    return BringUpError(f"{head.host}: the head {what}", hint=f"whole log: `meshctl logs {head.host}`", details=tail)


async def _median_of_runs(run: Callable[[], Awaitable[float]], enough_s: float) -> float:
    """The median of up to `REPETITIONS` runs, no further one after `enough_s` seconds."""
    began, results = monotonic(), [await run()]
    while len(results) < REPETITIONS and monotonic() - began < enough_s:
        results.append(await run())
    return statistics.median(results)


async def _tokens(head: Head, started: Started, count: int) -> list[int]:
    """`count` tokens of a text, in the head's own vocabulary."""
    reply = await _ask(head, started, "/tokenize", {"content": LONG_TEXT * (1 + count // 16)}, 60)
    try:
        tokens = [int(token) for token in reply.json()["tokens"]][:count]
    except (ValueError, LookupError, TypeError) as error:
        raise await _unreadable(head, reply) from error
    if not tokens:
        raise await _unreadable(head, reply)
    return tokens


async def _timing_s(head: Head, started: Started, fields: dict[str, object], name: str, deadline_s: float) -> float:
    reply = await _ask(head, started, "/completion", fields, deadline_s)
    try:
        return float(reply.json()["timings"][name]) / 1000
    except (ValueError, LookupError, TypeError) as error:
        raise await _unreadable(head, reply) from error


async def _ask(head: Head, started: Started, path: str, fields: dict[str, Any], deadline_s: float) -> httpx.Response:
    """The head's answer with status 200; BringUpError with the log of what has ended, or with the head's."""
    fixed = {"temperature": 0, "ignore_eos": True, "cache_prompt": False} if path == "/completion" else {}
    try:
        async with head_client(head.url, head.key, timeout=deadline_s) as client:
            reply = await client.post(path, json=fields | fixed)
    except httpx.HTTPError as error:
        if not all(process.running for process in started.processes):
            raise await ended_by_itself(started.processes, "while a test prompt was answered") from error
        raise await head_failed(head, f"did not answer a test prompt within {deadline_s:.0f} s ({error!r})") from error
    if reply.status_code != httpx.codes.OK:
        raise await head_failed(head, f"answered a test prompt with status {reply.status_code}: {reply.text[:200]}")
    return reply


async def _unreadable(head: Head, reply: httpx.Response) -> BringUpError:
    return await head_failed(head, f"gave an answer that cannot be read: {reply.text[:200]}")


async def _is_healthy(client: httpx.AsyncClient) -> bool:
    try:
        reply = await client.get("/health")
    except httpx.HTTPError:
        return False
    return reply.status_code == httpx.codes.OK

"""Notice a head that works and gets nowhere.

A worker that is stopped, or whose path carries nothing any more, ends no process: the head waits for it for ever and
calls itself healthy. Its count of decode calls, in `/metrics`, goes on being told during that, and stands still. What
its slots do is in `/slots`: a decode call with a part of a prompt may take long, one for the next tokens never does.
"""

import asyncio
from dataclasses import dataclass
from time import monotonic

import httpx
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.head_client import head_client
from orchestrator.plan.values import Group
from orchestrator.processes import Head

LOOK_EVERY_S = 2.0
LOOK_TIMEOUT_S = 5.0
LEAST_S = 20.0
"""Nothing is called a hang sooner."""

TIMES_USUAL = 10
TIMES_PREDICTED = 3
BATCH_TOKENS = 2048
"""One decode call of the head takes up to this many tokens of a prompt: its `--batch-size`."""

LEARNING = 0.2


@dataclass(frozen=True)
class Look:
    """What a head says of itself: whether it works on requests, its decode calls since its start, and how many tokens
    of prompts it still has to read."""

    working: bool
    decodes: int
    to_read: int = 0


class Progress:
    """Looks at one head, one after the other. Pure; the time is passed in."""

    def __init__(self, prompt_token_s: float) -> None:
        """`prompt_token_s`: what reading a token of a prompt is predicted to take."""
        self._prompt_token_s = prompt_token_s
        self._to_read = BATCH_TOKENS  # until it is told
        self._usual_s = 0.0
        self._decodes: int | None = None
        self._since_s: float | None = None

    @property
    def limit_s(self) -> float:
        """Without progress for longer than this it hangs."""
        call_s = self._prompt_token_s * min(self._to_read, BATCH_TOKENS)
        return max(LEAST_S, TIMES_PREDICTED * call_s, TIMES_USUAL * self._usual_s)

    def stuck_s(self, look: Look | None, now_s: float) -> float:
        """For how long it has worked without progress, 0 when it does not; None: it did not answer, which is none."""
        if look is None:
            self._since_s = now_s if self._since_s is None else self._since_s
            return now_s - self._since_s
        moved = self._decodes is None or look.decodes != self._decodes
        if moved and self._since_s is not None and self._decodes is not None:
            calls = max(1, look.decodes - self._decodes)
            self._usual_s += LEARNING * ((now_s - self._since_s) / calls - self._usual_s)
        self._decodes, self._to_read = look.decodes, look.to_read
        if not look.working:
            self._since_s = None
            return 0.0
        if moved or self._since_s is None:
            self._since_s = now_s
        return now_s - self._since_s


async def until_stuck(head: Head, group: Group) -> float:
    """Look at a head until it hangs; for how many seconds it has."""
    progress = Progress(group.prefill_s / group.prompt_tokens)
    async with head_client(head.url, head.key, timeout=LOOK_TIMEOUT_S) as client:
        client.headers["connection"] = "close"  # a kept one would hide that nobody else gets through
        while True:
            stuck_s = progress.stuck_s(await look_at(client), monotonic())
            if stuck_s > progress.limit_s:
                return stuck_s
            await asyncio.sleep(LOOK_EVERY_S)


async def look_at(client: httpx.AsyncClient) -> Look | None:
    """What the head says; None where it says nothing, or nothing that can be read."""
    try:
        answer = await client.get("/metrics")
        values = {
            sample.name: sample.value
            for family in text_string_to_metric_families(answer.raise_for_status().text)
            for sample in family.samples
        }
        working, decodes = values["llamacpp:requests_processing"] > 0, int(values["llamacpp:n_decode_total"])
        return Look(working, decodes, await _to_read(client) if working else 0)
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        return None


async def _to_read(client: httpx.AsyncClient) -> int:
    """Tokens of the prompts of slots that have not generated anything yet."""
    slots = (await client.get("/slots")).raise_for_status().json()
    reading = (slot for slot in slots if slot["is_processing"] and slot["next_token"][0]["n_decoded"] == 0)
    return sum(max(0, slot["n_prompt_tokens"] - slot["n_prompt_tokens_processed"]) for slot in reading)

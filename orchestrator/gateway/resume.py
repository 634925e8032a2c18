"""A stream whose head was lost, continued by another one: what is asked of that. Pure.

The next head is given the text that has been passed on and asked for what comes behind it. Text is cut where the first
head had cut it, between two pieces: tokens are whole there. What it says next is what a fresh request with that text
would be given; a head holds back what may be the beginning of a stop string, so such a string is found across the seam.
"""

from collections.abc import Mapping
from typing import Any

from orchestrator.gateway.fields import Body

CHAT = "/v1/chat/completions"
LIMITS = ("max_tokens", "max_completion_tokens")

NEVER = ("tools", "grammar", "json_schema", "response_format", "logprobs", "top_logprobs")
"""Requests with one of these are not continued: what a head keeps of them beside the text is lost with it."""

NOTHING: tuple[object, ...] = (None, False, [], {}, {"type": "text"})


def continued(path: str, body: Mapping[str, Any], text: str, tokens: int) -> Body | None:
    """The request for what comes behind `text`, which had so many tokens; None where it cannot be asked for exactly.

    A limit on tokens is lowered by those; it is 0 or less when they were all that was wanted.
    """
    if body.get("n") not in (None, 1) or any(body.get(field) not in NOTHING for field in NEVER):
        return None
    longer = _chat(body, text) if path == CHAT else _completion(body, text)
    if longer is None:
        return None
    return {**longer, **{field: body[field] - tokens for field in LIMITS if isinstance(body.get(field), int)}}


def is_complete(body: Mapping[str, Any]) -> bool:
    """Whether nothing is left of the tokens that a continued request may have."""
    return any(isinstance(body.get(field), int) and body[field] <= 0 for field in LIMITS)


def _chat(body: Mapping[str, Any], text: str) -> dict[str, Any] | None:
    messages = body.get("messages")
    if not isinstance(messages, list):
        return None
    so_far: list[Mapping[str, Any]] = [*messages]
    if body.get("continue_final_message"):
        before = so_far.pop().get("content") if so_far else None
        if not isinstance(before, str):
            return None
        text = before + text
    return {
        **body,
        "messages": [*so_far, {"role": "assistant", "content": text}],
        "continue_final_message": True,
        "add_generation_prompt": False,
    }


def _completion(body: Mapping[str, Any], text: str) -> dict[str, Any] | None:
    prompt = body.get("prompt")
    return {**body, "prompt": prompt + text} if isinstance(prompt, str) else None

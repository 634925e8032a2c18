"""Which head answers a request: the one that is expected to finish it first. Pure; the time is passed in.

What a request costs on a head follows from that head's measured speed, from what runs there already, and from how much
of the conversation's beginning it has in its cache, which is what keeps a conversation on one head.
"""

import hashlib
import json
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CHARACTERS_PER_TOKEN = 4
"""Of English text with the vocabularies of today; only the comparison of heads depends on it."""

USUAL_NEW_TOKENS = 256
"""What an answer is taken to have when the request sets no limit."""

BLOCK_CHARACTERS = 256
"""A prompt without messages is compared by blocks of this size."""

CLEARLY = 0.8
"""A conversation leaves the head that has it cached only for one that is done in less than this part of the time."""

LEARNING = 0.2
"""How much one answer's timings count against all before."""


@dataclass(frozen=True)
class HeadAddress:
    """One head: how it is reached, how many conversations it takes at once, and its measured speed.

    `token_s`: per token of one conversation; `step_s`: per step of `parallel` at once (0.0: as if one after the other);
    `prefill_token_s`: per prompt token.
    """

    name: str
    url: str
    key: str = field(repr=False)
    parallel: int = 1
    token_s: float = 0.1
    prefill_token_s: float = 0.01
    step_s: float = 0.0


@dataclass(frozen=True)
class Question:
    """What routing sees of a request: digests of its beginning, part by part, with the tokens up to each, and the
    number of tokens it may be answered with."""

    digests: tuple[str, ...]
    tokens: tuple[int, ...]
    new_tokens: int

    @property
    def prompt_tokens(self) -> int:
        return self.tokens[-1] if self.tokens else 0


@dataclass(frozen=True)
class Ticket:
    """A request's place on a head; to be given back with `Router.release`."""

    head: str
    number: int


def read_question(body: Mapping[str, Any]) -> Question:
    """Of a chat or a completion; a body of another form counts as short."""
    parts = _parts(body)
    seen, characters = hashlib.blake2b(digest_size=16), 0
    digests, tokens = [], []
    for part in parts:
        seen.update(part.encode(errors="replace") + b"\0")
        characters += len(part)
        digests.append(seen.hexdigest())
        tokens.append(max(1, characters // CHARACTERS_PER_TOKEN))
    asked = body.get("max_tokens") or body.get("max_completion_tokens")
    new_tokens = asked if isinstance(asked, int) and asked > 0 else USUAL_NEW_TOKENS
    return Question(tuple(digests), tuple(tokens), min(new_tokens, 10 * USUAL_NEW_TOKENS))


class Router:
    """Chooses among heads, remembers what each is doing and has in its cache, and learns their speeds."""

    def __init__(self, heads: Sequence[HeadAddress]) -> None:
        self._heads = {head.name: _HeadState(head) for head in heads}
        self._number = 0

    def choose(self, question: Question, now_s: float, *, without: Collection[str] = ()) -> Ticket | None:
        """The head expected to finish first, among those not in `without`; None when none is left."""
        finish = {name: state.finish_s(question, now_s) for name, state in self._heads.items() if name not in without}
        if not finish:
            return None
        best = min(finish, key=lambda name: (finish[name], name))
        cached = max(finish, key=lambda name: (self._heads[name].cached_tokens(question), name == best))
        if self._heads[cached].cached_tokens(question) and finish[best] > CLEARLY * finish[cached]:
            best = cached
        self._number += 1
        self._heads[best].begin(self._number, question, now_s)
        return Ticket(best, self._number)

    def release(self, ticket: Ticket, timings: Mapping[str, Any] | None = None) -> None:
        """The request has ended; the head's own `timings` of it, if there are any, teach its speed."""
        self._heads[ticket.head].end(ticket.number, timings or {})

    def expected_s(self, question: Question, now_s: float) -> dict[str, float]:
        """Seconds until each head would have answered."""
        return {name: state.finish_s(question, now_s) for name, state in self._heads.items()}


class _HeadState:
    """What one head is doing and what its slots have cached: the conversations it served last, one per slot."""

    def __init__(self, address: HeadAddress) -> None:
        self._parallel = address.parallel
        self._token_s = address.token_s
        self._prefill_token_s = address.prefill_token_s
        self._crowding = (address.step_s or address.parallel * address.token_s) / address.token_s
        self._ends_s: dict[int, float] = {}
        self._served: deque[tuple[str, ...]] = deque(maxlen=address.parallel)

    def cached_tokens(self, question: Question) -> int:
        """How many tokens of the question's beginning a slot has already read."""
        known = {digest for digests in self._served for digest in digests}
        hits = [tokens for digest, tokens in zip(question.digests, question.tokens, strict=True) if digest in known]
        return max(hits, default=0)

    def finish_s(self, question: Question, now_s: float) -> float:
        """Seconds until it would have answered: waiting for a slot, reading what is new, generating."""
        ends = sorted(max(0.0, end - now_s) for end in self._ends_s.values())
        waiting = len(ends) - self._parallel
        wait_s = ends[waiting] if waiting >= 0 else 0.0
        beside = min(len(ends), self._parallel - 1)
        to_read = question.prompt_tokens - self.cached_tokens(question)
        return wait_s + to_read * self._prefill_token_s + question.new_tokens * self._token_with(beside)

    def begin(self, number: int, question: Question, now_s: float) -> None:
        self._ends_s[number] = now_s + self.finish_s(question, now_s)
        known = [digests for digests in self._served if not set(digests) & set(question.digests)]
        self._served = deque((*known, question.digests), maxlen=self._parallel)

    def end(self, number: int, timings: Mapping[str, Any]) -> None:
        alone = len(self._ends_s) == 1
        self._ends_s.pop(number, None)
        if alone:
            self._token_s = _learnt(self._token_s, timings.get("predicted_ms"), timings.get("predicted_n"))
        self._prefill_token_s = _learnt(self._prefill_token_s, timings.get("prompt_ms"), timings.get("prompt_n"))

    def _token_with(self, beside: int) -> float:
        """Seconds per token with so many other conversations at once: linear up to all slots."""
        full = max(1, self._parallel - 1)
        return self._token_s * (1 + (self._crowding - 1) * beside / full)


def _learnt(known_s: float, total_ms: object, count: object) -> float:
    numbers = isinstance(total_ms, int | float) and isinstance(count, int | float)
    if not numbers or not count > 4 or not total_ms > 0:  # type: ignore[operator] # both are numbers here
        return known_s
    return (1 - LEARNING) * known_s + LEARNING * total_ms / count / 1000  # type: ignore[operator] # as above


def _parts(body: Mapping[str, Any]) -> list[str]:
    messages = body.get("messages")
    if isinstance(messages, list):
        return [json.dumps(message, sort_keys=True) for message in messages]
    prompt = body.get("prompt")
    text = prompt if isinstance(prompt, str) else json.dumps(prompt)
    return [text[start : start + BLOCK_CHARACTERS] for start in range(0, len(text), BLOCK_CHARACTERS)]

"""Which head answers a request: the one that is expected to finish it first. Pure; the time is passed in.

What a request costs on a head follows from that head's measured speed, from what runs there already, and from how much
of the conversation's beginning an idle slot of it has cached, which is what keeps a conversation on one head.
"""

import hashlib
import json
import math
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

HOLD_OFF_S = 5.0
"""A head that could not be reached is asked again after this long, or when no other is left."""

INSTRUCTIONS = frozenset({"system", "developer"})
"""Roles whose messages many conversations share: having read them makes no conversation a head's own."""

ALIKE = 0.1
"""The engine takes an idle slot for a request if that has more than this part of it (`slot_prompt_similarity`)."""

LEARNING = 0.2
"""How much one answer's timings count against all before."""


@dataclass(frozen=True)
class HeadAddress:
    """One head: how it is reached, how many conversations it takes at once, and its measured speed.

    `token_s`: per token of one conversation; `step_s`: per step of `parallel` at once (0.0: as if one after the other);
    `prefill_token_s`: per prompt token. A conversation may hold `context` tokens (0: not told).
    """

    name: str
    url: str
    key: str = field(repr=False)
    parallel: int = 1
    token_s: float = 0.1
    prefill_token_s: float = 0.01
    step_s: float = 0.0
    context: int = 0


@dataclass(frozen=True)
class Question:
    """What routing sees of a request: digests of its beginning, part by part, with the tokens up to each, the number of
    tokens each of its `choices` is taken to have and the most it may have, and how many parts are `shared`
    instructions. A head must have slots for `together` of the choices, those of one prompt; further ones wait there."""

    digests: tuple[str, ...]
    tokens: tuple[int, ...]
    new_tokens: int
    choices: int = 1
    shared: int = 0
    together: int = 1
    most_tokens: float = math.inf

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
    limit = _positive(body.get("max_tokens") or body.get("max_completion_tokens"), 0)
    return Question(
        digests=tuple(digests),
        tokens=tuple(tokens),
        new_tokens=min(limit or USUAL_NEW_TOKENS, 10 * USUAL_NEW_TOKENS),
        choices=choices_of(body),
        shared=_instructions(body.get("messages")),
        most_tokens=limit or math.inf,
        together=_positive(body.get("n"), 1),
    )


def choices_of(body: Mapping[str, Any]) -> int:
    """How many answers it wants: `n` for each of its prompts. The engine makes a task of its own of each."""
    prompt = body.get("prompt")
    prompts = 1
    if isinstance(prompt, list) and not all(isinstance(one, int) for one in prompt):
        prompts = len(prompt)
    return prompts * _positive(body.get("n"), 1)


class Router:
    """Chooses among heads, remembers what each is doing and has in its cache, and learns their speeds."""

    def __init__(self, heads: Sequence[HeadAddress]) -> None:
        self._heads = {head.name: _HeadState(head) for head in heads}
        self._number = 0

    def add(self, heads: Sequence[HeadAddress]) -> None:
        """From now on among these as well."""
        self._heads |= {head.name: _HeadState(head) for head in heads}

    def remove(self, names: Collection[str]) -> None:
        """These are gone; tickets for them may still be given back."""
        self._heads = {name: state for name, state in self._heads.items() if name not in names}

    def choose(self, question: Question, now_s: float, *, without: Collection[str] = ()) -> Ticket | None:
        """The head expected to finish first, among those not in `without`; None when none is left.

        One that could not be reached a moment ago is taken only when no other is left, one that has no slot free for
        the request only when no other has, however much faster it is: nobody knows how long the answers there go on,
        and the line lets in no more than there are slots. One with fewer slots than the request has choices of a prompt
        is never taken: it would refuse them.
        """
        left = {
            name: state
            for name, state in self._heads.items()
            if name not in without and state.parallel >= question.together
        }
        left = {name: state for name, state in left.items() if not state.is_held_off(now_s)} or left
        left = {name: state for name, state in left.items() if state.has_room(question)} or left
        if not left:
            return None
        finish = {name: state.finish_s(question, now_s) for name, state in left.items()}
        best = min(finish, key=lambda name: (finish[name], name))
        cached = max(left, key=lambda name: (left[name].own_tokens(question), name == best))
        if left[cached].own_tokens(question) and finish[best] > CLEARLY * finish[cached]:
            best = cached
        self._number += 1
        self._heads[best].begin(self._number, question, now_s)
        return Ticket(best, self._number)

    def release(self, ticket: Ticket, timings: Mapping[str, Any] | None = None) -> None:
        """The request has ended; the head's own `timings` of it, if there are any, teach its speed.

        A ticket that was given back already changes nothing.
        """
        if (state := self._heads.get(ticket.head)) is not None:
            state.end(ticket.number, timings or {})

    def lost(self, ticket: Ticket, now_s: float) -> None:
        """The head could not be reached: whatever it had cached is taken as gone, and it is left alone for a while."""
        if (state := self._heads.get(ticket.head)) is not None:
            state.lose(ticket.number, now_s)

    @property
    def context(self) -> int:
        """The tokens that a conversation may hold at whichever head; 0: not told."""
        return min((state.context for state in self._heads.values() if state.context), default=0)

    @property
    def slots(self) -> int:
        """Of all heads together."""
        return sum(state.parallel for state in self._heads.values())

    @property
    def most_slots(self) -> int:
        """Of the head that has most of them."""
        return max((state.parallel for state in self._heads.values()), default=0)

    def expected_s(self, question: Question, now_s: float) -> dict[str, float]:
        """Seconds until each head would have answered."""
        return {name: state.finish_s(question, now_s) for name, state in self._heads.items()}


@dataclass(frozen=True)
class _Served:
    """A conversation that a slot has cached; `request` is the one that it is used by just now, None: it is idle."""

    digests: tuple[str, ...]
    request: int | None

    def common_tokens(self, question: Question, since: int = 0) -> int:
        """How many tokens of the question's beginning it has, if that is more than the parts before `since`."""
        parts = enumerate(zip(question.digests, question.tokens, strict=True))
        return max((size for part, (digest, size) in parts if part >= since and digest in self.digests), default=0)


@dataclass(frozen=True)
class _Running:
    """A request at a head since `begun_s`, in so many of its slots: how long it should take there, and how long with
    all tokens it may have."""

    slots: int
    begun_s: float
    usual_s: float
    most_s: float

    def left_s(self, now_s: float) -> float:
        """Seconds it is expected to go on: as long again as it has lasted, at least as long as it should have taken.

        It ends with its last token at the latest; one that is not over by then is slower than was known.
        """
        lasted_s = now_s - self.begun_s
        again_s = max(self.usual_s, lasted_s)
        return min(again_s, self.most_s - lasted_s) if lasted_s < self.most_s else again_s


class _HeadState:
    """What one head is doing and what its slots have cached: the conversations it served last, one per slot."""

    def __init__(self, address: HeadAddress) -> None:
        self.parallel = address.parallel
        self.context = address.context
        self._token_s = address.token_s
        self._prefill_token_s = address.prefill_token_s
        self._crowding = (address.step_s or address.parallel * address.token_s) / address.token_s
        self._running: dict[int, _Running] = {}  # by request
        self._alone = set[int]()  # requests beside which no other has run
        self._back_s = float("-inf")
        self._served = list[_Served]()  # the one used last at the end

    def own_tokens(self, question: Question) -> int:
        """How much of the question's beginning is cached, if more than what other conversations begin with as well."""
        return self._cached_tokens(question, since=question.shared)

    def is_held_off(self, now_s: float) -> bool:
        """Whether it could not be reached a moment ago."""
        return now_s < self._back_s

    def has_room(self, question: Question) -> bool:
        """Whether a slot is free for each of its choices; one that wants more than there are wants all."""
        return self._taken + self._slots_for(question) <= self.parallel

    def finish_s(self, question: Question, now_s: float) -> float:
        """Seconds until it would have answered: waiting for a slot per choice, reading what is new, generating."""
        left = sorted(one.left_s(now_s) for one in self._running.values() for _ in range(one.slots))
        waiting = len(left) + self._slots_for(question) - 1 - self.parallel
        wait_s = left[waiting] if waiting >= 0 else 0.0
        to_read = question.prompt_tokens - self._cached_tokens(question)
        turns = math.ceil(question.choices / self.parallel)
        return wait_s + to_read * self._prefill_token_s + turns * question.new_tokens * self._token_for(question)

    def begin(self, number: int, question: Question, now_s: float) -> None:
        usual_s = self.finish_s(question, now_s)
        most_s = usual_s + (question.most_tokens - question.new_tokens) * self._token_for(question)
        self._alone = {number} if not self._running and question.choices == 1 else set()
        self._running[number] = _Running(self._slots_for(question), now_s, usual_s, most_s)
        if (replaced := self._replaced(question)) is not None:
            self._served.remove(replaced)
        self._served.append(_Served(question.digests, number))

    def end(self, number: int, timings: Mapping[str, Any]) -> None:
        if self._running.pop(number, None) is None:
            return
        used = [one for one in self._served if one.request == number]
        self._served = [one for one in self._served if one.request != number]
        self._served += [_Served(one.digests, None) for one in used]
        if number in self._alone:
            self._token_s = _learnt(self._token_s, timings.get("predicted_ms"), timings.get("predicted_n"))
        self._prefill_token_s = _learnt(self._prefill_token_s, timings.get("prompt_ms"), timings.get("prompt_n"))

    def lose(self, number: int, now_s: float) -> None:
        self._running.pop(number, None)
        self._served.clear()
        self._back_s = now_s + HOLD_OFF_S

    @property
    def _taken(self) -> int:
        """Slots that are used or waited for."""
        return sum(one.slots for one in self._running.values())

    @property
    def _idle(self) -> list[_Served]:
        """A slot reads what another one reads just now once more: the engine reuses only what idle slots have."""
        return [one for one in self._served if one.request is None]

    def _slots_for(self, question: Question) -> int:
        return min(question.choices, self.parallel)

    def _cached_tokens(self, question: Question, since: int = 0) -> int:
        """How many tokens of the question's beginning a slot that may take it has already read."""
        return max((one.common_tokens(question, since) for one in self._idle), default=0)

    def _replaced(self, question: Question) -> "_Served | None":
        """What the engine overwrites: the idle slot whose beginning is most like the request's, if that is more than
        `ALIKE` of it; else nothing while a slot is free; else the one that was used longest ago."""
        idle = self._idle
        alike = max(idle, key=lambda one: one.common_tokens(question), default=None)
        if alike is not None and alike.common_tokens(question) > ALIKE * question.prompt_tokens:
            return alike
        if len(self._served) < self.parallel:
            return None
        return (idle or self._served)[0]

    def _token_for(self, question: Question) -> float:
        """Seconds per token of it beside what runs now: linear up to all slots."""
        full = self.parallel - 1
        beside = min(self._taken + self._slots_for(question) - 1, full)
        return self._token_s * (1 + (self._crowding - 1) * beside / max(1, full))


def _learnt(known_s: float, total_ms: object, count: object) -> float:
    numbers = isinstance(total_ms, int | float) and isinstance(count, int | float)
    if not numbers or not count > 4 or not total_ms > 0:  # type: ignore[operator] # both are numbers here
        return known_s
    return (1 - LEARNING) * known_s + LEARNING * total_ms / count / 1000  # type: ignore[operator] # as above


def _positive(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) and value > 0 else otherwise


def _instructions(messages: object) -> int:
    """How many messages at the beginning are instructions."""
    said = messages if isinstance(messages, list) else []
    are = [isinstance(one, dict) and one.get("role") in INSTRUCTIONS for one in said]
    return are.index(False) if False in are else len(are)


def _parts(body: Mapping[str, Any]) -> list[str]:
    messages = body.get("messages")
    if isinstance(messages, list):
        return [json.dumps(message, sort_keys=True) for message in messages]
    prompt = body.get("prompt")
    text = prompt if isinstance(prompt, str) else json.dumps(prompt)
    return [text[start : start + BLOCK_CHARACTERS] for start in range(0, len(text), BLOCK_CHARACTERS)]

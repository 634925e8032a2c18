"""How fast a device computes on one path: two slices of the model, timed pass by pass, kept for reuse.

Decode time is linear in the number of layers, so two depths tell the layers' own time from what does not depend on
them. Measured on the pinned engine: the line through 2 and 4 layers predicts 16 within 3 %, as long as the layers
exceed the processor's last-level cache.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from orchestrator.hosts import OpenHost
from orchestrator.plan.costs import transfer_s
from orchestrator.survey.plausible import DECODE, last_block, plausible_shallow
from orchestrator.survey.slices import Slice, Slices
from orchestrator.survey.values import LONG_PROMPT, Link, PassTime, Speed, kept_as
from workers.engine_commands import CacheType, FlashAttention
from workers.pass_bench import DECODED_TOKENS, REPETITIONS, Timed

SHORT_PROMPT = 64
PROMPT_PASSES = (SHORT_PROMPT, LONG_PROMPT)
CONTEXT_TOKENS = 1024
"""Read before the short prompt once more, to see what a context costs: enough to stand out of the noise."""

SLOW_S = 0.3
"""A device that takes longer for a short prompt through the shallow slice is timed with fewer repetitions: a pass of
seconds is disturbed less than one of milliseconds, and calibration shall not take minutes."""

FEW_REPETITIONS = 3

VERY_SLOW_S = 1.0
"""A device that takes longer for that is timed with short passes only, a GPU as briefly as can be; longer ones are
taken to grow with their tokens, and what a context costs to be as much slower than on the controller as a short prompt
is. A tenth of a core, 1.2 B, took four minutes through RPC, most of them for longer ones."""

HURRIED_REPETITIONS = 2
"""Of which the first warms up."""

MOST_TURNS, ENOUGH_DECODING_S = 3, 8.0
"""Decoding through the deep slice is timed in so many turns, or for so long, since its time counts most. Measured with
0.6 of a core behind a link of 1 Gbit/s, 1.2 B: 16 layers by the line through 2 and 6 were off by 10 % (standard
deviation) with one turn, by 7 % with three."""

NOISY = 0.15
"""Repetitions further apart than this part of their median are no good measurement."""
LEAST_OUTPUT, MOST_OUTPUT = 0.3, 3.0
"""The output layer per byte against the layers per byte: beyond these limits a measured difference is noise."""

FORMAT = "passes 11"
"""Part of what measurements are kept under: raised when they are worked out in another way."""


def passes_for(parallel: int) -> tuple[int, ...]:
    """Tokens of the passes to time: decoding of one and of several conversations, and prompts."""
    several = {-(-parallel // 2), parallel} - {DECODE} if parallel > 1 else set[int]()
    return tuple(sorted({DECODE, *several, *PROMPT_PASSES}))


def short_passes(passes: Sequence[int]) -> tuple[int, ...]:
    """Those to time on the deep slice; the longer ones take it as much more time as the short prompt does."""
    return tuple(tokens for tokens in passes if tokens <= SHORT_PROMPT)


def is_very_slow(shallow: Mapping[int, Timed]) -> bool:
    """Whether a device is timed with short passes only, by the time of a short prompt through the shallow slice."""
    return shallow[SHORT_PROMPT].seconds > VERY_SLOW_S


def repetitions_for(shallow: Mapping[int, Timed]) -> int:
    """How often each pass through the deep slice is repeated, by the time of a short prompt through the shallow one."""
    return FEW_REPETITIONS if shallow[SHORT_PROMPT].seconds > SLOW_S else REPETITIONS


def turns_for(slices: Slices, shallow: Mapping[int, Timed], repetitions: int) -> int:
    """In how many turns decoding is timed on the deep slice, by the time of the shallow one."""
    few, many = (one.pass_bytes() + slices.output_like_bytes for one in (slices.shallow, slices.deep))
    turn_s = shallow[DECODE].seconds * many / few * repetitions * DECODED_TOKENS
    return max(1, min(MOST_TURNS, round(ENOUGH_DECODING_S / turn_s)))


def with_long_passes(deep: Mapping[int, Timed], shallow: Mapping[int, Timed]) -> dict[int, Timed]:
    """The deep slice's times with those of the passes that only the shallow one was timed on, in proportion."""
    ratio = deep[SHORT_PROMPT].seconds / shallow[SHORT_PROMPT].seconds
    return {tokens: deep.get(tokens) or Timed(timed.seconds * ratio, timed.spread) for tokens, timed in shallow.items()}


def with_guessed_passes(timed: Mapping[int, Timed], passes: Sequence[int]) -> dict[int, Timed]:
    """With the passes that were left out, which take as much longer than the short prompt as they have more tokens."""
    short = timed[SHORT_PROMPT]
    guessed = {tokens: Timed(short.seconds * tokens / SHORT_PROMPT, short.spread) for tokens in passes}
    return {tokens: timed.get(tokens) or guessed[tokens] for tokens in passes}


def noisy_passes(timed: Mapping[int, Timed]) -> tuple[int, ...]:
    """Those that something else went on beside: they are timed once more."""
    return tuple(tokens for tokens, one in timed.items() if one.spread > NOISY)


def calmer(timed: Mapping[int, Timed], again: Mapping[int, Timed]) -> dict[int, Timed]:
    """All that was timed; of passes that were timed again, the timing whose repetitions are closer together."""
    both = {tokens: min(timed[tokens], one, key=lambda timing: timing.spread) for tokens, one in again.items()}
    return {**timed, **both}


def rising(timed: Mapping[int, Timed]) -> dict[int, Timed]:
    """Passes of more tokens take no less time; where they seem to, that is noise: both take what they took together."""
    blocks: list[list[int]] = []
    seconds: list[float] = []
    for tokens in sorted(timed):
        blocks.append([tokens])
        seconds.append(timed[tokens].seconds)
        while len(blocks) > 1 and seconds[-2] > seconds[-1]:
            more, last_s = blocks.pop(), seconds.pop()
            seconds[-1] = (seconds[-1] * len(blocks[-1]) + last_s * len(more)) / (len(blocks[-1]) + len(more))
            blocks[-1] += more
    return {
        tokens: replace(timed[tokens], seconds=together_s)
        for block, together_s in zip(blocks, seconds, strict=True)
        for tokens in block
    }


def context_cost(slices: Slices, shallow: Mapping[int, Timed], in_context: Mapping[int, Timed]) -> float:
    """`Speed.context_s`: by how much a short prompt takes longer after `CONTEXT_TOKENS`, link and all else alike."""
    added_s = max(0.0, in_context[SHORT_PROMPT].seconds - shallow[SHORT_PROMPT].seconds)
    return added_s / (slices.shallow.layers * SHORT_PROMPT * CONTEXT_TOKENS)


def likely_context_cost(speed: Speed, head: Speed) -> float:
    """`Speed.context_s` of a device that was not timed in a context: as much more than the controller's (`head`) as a
    short prompt takes longer through layers of as many bytes; 0 where the controller was not timed."""

    def short_s(one: Speed) -> float:
        timed = next(each for each in one.passes if each.tokens == SHORT_PROMPT)
        return timed.layers_s[-1] / timed.layers_bytes[-1]

    return head.context_s * short_s(speed) / short_s(head) if head.measured else 0.0


def native_speed(
    slices: Slices, shallow: Mapping[int, Timed], deep: Mapping[int, Timed], *, processor: bool = False
) -> Speed:
    """Of a head on the host itself: what does not depend on the layers is the output layer. Here and in what follows,
    what a pass takes beside the layers is within what is plausible (`survey.plausible`) where that is a `processor`."""
    shallow, deep = _both(slices, shallow, deep, processor, lambda tokens: 0.0)
    decode = _Line(slices, shallow, deep, DECODE)
    output_s = _plausible_output(slices, decode, decode.at_zero_s)
    passes = tuple(_pass_time(slices, shallow, deep, tokens, output_s, 0.0) for tokens in sorted(shallow))
    return _speed(slices, passes, output_s)


def rpc_speed(
    slices: Slices,
    shallow: Mapping[int, Timed],
    deep: Mapping[int, Timed],
    output_on_head: Timed,
    head: Speed,
    link: Link,
    *,
    processor: bool = False,
) -> Speed:
    """Of a worker, its link taken off.

    `output_on_head` is the shallow slice's decoding with the output layer on the head, whose own speed is `head`: the
    difference to the same on the worker is what the output layer costs more or less there.
    """

    def link_s(tokens: int) -> float:
        return transfer_s(link, slices.hidden_bytes * tokens, slices.logits_bytes)

    on_head_s = transfer_s(link, slices.hidden_bytes, slices.hidden_bytes)
    head_s = head.output_s * slices.output_bytes / head.output_bytes if head.output_bytes else head.output_s
    difference_s = shallow[DECODE].seconds - link_s(DECODE) - (output_on_head.seconds - on_head_s)
    shallow, deep = _both(slices, shallow, deep, processor, link_s)
    decode = _Line(slices, shallow, deep, DECODE)
    output_s = _plausible_output(slices, decode, difference_s + head_s, link_s(DECODE))
    passes = tuple(_pass_time(slices, shallow, deep, tokens, output_s, link_s(tokens)) for tokens in sorted(shallow))
    return _speed(slices, passes, output_s)


def rpc_speed_without_output(
    slices: Slices, shallow: Mapping[int, Timed], deep: Mapping[int, Timed], head: Speed, link: Link
) -> Speed:
    """Of a worker too small for the output layer, timed with that on the head: taken to cost there what layers cost."""
    shallow, deep = _both(slices, shallow, deep, False, lambda tokens: 0.0)
    head_s = head.output_s * slices.output_bytes / head.output_bytes if head.output_bytes else head.output_s

    def beside_s(tokens: int) -> float:
        return transfer_s(link, slices.hidden_bytes * tokens, slices.hidden_bytes)

    passes = tuple(_pass_time(slices, shallow, deep, tokens, head_s, beside_s(tokens)) for tokens in sorted(shallow))
    output_s = _Line(slices, shallow, deep, DECODE).slope_s * slices.output_like_bytes
    return _speed(slices, passes, output_s)


def _both(
    slices: Slices,
    shallow: Mapping[int, Timed],
    deep: Mapping[int, Timed],
    processor: bool,
    link_s: Callable[[int], float],
) -> tuple[dict[int, Timed], dict[int, Timed]]:
    """Both slices' times with all passes, as far as they can be true."""
    shallow, deep = rising(shallow), rising(deep)
    if processor:
        shallow = rising(plausible_shallow(slices, shallow, deep, link_s))
    return dict(shallow), rising(with_long_passes(deep, shallow))


class _Line:
    """The line through the two depths of one pass."""

    def __init__(self, slices: Slices, shallow: Mapping[int, Timed], deep: Mapping[int, Timed], tokens: int) -> None:
        part = last_block(shallow, deep, tokens)
        self.at_bytes = (slices.shallow.pass_bytes(part), slices.deep.pass_bytes(part))
        self.at_s = (shallow[tokens].seconds, deep[tokens].seconds)

    @property
    def slope_s(self) -> float:
        """Seconds per byte; noise can turn the line over, then the deep slice's whole time stands for its layers."""
        more_s, more_bytes = self.at_s[1] - self.at_s[0], self.at_bytes[1] - self.at_bytes[0]
        return more_s / more_bytes if more_s > 0 else self.at_s[1] / self.at_bytes[1]

    @property
    def at_zero_s(self) -> float:
        return max(0.0, self.at_s[0] - self.slope_s * self.at_bytes[0])


def _plausible_output(slices: Slices, decode: _Line, measured_s: float, link_s: float = 0.0) -> float:
    """The measured time of the output layer, within what its bytes make plausible and the shallow pass leaves room.

    Where next to nothing is left for it, the processor's cache held the shallow slice, so that the line through both
    depths is too steep: then by its part of the bytes of the deep one.
    """
    like_layers_s = decode.slope_s * slices.output_like_bytes
    part = slices.output_like_bytes / (slices.output_like_bytes + decode.at_bytes[1])
    like_deep_s = part * (decode.at_s[1] - link_s)
    if measured_s < LEAST_OUTPUT * like_layers_s:
        measured_s = min(like_deep_s, like_layers_s)
    plausible_s = min(max(measured_s, LEAST_OUTPUT * like_layers_s), MOST_OUTPUT * like_layers_s)
    return min(plausible_s, 0.9 * decode.at_s[0])


def _pass_time(
    slices: Slices,
    shallow: Mapping[int, Timed],
    deep: Mapping[int, Timed],
    tokens: int,
    output_s: float,
    link_s: float,
) -> PassTime:
    """The layers' own time; one row of logits is in every pass."""
    line = _Line(slices, shallow, deep, tokens)
    least_s = 0.05 * line.at_s[0]
    shallow_s, deep_s = (max(least_s, seconds - output_s - link_s) for seconds in line.at_s)
    if deep_s <= shallow_s:
        shallow_s = deep_s * line.at_bytes[0] / line.at_bytes[1]
    slope_s = (deep_s - shallow_s) / (line.at_bytes[1] - line.at_bytes[0])
    fixed_s = max(0.0, shallow_s - slope_s * line.at_bytes[0])
    spread = max(shallow[tokens].spread, deep[tokens].spread)
    return PassTime(tokens, fixed_s, line.at_bytes, (shallow_s, deep_s), spread)


def _speed(slices: Slices, passes: tuple[PassTime, ...], output_s: float) -> Speed:
    depths = (slices.shallow.layers, slices.deep.layers)
    return Speed(passes, output_s, slices.output_bytes, slices.deep.source, depths)


def speed_key(
    host: OpenHost,
    threads: int,
    path: str,
    engine_id: str,
    slices: Slices,
    gpu: Sequence[str] = (),
    *,
    cache_type: CacheType = "f16",
    flash_attention: FlashAttention = "auto",
) -> str:
    """What kept timings are good for: this processor and its limits or that GPU, engine, tensor types and shapes, path,
    whether the device holds the output layer, what keys and values are kept as, and how they are read."""
    facts = host.facts
    depths: tuple[Slice, ...] = (slices.shallow, slices.deep)
    parts = (
        *(FORMAT, facts.hostname, facts.cpu_name, str(facts.cores_logical), str(facts.cpu_quota)),
        *host.host.own_words,
        *("|", path, str(threads), engine_id, slices.digest),
        *(f"{one.layers} {one.source}" for one in depths),
        *(() if slices.output_fits else ("output on the head",)),
        *gpu,
        *kept_as(cache_type, flash_attention),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]

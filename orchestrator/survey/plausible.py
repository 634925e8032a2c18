"""Timings of both depths of a model on a processor, brought to where they can be true together. Pure.

The line through two depths is carried on to all layers, so what one of them was disturbed by grows: timed at 2 and at 6
layers, 16 take 3.5 times the deep slice's time less 2.5 times the shallow one's. But what a pass takes beside its
layers is known nearly: a row of the output layer, whose bytes are known, and little else. So decoding tells twice what
the layers take, by the difference of both depths and by the deep one's bytes; both count, the surer one more. The deep
slice's time stands, which is the longer one, and the shallow slice's is moved.

Measured with 0.6 of a core behind a link of 1 Gbit/s, 1.2 B: 16 layers by the difference alone were off by 10 %
(standard deviation over 3,000 pairs of timings), by both 7 %, by both with three turns of the deep slice 5 %.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from orchestrator.plan.costs import LAST_BLOCK_PREFILL
from orchestrator.survey.slices import Slices
from workers.budget import MIB
from workers.pass_bench import Timed

DECODE = 1
CACHE_BYTES = 128 * MIB
"""A pass over less may stay in a processor's cache: then the shallow slice is faster than in proportion, rightly so."""

LEAST_OUTPUT, MOST_OUTPUT = 0.4, 1.6
"""The output layer per byte against the layers per byte that works for a token, on a processor. Measured where nothing
disturbed it, both of one type (Q6_K): 0.73 to 1.35; of another type and much smaller than a cache 0.33 to 0.55."""

OUTPUT_OFF = 0.3
"""How far the output layer is from taking as long per byte as the layers, as a standard deviation: of what was measured
most is between 0.73 and 1.35."""

LEAST_OFF, MOST_OFF = 0.03, 0.08
"""How far a timing is off at least, another time on the same machine, and how far at most for its repetitions."""

OFF_BY_SPREAD = 1.7
"""The range of three values that are normally distributed by their standard deviation."""

BESIDE_S = 0.0005
"""What else a pass takes at no layer, beside what its link takes."""

PROMPT_BESIDE = 0.05
"""The part of the deep slice's time that this is of a prompt at most, either way: what of the last block is worked
through (`last_block`) is known to a tenth of a block or two."""


def last_block(shallow: Mapping[int, Timed], deep: Mapping[int, Timed], tokens: int) -> float:
    """The part of the last block that a pass of this many tokens, timed as a prompt, works through.

    Its attention runs for all of them, its feed-forward only for the one whose logits are wanted, which takes as long
    as decoding. Measured on the pinned engine, 1.2 B: 0.59, 0.47, 0.35 and 0.22 of a block at 2, 4, 8 and 64 tokens.
    """
    one_s, all_s = (deep[size].seconds - shallow[size].seconds for size in (DECODE, tokens))
    as_decoding = min(1.0, one_s / all_s) if one_s > 0 and all_s > 0 else 0.0
    return 1.0 if tokens == DECODE else LAST_BLOCK_PREFILL + (1 - LAST_BLOCK_PREFILL) * as_decoding


def plausible_shallow(
    slices: Slices, shallow: Mapping[int, Timed], deep: Mapping[int, Timed], link_s: Callable[[int], float]
) -> dict[int, Timed]:
    """The shallow slice's times, moved to where the line through both depths leaves for the rest what that may take.

    `link_s`: what a pass of so many tokens takes on the way. Passes that the deep slice was not timed with stay.
    """
    found, output_s = dict(shallow), 0.0
    fits_cache = slices.shallow.pass_bytes() * slices.worked_part + slices.output_bytes < CACHE_BYTES
    for tokens in sorted(deep.keys() & shallow.keys()):
        part = last_block(shallow, deep, tokens)
        few, many = slices.shallow.pass_bytes(part), slices.deep.pass_bytes(part)
        deep_s, beside_s = deep[tokens].seconds, BESIDE_S + link_s(tokens)
        measured = slope_s = (deep_s - shallow[tokens].seconds) / (many - few)
        if tokens == DECODE:
            steepest = deep_s / (many + LEAST_OUTPUT * slices.output_like_bytes)
            flattest = (deep_s - beside_s) / (many + MOST_OUTPUT * slices.output_like_bytes)
            if not fits_cache:
                slope_s = _by_both(slices, shallow[tokens], deep[tokens], link_s(tokens))
        else:
            steepest = (1 + PROMPT_BESIDE) * deep_s / many
            flattest = ((1 - PROMPT_BESIDE) * deep_s - beside_s - output_s) / many
        slope_s = max(slope_s, flattest)
        if not fits_cache:
            slope_s = min(slope_s, steepest)
        if slope_s != measured and slope_s > 0:
            found[tokens] = replace(shallow[tokens], seconds=deep_s - slope_s * (many - few))
        if tokens == DECODE:
            output_s = max(0.0, deep_s - slope_s * many - link_s(tokens))
    return found


def _by_both(slices: Slices, shallow: Timed, deep: Timed, link_s: float) -> float:
    """Seconds per byte of the layers that decoding works through: the mean of what the difference of both depths and
    what the bytes of the deep one say, each with the reciprocal of its variance as its weight."""
    few, many = slices.shallow.pass_bytes(), slices.deep.pass_bytes()
    output = slices.output_like_bytes
    by_difference = (deep.seconds - shallow.seconds) / (many - few)
    by_bytes = max(0.0, deep.seconds - link_s) / (many + output)
    off_s = [_off(one) * one.seconds for one in (shallow, deep)]
    variances = (
        (off_s[0] ** 2 + off_s[1] ** 2) / (many - few) ** 2,
        (off_s[1] / (many + output)) ** 2 + (by_bytes * OUTPUT_OFF * output / (many + output)) ** 2,
    )
    weights = [1 / variance for variance in variances]
    return (weights[0] * by_difference + weights[1] * by_bytes) / sum(weights)


def _off(one: Timed) -> float:
    """How far that time is off, as a part of it."""
    return min(MOST_OFF, max(LEAST_OFF, one.spread / OFF_BY_SPREAD))

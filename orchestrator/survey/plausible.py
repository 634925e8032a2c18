"""Timings of both depths of a model on a processor, brought to where they can be true together. Pure.

The line through two depths is carried on to all layers, so what one of them was disturbed by grows: timed at 2 and at 6
layers, 16 take 3.5 times the deep slice's time less 2.5 times the shallow one's. But what a pass takes beside its
layers is known within limits: a row of the output layer, whose bytes are known, and little else. Where the line leaves
another time for that, the deep slice's time stands, which is the longer one, and the shallow slice's is moved.
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
    """The shallow slice's times, moved where the line through both depths leaves too much or too little for the rest.

    `link_s`: what a pass of so many tokens takes on the way. Passes that the deep slice was not timed with stay.
    """
    found, output_s = dict(shallow), 0.0
    for tokens in sorted(deep.keys() & shallow.keys()):
        part = last_block(shallow, deep, tokens)
        few, many = slices.shallow.pass_bytes(part), slices.deep.pass_bytes(part)
        deep_s, beside_s = deep[tokens].seconds, BESIDE_S + link_s(tokens)
        if tokens == DECODE:
            steepest = deep_s / (many + LEAST_OUTPUT * slices.output_like_bytes)
            flattest = (deep_s - beside_s) / (many + MOST_OUTPUT * slices.output_like_bytes)
        else:
            steepest = (1 + PROMPT_BESIDE) * deep_s / many
            flattest = ((1 - PROMPT_BESIDE) * deep_s - beside_s - output_s) / many
        measured = (deep_s - shallow[tokens].seconds) / (many - few)
        slope_s = max(measured, flattest)
        if few * slices.worked_part + slices.output_bytes >= CACHE_BYTES:
            slope_s = min(slope_s, steepest)
        if slope_s != measured and slope_s > 0:
            found[tokens] = replace(shallow[tokens], seconds=deep_s - slope_s * (many - few))
        if tokens == DECODE:
            output_s = max(0.0, deep_s - slope_s * many - link_s(tokens))
    return found

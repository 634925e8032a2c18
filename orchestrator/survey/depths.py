"""Both slices of a model timed on one path, and the timings kept.

What is kept are the timings themselves: for another number of conversations only the passes that are its own are timed
and join them, and everything else is what it was.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter

from orchestrator.survey.kept import read_kept, write_kept
from orchestrator.survey.plausible import DECODE
from orchestrator.survey.slices import Slice, Slices
from orchestrator.survey.speeds import (
    CONTEXT_TOKENS,
    FEW_REPETITIONS,
    HURRIED_REPETITIONS,
    SHORT_PROMPT,
    calmer,
    is_very_slow,
    noisy_passes,
    repetitions_for,
    short_passes,
    turns_for,
    with_guessed_passes,
)
from orchestrator.survey.timing import Timing, time_passes
from orchestrator.survey.values import NOT_MEASURED, Link, Speed
from workers.pass_bench import REPETITIONS, Timed

PROBE_OF_GPU = 2
BASE = {DECODE, SHORT_PROMPT}
"""Passes that everything is worked out from."""


@dataclass(frozen=True)
class Timings:
    """Passes through both slices by their tokens, the deep one without the long ones. `hurried`: as briefly as can be,
    the long passes are worked out.

    `in_context`: a short prompt through the shallow slice after a context; None where that was not timed. Through RPC,
    `output_on_head` is decoding with the output layer on the head, and `link` the one that all of it went over. `head`:
    the controller's own speed as it was then.
    """

    shallow: Mapping[int, Timed]
    deep: Mapping[int, Timed]
    hurried: bool = False
    in_context: Timed | None = None
    output_on_head: Timed | None = None
    link: Link | None = None
    head: Speed = NOT_MEASURED

    def of(self, passes: Sequence[int]) -> "Timings":
        """These passes only, all of which were timed."""
        deep = {tokens: self.deep[tokens] for tokens in passes if tokens in self.deep}
        return replace(self, shallow={tokens: self.shallow[tokens] for tokens in passes}, deep=deep)

    def missing(self, passes: Sequence[int]) -> tuple[int, ...]:
        """Those that were not timed."""
        return tuple(tokens for tokens in passes if tokens not in self.shallow)


_TIMINGS = TypeAdapter(Timings)


def kept_timings(folder: Path, key: str) -> Timings | None:
    """Timings of before, if they are there and whole."""
    timings = read_kept(folder / f"{key}.json", _TIMINGS)
    whole = timings is not None and all(timed.keys() >= BASE for timed in (timings.shallow, timings.deep))
    return timings if whole else None


def keep_timings(folder: Path, key: str, timings: Timings) -> None:
    """Keep timings for later surveys."""
    write_kept(folder / f"{key}.json", _TIMINGS, timings)


async def time_both(at: Timing, slices: Slices, passes: Sequence[int], *, processor: bool) -> Timings:
    """The shallow and the deep slice, the latter without the long passes, but decoding in more turns where that is a
    `processor`.

    Only a device with room to spare is timed again, and asked for long passes apart: each load leaves less of a small
    host's memory to the next, a worker does not give back all that it has freed. A GPU is asked by one short prompt,
    after another, whether it is very slow: it first compiles what it runs.
    """
    short, long = short_passes(passes), [tokens for tokens in passes if tokens > SHORT_PROMPT]
    if not processor and is_very_slow(await time_passes(at, slices.shallow, (SHORT_PROMPT,), PROBE_OF_GPU)):
        shallow, deep = [
            await time_passes(at, one, short, HURRIED_REPETITIONS) for one in (slices.shallow, slices.deep)
        ]
        return Timings(with_guessed_passes(shallow, passes), with_guessed_passes(deep, passes), hurried=True)
    if not slices.output_fits:
        shallow = await time_passes(at, slices.shallow, passes)
        return Timings(shallow, await time_passes(at, slices.deep, short, repetitions_for(shallow)))
    if not processor:
        shallow = await _calmly(at, slices.shallow, passes)
        return Timings(shallow, await _calmly(at, slices.deep, short, repetitions_for(shallow)))
    shallow = await _calmly(at, slices.shallow, short)
    if is_very_slow(shallow):
        deep = await _calmly(at, slices.deep, short, FEW_REPETITIONS)
        return Timings(with_guessed_passes(shallow, passes), deep, hurried=True)
    shallow = {**shallow, **await time_passes(at, slices.shallow, long)}
    repetitions = repetitions_for(shallow)
    turns = turns_for(slices, shallow, repetitions)
    return Timings(shallow, await _calmly(at, slices.deep, short, repetitions, turns))


async def time_more(at: Timing, slices: Slices, known: Timings, passes: Sequence[int], *, processor: bool) -> Timings:
    """What is known with these passes too, steps of several conversations, timed as `time_both` does it.

    Decoding is timed beside the shorter ones: on another day the device may be slower or faster, and they count by how
    much longer they take than that.
    """
    short, long = short_passes(passes), tuple(tokens for tokens in passes if tokens > SHORT_PROMPT)
    briefly = known.hurried and not processor
    time = time_passes if briefly or not slices.output_fits else _calmly
    few = HURRIED_REPETITIONS if briefly else repetitions_for(known.shallow)
    many = HURRIED_REPETITIONS if briefly else REPETITIONS
    shallow, deep = {**known.shallow}, {**known.deep}
    if short:
        shallow |= _as_then(known.shallow, await time(at, slices.shallow, (DECODE, *short), many))
        deep |= _as_then(known.deep, await time(at, slices.deep, (DECODE, *short), few))
    if long and not known.hurried:
        shallow |= await time_passes(at, slices.shallow, long)
    return replace(known, shallow=with_guessed_passes(shallow, (*shallow, *long)), deep=deep)


def _as_then(known: Mapping[int, Timed], timed: Mapping[int, Timed]) -> dict[int, Timed]:
    """All that was timed, as long as it would have taken when decoding took what is known."""
    by = known[DECODE].seconds / timed[DECODE].seconds
    return {**{tokens: replace(one, seconds=by * one.seconds) for tokens, one in timed.items()}, DECODE: known[DECODE]}


async def time_in_context(at: Timing, slices: Slices, timings: Timings) -> Timed:
    """A short prompt through the shallow slice after `CONTEXT_TOKENS`."""
    repetitions = HURRIED_REPETITIONS if timings.hurried else repetitions_for(timings.shallow)
    return (await time_passes(at, slices.shallow, (SHORT_PROMPT,), repetitions, context=CONTEXT_TOKENS))[SHORT_PROMPT]


async def _calmly(
    at: Timing, one: Slice, passes: Sequence[int], repetitions: int = REPETITIONS, turns: int = 1
) -> Mapping[int, Timed]:
    """Once more those whose repetitions are far apart."""
    timed = await time_passes(at, one, passes, repetitions, turns=turns)
    noisy = noisy_passes(timed)
    return calmer(timed, await time_passes(at, one, noisy, repetitions, turns=turns)) if noisy else timed

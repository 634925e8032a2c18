"""What groups really took when they ran before, and what that says of the predictions for others.

Pure. A group that has run keeps its own figures; of others, those of the same mode on the same devices are taken to be
off by as much as those that ran, and where none ran on these, as much as those on devices that are alike. Where that
says nothing of a layer split, what each of its devices was off by alone counts for its part of the time: in 23 splits
of `docs/benchmarks.jsonl` that takes the median error of decode from 21 to 13 %, and of prefill from 9 to 5 %. What
several devices together were off by says nothing of one of them alone: there is more between them than in them.
Predictions in records are always the uncorrected ones: otherwise a correction would be learnt away by the next
measurement.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.plan.costs import pipeline_s
from orchestrator.plan.values import Group, GroupMode, Share, alike_key, group_key

LEAST_RATIO, MOST_RATIO = 0.5, 2.0
"""No prediction of a group that has not run itself is changed by more: that would be another machine, not an error."""

SAME_WITHIN = 1.25
"""A measurement stands for itself as long as its group is predicted within this factor of what it was then: a link
or a processor that has changed by more makes it a measurement of something else."""


@dataclass(frozen=True)
class Measured:
    """Seconds as in `Group`: per token of one conversation, per step of all of them, for its whole prompt."""

    token_s: float
    step_s: float
    prefill_s: float

    def by(self, other: "Measured") -> "Measured":
        """Each figure divided by the other's."""
        return Measured(self.token_s / other.token_s, self.step_s / other.step_s, self.prefill_s / other.prefill_s)


AS_PREDICTED = Measured(1.0, 1.0, 1.0)
"""Ratios of what was off by nothing."""


@dataclass(frozen=True)
class Record:
    """One measurement of one group: `key` is its `group_key`, `prompt_tokens` those that `prefill_s` is for."""

    key: str
    mode: GroupMode
    devices: tuple[str, ...]
    prompt_tokens: int
    predicted: Measured
    measured: Measured

    @property
    def ratio(self) -> Measured:
        """By how much the prediction was off; above 1 it was too fast."""
        return self.measured.by(self.predicted)


@dataclass(frozen=True)
class Experience:
    """All that is known of these devices with this model, oldest first.

    What is `outdated` is left aside, until something that is measured now takes its place. `kinds`: what each device
    is, by its name, the same for those that are alike; one that is not in it is like no other.
    """

    records: tuple[Record, ...] = ()
    outdated: tuple[Record, ...] = ()
    kinds: Mapping[str, str] = field(default_factory=dict)

    def correct(self, group: Group) -> Group:
        """The group as it is to be expected; one that has been corrected already is left as it is."""
        if group.known != "predicted":
            return group
        predicted = predicted_of(group)
        own = [record for record in self._of(group) if _like(record.predicted, predicted)]
        if own:
            measured = _median([record.measured for record in own])
            if group.parallel == 1 and group.beside == 1:
                measured = replace(measured, step_s=measured.token_s)
            return replace(_scaled(group, measured.by(predicted)), known="measured")
        ratio = self._ratio(group)
        if ratio is None:
            return group
        if group.parallel == 1 and group.beside == 1:
            ratio = replace(ratio, step_s=ratio.token_s)
        return replace(_scaled(group, ratio), known="corrected")

    def of_another(self) -> "Experience":
        """What it says of another quantisation: how far predictions were off, and no group's own figures."""
        return Experience(tuple(replace(record, key="") for record in self.records), kinds=self.kinds)

    def _of(self, group: Group) -> list[Record]:
        """Measurements of this very group, or of one that differs in the order of its devices only."""
        key, tokens = alike_key(group_key(group)), group.prompt_tokens
        return [one for one in self.records if (alike_key(one.key), one.prompt_tokens) == (key, tokens)]

    def _ratio(self, group: Group) -> Measured | None:
        """How far predictions of this mode were off: of the very same on devices that are alike, else on the same
        devices, else on such as are alike, else what its parts alone were off by; None: not known."""
        devices, key = [share.device for share in group.shares], self._of_kinds(group_key(group))
        alike = self._alike(group.mode, devices)
        very_same = [record for record in alike if self._of_kinds(record.key) == key]
        return _ratio_of(very_same or _nearest(alike, devices)) or self._ratio_of_parts(group)

    def _ratio_of_parts(self, group: Group) -> Measured | None:
        """What a layer split is off by where each device is off by as much as it was alone; the rest is as predicted.
        None: none of them has run alone as it does here, natively or as a worker.

        Each counts for its part of the time per token: of a step of several conversations and of a prompt no more is
        known here. A prompt has no part of the head's, and stages that overlap wait for the slowest.
        """
        if group.mode != "layers":
            return None
        alone = [self._ratio_alone(share) for share in group.shares]
        if not any(alone):
            return None
        shares = zip(group.shares, alone, strict=True)
        parts = [(share.time_s / group.token_s, ratio or AS_PREDICTED) for share, ratio in shares]
        before, after = [part for part, _ in parts], [part * ratio.prefill_s for part, ratio in parts]
        return Measured(
            token_s=1 + sum(part * (ratio.token_s - 1) for part, ratio in parts),
            step_s=1 + sum(part * (ratio.step_s - 1) for part, ratio in parts),
            prefill_s=_prompt_s(group, after) / _prompt_s(group, before),
        )

    def _ratio_alone(self, share: Share) -> Measured | None:
        """By how much predictions of this device alone, else of one like it, were off."""
        alike = self._alike("single" if share.native else "layers", [share.device])
        return _ratio_of(_nearest(alike, [share.device]))

    def _alike(self, mode: GroupMode, devices: Sequence[str]) -> list[Record]:
        """Those of this mode on these devices or on such as are alike."""
        of_mode = [record for record in self.records if record.mode == mode]
        return [record for record in of_mode if self._kinds(record.devices) == self._kinds(devices)]

    def _kinds(self, devices: Sequence[str]) -> list[str]:
        return sorted(self.kinds.get(device, device) for device in devices)

    def _of_kinds(self, key: str) -> str:
        """A `group_key` with what each device is instead of its name."""
        words = (word.rpartition("*") for word in key.split(" "))
        return alike_key(" ".join(f"{self.kinds.get(name, name)}{star}{rest}" for name, star, rest in words))


NO_EXPERIENCE = Experience()


def uncorrected(group: Group) -> Group:
    """The prediction behind what `Experience.correct` gave."""
    ratio = AS_PREDICTED.by(Measured(*group.corrected_by))
    return replace(_scaled(group, ratio), known="predicted", corrected_by=(1.0, 1.0, 1.0))


def as_predicted(group: Group) -> Group:
    """What to compare a measurement with: the prediction, also where the group is planned with what it took before."""
    return uncorrected(group) if group.known == "measured" else group


def record_of(group: Group, measured: Measured) -> Record:
    """What to keep of a measurement; what is kept of the group is its uncorrected prediction."""
    group = uncorrected(group)
    devices = tuple(share.device for share in group.shares)
    return Record(group_key(group), group.mode, devices, group.prompt_tokens, predicted_of(group), measured)


def predicted_of(group: Group) -> Measured:
    """The group's own figures."""
    return Measured(group.token_s, group.step_s, group.prefill_s)


def _scaled(group: Group, ratio: Measured) -> Group:
    """The parts of the time per token are scaled with it, so that they still add up."""
    return replace(
        group,
        shares=tuple(replace(share, time_s=share.time_s * ratio.token_s) for share in group.shares),
        head_time_s=group.head_time_s * ratio.token_s,
        token_s=group.token_s * ratio.token_s,
        step_s=group.step_s * ratio.step_s,
        prefill_s=group.prefill_s * ratio.prefill_s,
        context_s=group.context_s * ratio.prefill_s,
        corrected_by=(ratio.token_s, ratio.step_s, ratio.prefill_s),
    )


def _nearest(alike: Sequence[Record], devices: Sequence[str]) -> Sequence[Record]:
    """Those on these very devices, else all."""
    return [record for record in alike if sorted(record.devices) == sorted(devices)] or alike


def _ratio_of(records: Sequence[Record]) -> Measured | None:
    """By how much they were off, within reason."""
    return _limited(_median([record.ratio for record in records])) if records else None


def _prompt_s(group: Group, parts: Sequence[float]) -> float:
    """Of a prompt whose micro-batches take each device so long."""
    overlap = not any(share.native and not share.gpu for share in group.shares)
    return pipeline_s(tuple(parts), group.prompt_tokens, min(group.micro_batch, group.prompt_tokens), overlap=overlap)


def _median(many: Sequence[Measured]) -> Measured:
    """Figure by figure."""
    return Measured(
        statistics.median(one.token_s for one in many),
        statistics.median(one.step_s for one in many),
        statistics.median(one.prefill_s for one in many),
    )


def _limited(ratio: Measured) -> Measured:
    token, step, prefill = (
        min(max(one, LEAST_RATIO), MOST_RATIO) for one in (ratio.token_s, ratio.step_s, ratio.prefill_s)
    )
    return Measured(token, step, prefill)


def _like(then: Measured, now: Measured) -> bool:
    """Whether two predictions are of the same circumstances."""
    ratio = now.by(then)
    return all(1 / SAME_WITHIN <= one <= SAME_WITHIN for one in (ratio.token_s, ratio.step_s, ratio.prefill_s))

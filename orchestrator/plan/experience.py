"""What earlier runs have measured, and how it corrects predictions. Pure; `experience_store` keeps it."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace

from orchestrator.plan.values import Group, group_key

LEAST_FACTOR, MOST_FACTOR = 0.5, 2.0
"""A correction beyond these says that something else was wrong when it was measured, such as a busy machine."""


@dataclass(frozen=True)
class Measured:
    """What a group did when it ran: seconds per token, per step of all its conversations, per prompt.

    `prefill_s` is for a prompt of `Group.prompt_tokens`. None: not measured.
    """

    token_s: float
    step_s: float | None = None
    prefill_s: float | None = None


@dataclass(frozen=True)
class Record:
    """One run: the group's `group_key`, its mode and devices, what was predicted (uncorrected) and what came out."""

    key: str
    mode: str
    devices: tuple[str, ...]
    predicted: Measured
    measured: Measured


@dataclass(frozen=True)
class Experience:
    """All records, newest last."""

    records: tuple[Record, ...] = ()

    def correct(self, group: Group) -> Group:
        """The group with measured times where it has run before, else scaled by how its like came out.

        Its like: the same mode over the same devices, else over some of them; the median of measured / predicted,
        within `LEAST_FACTOR` and `MOST_FACTOR`.
        """
        same = [record for record in self.records if record.key == group_key(group)]
        if same:
            return _as_measured(group, same[-1].measured)
        devices = {share.device for share in group.shares}
        of_mode = [record for record in self.records if record.mode == group.mode and devices & {*record.devices}]
        like = [record for record in of_mode if devices == {*record.devices}] or of_mode
        return _scaled(group, like) if like else group


NO_EXPERIENCE = Experience()


def record_of(group: Group, measured: Measured) -> Record:
    """A record of a run of this group, whose own times must be the uncorrected predictions."""
    return Record(
        key=group_key(group),
        mode=group.mode,
        devices=tuple(share.device for share in group.shares),
        predicted=Measured(group.token_s, group.step_s, group.prefill_s),
        measured=measured,
    )


def _as_measured(group: Group, measured: Measured) -> Group:
    token_s = measured.token_s
    step_s = measured.step_s
    if step_s is None:
        step_s = token_s if group.parallel == 1 else group.step_s * token_s / group.token_s
    return replace(
        _shares_scaled(group, token_s / group.token_s),
        token_s=token_s,
        step_s=step_s,
        prefill_s=measured.prefill_s or group.prefill_s,
        known="measured",
    )


def _scaled(group: Group, like: list[Record]) -> Group:
    decode = _factor((one.predicted.token_s, one.measured.token_s) for one in like)
    step = _factor((one.predicted.step_s, one.measured.step_s) for one in like)
    prefill = _factor((one.predicted.prefill_s, one.measured.prefill_s) for one in like)
    decode_factor = decode or 1.0
    return replace(
        _shares_scaled(group, decode_factor),
        token_s=group.token_s * decode_factor,
        step_s=group.step_s * (step or decode_factor),
        prefill_s=group.prefill_s * (prefill or 1.0),
        known="corrected",
    )


def _shares_scaled(group: Group, factor: float) -> Group:
    """Every part of the time per token scaled alike, so that the parts still add up to it."""
    shares = tuple(replace(share, time_s=share.time_s * factor) for share in group.shares)
    return replace(group, shares=shares, head_time_s=group.head_time_s * factor)


def _factor(pairs: Iterable[tuple[float | None, float | None]]) -> float | None:
    ratios = [measured / predicted for predicted, measured in pairs if predicted and measured]
    if not ratios:
        return None
    return min(MOST_FACTOR, max(LEAST_FACTOR, statistics.median(ratios)))

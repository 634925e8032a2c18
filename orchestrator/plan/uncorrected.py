"""What a group was predicted before experience corrected it: what a new measurement of it must be set against. Pure."""

from dataclasses import replace

from orchestrator.plan.experience import Experience
from orchestrator.plan.values import Group, group_key


def uncorrected(group: Group, experience: Experience) -> Group:
    """`group` as it was before `experience.correct` made it: its times per token, per step and per prompt."""
    if group.known == "predicted":
        return group
    same = [record for record in experience.records if record.key == group_key(group)]
    if same:
        first = same[-1].predicted
        times = (first.token_s, first.step_s or group.step_s, first.prefill_s or group.prefill_s)
        return _with_times(group, times)
    unit = experience.correct(_with_times(group, (1.0, 1.0, 1.0)))
    times = (group.token_s / unit.token_s, group.step_s / unit.step_s, group.prefill_s / unit.prefill_s)
    return _with_times(group, times)


def _with_times(group: Group, times: tuple[float, float, float]) -> Group:
    token_s, step_s, prefill_s = times
    return replace(group, token_s=token_s, step_s=step_s, prefill_s=prefill_s, known="predicted")

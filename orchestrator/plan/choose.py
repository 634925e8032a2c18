"""Make a plan: the whole model on one device where that is possible and fastest, else contiguous layers over several.

Pure: a survey and the model's memory in, a `Plan` or a `PlanError` out. The same survey with its hosts in another
order gives the same plan.
"""

from collections.abc import Sequence

from orchestrator.errors import PlanError
from orchestrator.plan.costs import share_bytes
from orchestrator.plan.layers import Stage, stage_time_s
from orchestrator.plan.left_out import left_out_of_single, left_out_of_split
from orchestrator.plan.pools import CONTROLLER, Candidate, find_candidates
from orchestrator.plan.reasons import Asked, single_reasons, split_reasons
from orchestrator.plan.shortfall import no_device, no_single, no_split
from orchestrator.plan.single import Single, best_single
from orchestrator.plan.split import Split, Splits, find_splits
from orchestrator.plan.values import ModelMemory, Plan, Share
from orchestrator.survey.values import Survey

GOALS = ("latency", "throughput")
MODES = ("single", "layers")


def make_plan(
    survey: Survey,
    memory: ModelMemory,
    *,
    goal: str,
    devices: frozenset[str] | None = None,
    mode: str | None = None,
) -> Plan:
    """The plan with the least predicted time per token of one conversation, but for noise in the measured speeds.

    Layers are placed as if speeds that differ by no more than noise were one speed (`noise.even_rates`); what is then
    predicted, and compared with other plans, comes from each device's own speed.
    `devices` allows only these (None: all), `mode` allows only "single" or "layers". Goal "throughput" gives the same
    plan and says so in its reasons: the engine takes the conversations of a moment through the stages as one batch,
    so a layer split has no other optimum for several of them.
    PlanError: an unknown device, goal or mode, no usable device, or a model that does not fit, with every shortfall.
    """
    asked = Asked(goal, devices, mode)
    _check_words(survey, asked)
    candidates = find_candidates(survey, devices)
    if not candidates:
        raise no_device(survey, devices)
    single, splits = best_single(memory, candidates), find_splits(survey, memory, candidates)
    split = None if splits is None else splits.best
    if single is not None and _single_wins(asked, single, split):
        return _single_plan(survey, memory, asked, single, split)
    if splits is not None and mode != "single":
        return _split_plan(survey, memory, asked, single, splits)
    if mode == "single":
        raise no_single(memory, candidates, lambda smaller: best_single(smaller, candidates) is not None)
    raise no_split(survey, memory, candidates, devices, lambda smaller: _fits(survey, smaller, candidates, asked))


def _check_words(survey: Survey, asked: Asked) -> None:
    if asked.goal not in GOALS:
        raise PlanError(f"unknown goal {asked.goal!r}", hint=f"the goals are {' and '.join(GOALS)}")
    if asked.mode is not None and asked.mode not in MODES:
        raise PlanError(f"unknown mode {asked.mode!r}", hint=f"the modes are {' and '.join(MODES)}")
    known = sorted(device.name for device in survey.devices)
    unknown = sorted((asked.devices or frozenset()) - set(known))
    if unknown:
        raise PlanError(
            f"the survey has no device {', '.join(unknown)}",
            hint=f"its devices are {', '.join(known) or 'none at all'}",
        )


def _single_wins(asked: Asked, single: Single, split: Split | None) -> bool:
    if asked.mode is not None:
        return asked.mode == "single"
    return split is None or single.token_s <= split.token_s


def _fits(survey: Survey, memory: ModelMemory, candidates: Sequence[Candidate], asked: Asked) -> bool:
    if asked.mode is None and best_single(memory, candidates) is not None:
        return True
    return find_splits(survey, memory, candidates) is not None


def _single_plan(survey: Survey, memory: ModelMemory, asked: Asked, single: Single, split: Split | None) -> Plan:
    share = Share(
        device=single.candidate.device.name,
        first_layer=0,
        layers=len(memory.layer_weights_bytes),
        output=True,
        weights_bytes=single.share.weights_bytes,
        kv_bytes=single.share.kv_bytes,
        compute_bytes=single.share.compute_bytes,
        budget_bytes=single.candidate.budget_bytes,
        time_s=single.token_s,
    )
    return Plan(
        mode="single",
        model=memory.model,
        context=memory.context,
        parallel=memory.parallel,
        micro_batch=memory.micro_batch,
        shares=(share,),
        head=single.candidate.machine,
        output_on_head=False,
        head_bytes=single.head.total_bytes,
        token_s=single.token_s,
        prefill_token_s=single.prefill_token_s,
        left_out=left_out_of_single(survey, memory, single, asked.devices),
        reasons=single_reasons(asked, single, split),
        head_compute_bytes=single.head.compute_bytes,
    )


def _split_plan(survey: Survey, memory: ModelMemory, asked: Asked, single: Single | None, splits: Splits) -> Plan:
    split = splits.best
    return Plan(
        mode="layers",
        model=memory.model,
        context=memory.context,
        parallel=memory.parallel,
        micro_batch=memory.micro_batch,
        shares=tuple(_share(memory, stage) for stage in split.stages),
        head=CONTROLLER,
        output_on_head=split.output_on_head,
        head_bytes=split.head.total_bytes,
        token_s=split.token_s,
        prefill_token_s=split.prefill_token_s,
        left_out=left_out_of_split(survey, memory, split, asked.devices),
        reasons=split_reasons(asked, memory, single, splits, find_candidates(survey, asked.devices)),
        head_compute_bytes=split.head.compute_bytes,
        head_time_s=split.head_time_s,
    )


def _share(memory: ModelMemory, stage: Stage) -> Share:
    held = share_bytes(memory, stage.first_layer, stage.layers, output=stage.output)
    return Share(
        device=stage.candidate.device.name,
        first_layer=stage.first_layer,
        layers=stage.layers,
        output=stage.output,
        weights_bytes=held.weights_bytes,
        kv_bytes=held.kv_bytes,
        compute_bytes=held.compute_bytes,
        budget_bytes=stage.candidate.budget_bytes,
        time_s=stage_time_s(memory, stage),
    )

"""The winners that `meshctl tune` found for a cluster: their form, where they are kept, how one becomes a plan again.

A winner holds for the inventory, model and engine that it was found with and for what was asked of the plans: the best
of one mode is not the best of all. Anything else, or a file that cannot be read, is as if nothing had been tuned.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from orchestrator.errors import PlanError
from orchestrator.folders import ClusterFolder, Folders
from orchestrator.inventory import Inventory
from orchestrator.memory import count_memory
from orchestrator.plan.asked import Asked
from orchestrator.plan.choose import explained, rank_plans
from orchestrator.plan.experience import Experience, Measured
from orchestrator.plan.reasons import gains_too_little
from orchestrator.plan.values import ModelMemory, Plan, PlanMode, Ranking, alike_key, plan_key
from orchestrator.state import write_private
from orchestrator.survey.values import Survey
from quant.model import Model
from quant.slice import shape_digest
from workers.engine_commands import CacheType


@dataclass(frozen=True)
class Valid:
    """What a winner holds for: digests of the inventory file and of the model's shapes, the engine, and what was
    asked, the cache type included.

    `mode` and `devices` are those that the plans were limited to; None: they were not.
    """

    inventory_sha256: str
    shape: str
    engine_id: str
    goal: str
    mode: str | None = None
    devices: tuple[str, ...] | None = None
    cache_type: CacheType = "f16"


@dataclass(frozen=True)
class Tuned:
    """A winner. `plan` is its `plan_key`.

    `split` has the layers of each device (mode `tensor`: its part), `threads` those of its workers or native head;
    `micro_batch` is that of the first group, `context` the tokens of a conversation, `measured` what each group took,
    in the order of the plan.
    """

    valid: Valid
    plan: str
    mode: PlanMode
    devices: tuple[str, ...]
    split: Mapping[str, int]
    micro_batch: int
    context: int
    threads: Mapping[str, int]
    measured: tuple[Measured, ...]


BEATEN = 0.95
"""A winner is put aside for a plan that was measured to take less than this part of its time: the rest is noise."""

LEAST_CONTEXT = 0.75
"""A winner that fits only at its own context is used as long as that is no less than this part of what fits now: free
memory is never twice the same."""

BEST_MEASURED = "`meshctl tune` measured it to be the best of those it ran"
ANEW = "; its figures are predictions here: speeds or links have changed since, or were timed anew"

_FILE = TypeAdapter(tuple[Tuned, ...])


def valid_for(inventory: Inventory, model: Model, engine_id: str, asked: Asked) -> Valid:
    """What a winner must hold for to be used now, or will hold for; `asked` forces no split."""
    devices = None if asked.devices is None else tuple(sorted(asked.devices))
    return Valid(
        inventory_sha256=inventory.sha256,
        shape=shape_digest(model),
        engine_id=engine_id,
        goal=asked.goal,
        mode=asked.mode,
        devices=devices,
        cache_type=inventory.cache_type,
    )


def tuned_of(plan: Plan, threads: Mapping[str, int], valid: Valid) -> Tuned:
    """A measured plan as a winner."""
    devices = tuple(share.device for share in plan.shares)
    return Tuned(
        valid=valid,
        plan=plan_key(plan),
        mode=plan.mode,
        devices=devices,
        split=split_of(plan),
        micro_batch=plan.groups[0].micro_batch,
        context=plan.context,
        threads={device: threads[device] for device in devices},
        measured=tuple(Measured(group.token_s, group.step_s, group.prefill_s) for group in plan.groups),
    )


def split_of(plan: Plan) -> dict[str, int]:
    """The layers of each device, or its part of all of them, in the order of the plan."""
    return {share.device: share.part or share.layers for share in plan.shares}


def save_tuned(folder: ClusterFolder, tuned: Tuned) -> None:
    """Keep a winner in place of the one for the same; those of other inventories are dropped."""
    folder.prepare()
    others = [
        one
        for one in _read(folder)
        if one.valid != tuned.valid and one.valid.inventory_sha256 == tuned.valid.inventory_sha256
    ]
    write_private(_path(folder), _FILE.dump_json((*others, tuned), indent=2).decode())


def forget_tuned(folder: ClusterFolder) -> int:
    """Drop all winners of a cluster; how many there were."""
    found = len(_read(folder))
    _path(folder).unlink(missing_ok=True)
    return found


def load_tuned(folder: ClusterFolder, valid: Valid) -> Tuned | None:
    """The winner kept for a cluster that holds for just this."""
    return next((tuned for tuned in _read(folder) if tuned.valid == valid), None)


def with_threads(survey: Survey, threads: Mapping[str, int]) -> Survey:
    """The survey of devices that run with these numbers of threads; those that are not named keep theirs.

    Their speeds stay as they were timed: what another number of threads does is known by measurements only.
    """
    return survey.with_devices(lambda one: replace(one, threads=threads.get(one.name, one.threads)))


def with_micro_batch(plan: Plan, micro_batch: int) -> Plan:
    """The same processes but for their micro-batch; bytes and times stay those of `plan`: for its `plan_key`."""
    return replace(plan, groups=tuple(replace(group, micro_batch=micro_batch) for group in plan.groups))


def find_plan(
    survey: Survey, memories: tuple[ModelMemory, ...], asked: Asked, key: str, experience: Experience
) -> Plan | None:
    """The plan with this `plan_key` among what was asked for; None when it does not fit or is not worth considering."""
    try:
        ranking = rank_plans(survey, memories, asked, experience)
    except PlanError:
        return None
    return _of_key(ranking, key)


def tuned_plan(
    ranking: Ranking, survey: Survey, memory: ModelMemory, tuned: Tuned, experience: Experience
) -> Plan | None:
    """The winner as a plan, from the ranking or, for a micro-batch that is not in it, made anew.

    `memory` is counted at the winner's micro-batch (`memory_at`). None when it does not fit now.
    """
    asked = asked_again(tuned.valid.goal, tuned.mode, tuned.split)
    return _of_key(ranking, tuned.plan) or find_plan(survey, (memory,), asked, tuned.plan, experience)


def asked_again(goal: str, mode: PlanMode, split: Mapping[str, int]) -> Asked:
    """What to ask for to be given a plan of these devices; a split in mode `layers` is forced."""
    return Asked(goal, frozenset(split), mode, split if mode == "layers" else None)


def _of_key(ranking: Ranking, key: str) -> Plan | None:
    """The plan of this key, else one whose devices only stand in another order."""
    exact = next((plan for plan in ranking.plans if plan_key(plan) == key), None)
    return exact or next((plan for plan in ranking.plans if alike_key(plan_key(plan)) == alike_key(key)), None)


def is_beaten(plan: Plan, ranking: Ranking) -> bool:
    """Whether one of the others was measured too, in another run, and took less time than the winner does, as plans
    are ranked: so much less that it is worth what it costs."""
    measured = (one for one in ranking.plans if all(group.known == "measured" for group in one.groups))
    faster = (one for one in measured if one.goal_s < BEATEN * plan.goal_s)
    return any(not gains_too_little(one, plan, one.goal_s / plan.goal_s) for one in faster)


def prefer(ranking: Ranking, plan: Plan, survey: Survey, memory: ModelMemory, asked: Asked) -> Ranking:
    """The ranking with this plan first, compared with the others anew. `asked` is what the user asked for."""
    others = [one for one in ranking.plans if alike_key(plan_key(one)) != alike_key(plan_key(plan))]
    chosen, *rest = explained(survey, memory, asked, plan, others, others).plans
    since = "" if all(group.known == "measured" for group in chosen.groups) else ANEW
    return Ranking((replace(chosen, reasons=(f"{BEST_MEASURED}{since}", *chosen.reasons)), *rest))


async def memory_at(micro_batch: int, memory: ModelMemory, engine: Path, model: Model, folders: Folders) -> ModelMemory:
    """What `memory` counts, at another micro-batch; `engine` is the folder of the engine that is asked."""
    counted = await count_memory(
        engine,
        model,
        context=memory.context,
        parallel=memory.parallel,
        micro_batch=micro_batch,
        cache_type=memory.cache_type,
        flash_attention=memory.flash_attention,
        cache=folders.cache / "memory",
    )
    return replace(counted, model=memory.model)


def _read(folder: ClusterFolder) -> tuple[Tuned, ...]:
    try:
        return _FILE.validate_json(_path(folder).read_bytes())
    except (OSError, ValidationError):
        return ()


def _path(folder: ClusterFolder) -> Path:
    return folder.path / "tuned.json"

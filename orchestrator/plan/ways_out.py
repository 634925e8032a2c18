"""What helps where a model fits nowhere, in words. Pure.

A way out is proposed where it was checked that there is a plan then. Smaller quantisations and more hosts always can
help; how small and how many is not known here.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from orchestrator.plan.asked import Asked
from orchestrator.plan.conversations import with_kv
from orchestrator.plan.pools import Candidate
from orchestrator.plan.split import holds_a_head
from orchestrator.plan.values import MODES, ModelMemory, PlanMode
from orchestrator.survey.values import Device, Survey
from workers.budget import GPU_RESERVE_BYTES, RESERVE_BYTES, MemoryCap, budget

SMALLEST_CONTEXT = 256
SMALLER = "choose a smaller quantisation of the model"
AMPLE_BYTES = 1 << 50

HasPlan = Callable[[Survey, ModelMemory, Asked], bool]


@dataclass(frozen=True)
class Question:
    """What has no plan. `modes` have one, but were not asked for; `has_plan` says whether there is one of what is."""

    survey: Survey
    memory: ModelMemory
    candidates: Sequence[Candidate]
    asked: Asked
    modes: Collection[PlanMode]
    has_plan: HasPlan

    def fits(self, smaller: ModelMemory) -> bool:
        """With fewer conversations, or shorter ones."""
        return self.has_plan(self.survey, smaller, self.asked)

    def fits_on(self, survey: Survey) -> bool:
        """On other hosts than there are."""
        return self.has_plan(survey, self.memory, self.asked)

    def fits_as(self, asked: Asked) -> bool:
        """If less is asked for."""
        return self.has_plan(self.survey, self.memory, asked)


def smaller_or(question: Question, *more: str) -> str:
    """A smaller model, fewer or shorter conversations, and `more` ways."""
    changes = [SMALLER]
    if parallel := _fitting_parallel(question):
        changes.append(f"lower parallel to {parallel}")
    if context := _fitting_context(question):
        changes.append(f"lower context to {context}")
    return any_of(*changes, *more)


def smaller_or_more(question: Question) -> str:
    """A smaller model, or more memory or devices for it, or another mode."""
    return smaller_or(question, *raise_caps(question), more_devices(question), *other_modes(question))


def any_of(*ways: str) -> str:
    """As one sentence; "" for none."""
    *first, last = ways or ("",)
    return f"{', '.join(first)}, or {last}" if first else last


def other_modes(question: Question) -> tuple[str, ...]:
    """Those that have a plan, where one was asked for that has none."""
    there = [mode for mode in MODES if mode in question.modes]
    return (f"choose another mode ({', '.join(there)})",) if there else ()


def survey_again(question: Question) -> tuple[str, ...]:
    """Where nothing but native timings is missing."""
    if all(one.device.native.measured for one in question.candidates):
        return ()
    timed = question.survey.with_devices(lambda one: one if one.native.measured else replace(one, native=one.speed))
    return ("survey again with --recalibrate",) if question.fits_on(timed) else ()


def raise_caps(question: Question) -> tuple[str, ...]:
    """Where it is the inventory that keeps memory from the model, not the machines."""
    return ("raise `memory` of a host",) if question.fits_on(question.survey.with_devices(_uncapped)) else ()


def more_devices(question: Question) -> str:
    """Those that are there, or others."""
    if question.asked.devices is None:
        return "add a host to the inventory"
    there_are = question.fits_as(replace(question.asked, devices=None))
    return "allow more devices" if there_are else "add a host to the inventory and allow its devices"


def for_the_head(question: Question) -> str:
    """For a controller that does not hold the head of any split."""
    larger, total_bytes = "run meshctl on a larger machine", question.survey.controller.memory_total_bytes
    if not question.fits_on(_with_controller(question.survey, AMPLE_BYTES)):
        return any_of(SMALLER, f"{more_devices(question)} and {larger}", *other_modes(question))
    enough = question.fits_on(_with_controller(question.survey, total_bytes))
    return any_of(*(["free memory on the controller"] if enough else []), larger, *other_modes(question))


def without_split(question: Question) -> str:
    """For a split that cannot run: what can instead, or would if something else changed."""
    freely = replace(question.asked, split=None)
    if question.fits_as(replace(freely, mode="layers")):
        return "change --split, or leave it out and let meshctl choose"
    if question.fits_as(freely):
        return "leave --split out and let meshctl choose"
    free = replace(question, asked=freely)
    ways = smaller_or_more(free) if holds_a_head(free.survey, free.memory) else for_the_head(free)
    return f"without --split there is no plan either: {ways}"


def _uncapped(device: Device) -> Device:
    """As with `memory: 100%` of its host."""
    reserve = RESERVE_BYTES if device.in_main_memory else GPU_RESERVE_BYTES
    whole = budget(MemoryCap(share=1.0), device.budget.free_bytes, reserve)
    return replace(device, budget=max(device.budget, whole, key=lambda one: one.usable_bytes))


def _with_controller(survey: Survey, available_bytes: int) -> Survey:
    return replace(survey, controller=replace(survey.controller, memory_available_bytes=available_bytes))


def _fitting_parallel(question: Question) -> int:
    """The largest number of conversations below the present one at which the model fits, or 0."""
    memory = question.memory
    fewer = (count for count in (2, 1) if count < memory.parallel)  # of replicas 1 is none
    least = next((count for count in fewer if question.fits(with_kv(memory, memory.context, count))), 0)
    low, high = least, memory.parallel
    while least and high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if question.fits(with_kv(memory, memory.context, middle)) else (low, middle)
    return low


def _fitting_context(question: Question) -> int:
    """The largest power of two below the context at which the model fits, or 0."""
    memory = question.memory
    context = 1 << ((memory.context - 1).bit_length() - 1) if memory.context > 1 else 0
    while context >= SMALLEST_CONTEXT:
        if question.fits(with_kv(memory, context, memory.parallel)):
            return context
        context //= 2
    return 0

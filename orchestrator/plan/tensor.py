"""Mode `tensor`: every layer cut across devices that work at the same time. Pure.

Where the survey timed these very devices and parts (`survey.values.TensorTime`) that is the time. Otherwise a formula,
in seconds per pass of n tokens, d over the devices, each with p_d of all K parts:

    max over d of (p_d of K of its blocks and output layer, timed through RPC)
    + 2 x blocks x (the longest round trip + sum over d of n hidden states up and down)
    + sum over d of its part of the logits down

The head adds up what the devices computed twice per layer. It asks all of them for their parts at once and sends the
sum to all, as our changes to the engine have it (`workers/rpc-ahead.patch`): one exchange takes as long as the farthest
device's, and their bytes share the head's line. Graphs are sent with the first token of a batch only.
Groups that were timed tell how far off the formula is for the others.
A prompt takes one such pass per micro-batch, without overlap. A layer is cut between KV heads, of which no device has
less than one: into K equal parts where the engine cuts every layer alike (`cut`), where it cannot, by what it does.
"""

import statistics
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import comb

import numpy as np

from orchestrator.plan.costs import (
    Seconds,
    ShareBytes,
    context_seconds,
    fastest_reading,
    head_share_bytes,
    layers_s,
    layers_seconds,
    needed_bytes,
    output_seconds,
    prefill_bytes,
)
from orchestrator.plan.cut import cut, cut_bytes, layers_part, part_bytes, whole_parts
from orchestrator.plan.pools import Candidate, Pooled, find_candidates, pool_budgets
from orchestrator.plan.single import find_singles
from orchestrator.plan.split import ENGINE_DEVICES, find_splits, head_need_bytes
from orchestrator.plan.values import Group, ModelMemory, Share, Traffic
from orchestrator.survey.values import Device, Speed, Survey, TensorTime

SYNCHRONISATIONS = 2
"""Per layer, each with all devices at once: after attention and after the feed-forward."""

MESSAGES_BYTES = 655
"""Of the messages of one exchange with one device, towards it, beside hidden states: compute that graph, give that
tensor, take this one; the engine's structures of 21, 321 and 313 bytes."""

EVERY_SET = 6
"""Up to this many devices every set of them is tried; of more, the fastest, the largest and the nearest."""

MOST_UNEVEN = 30
"""Where a model cannot be cut into equal parts, up to this many ways to share its KV heads are all tried."""

MOST_FINALISTS = 3

WORTH_TIMING = 2.0
"""A group predicted slower than this many times the best of the other modes is not worth timing: what the formula
leaves out makes it too fast. Too slow is only that a round trip is measured with 16 KiB each way, which are counted
twice so: 0.3 ms per exchange at 1 Gbit/s."""

NOT_EQUAL = "the text need not be byte-equal to that of other modes: sums over devices are added in another order"
NOT_TIMED = "predicted from each device's own speed and link: this very group was not timed"
BY_OTHERS = "corrected by how far that was off for groups that were timed"

Errors = Mapping[int, Sequence[tuple[float, float, float]]]
"""By the number of devices of a group: token, step and prefill, timed, divided by those of the formula."""

PassSeconds = Callable[[ModelMemory, int, int, int], float]
"""Seconds of a pass: memory, bytes of weights worked through, tokens, rows of logits."""

Hold = Callable[[Sequence[int]], bool]
"""Whether the memories that devices share hold so many parts on each."""


@dataclass(frozen=True)
class TensorSet:
    """Devices, fastest first, and the integers of `--tensor-split`."""

    devices: tuple[str, ...]
    parts: tuple[int, ...]


def find_tensors(survey: Survey, memories: Sequence[ModelMemory], candidates: Sequence[Candidate]) -> tuple[Group, ...]:
    """The groups worth considering, fastest token first: all that were timed, and the best of each number of devices;
    none with which that failed.

    None when the engine cannot cut this model.
    """
    if survey.tensor_refused:
        return ()
    sets = _device_sets(memories[0], candidates)
    groups = [group for members in sets for group in _groups(survey, memories, members)]
    timed = {(one.devices, one.parts) for one in survey.tensor}
    errors = formula_errors(survey, memories)
    groups = [corrected(group, errors) for group in groups]
    best = {id(one): one for count in range(2, ENGINE_DEVICES + 1) for one in _best_of(groups, count)}
    kept = [one for one in groups if id(one) in best or _names_and_parts(one) in timed]
    return tuple(sorted(kept, key=lambda one: (one.token_s, len(one.shares), _names_and_parts(one))))


def fastest_tensor(survey: Survey, memories: Sequence[ModelMemory], members: Sequence[Candidate]) -> Group | None:
    """The group of all these devices, fastest first, with the fastest token, by the formula where it was not timed."""
    if survey.tensor_refused or len(members) > ENGINE_DEVICES:
        return None
    return min(_groups(survey, memories, members), key=lambda one: (one.token_s, _names_and_parts(one)), default=None)


def is_guessed(group: Group) -> bool:
    """Whether nothing but the formula, which is too fast, is known of this group."""
    return NOT_TIMED in group.notes and BY_OTHERS not in group.notes and group.known == "predicted"


def formula_errors(survey: Survey, memories: Sequence[ModelMemory]) -> Errors:
    """How far off the formula is for the groups of the survey that were timed, whatever devices are asked for, and for
    those of which a device is no longer there."""
    errors: dict[int, list[tuple[float, float, float]]] = {}
    for one in survey.formula_off:
        errors.setdefault(one.devices, []).append((one.token, one.step, one.prefill))
    for timed, by in _off_formula(survey, memories, find_candidates(survey, None)).items():
        errors.setdefault(len(timed.devices), []).append(by)
    return errors


def _off_formula(
    survey: Survey, memories: Sequence[ModelMemory], candidates: Sequence[Candidate]
) -> dict[TensorSet, tuple[float, float, float]]:
    """Token, step and prefill of each group of these that was timed, divided by the formula's, where that has any."""
    by_name = {one.device.name: one for one in candidates}
    found = {}
    for one in survey.tensor:
        if not by_name.keys() >= set(one.devices):
            continue
        members = [by_name[name] for name in one.devices]
        timed = tensor_group(survey, memories, members, one.parts)
        formula = tensor_group(replace(survey, tensor=()), memories, members, one.parts)
        if timed and formula:
            by = (timed.token_s / formula.token_s, timed.step_s / formula.step_s, timed.prefill_s / formula.prefill_s)
            found[TensorSet(one.devices, one.parts)] = by
    return found


def far_off(survey: Survey, memories: Sequence[ModelMemory], candidates: Sequence[Candidate]) -> dict[TensorSet, float]:
    """Of each group that was timed, how many times its token or step is off the formula by more or less than the others
    are (at least 1): what the formula leaves out is much alike in all. Nothing of a group that is alone."""
    ratios = {one: by[:2] for one, by in _off_formula(survey, memories, candidates).items()}
    return {one: _off(its, [other for name, other in ratios.items() if name != one]) for one, its in ratios.items()}


def _off(its: tuple[float, float], others: Sequence[tuple[float, float]]) -> float:
    if not others:
        return 1.0
    usual = [float(statistics.median(column)) for column in zip(*others, strict=True)]
    return max(max(one / other, other / one) for one, other in zip(its, usual, strict=True))


def corrected(group: Group, errors: Errors) -> Group:
    """What was not timed is taken to be off the formula by as much as the timed groups, of as many devices if any are.

    Otherwise the formula's error alone would put an untimed group before timed ones. All others are left as they are.
    """
    known = errors.get(len(group.shares), [one for some in errors.values() for one in some])
    if NOT_TIMED not in group.notes or not known:
        return group
    token, step, prefill = (statistics.median(column) for column in zip(*known, strict=True))
    return replace(
        group,
        shares=tuple(replace(share, time_s=share.time_s * token) for share in group.shares),
        token_s=group.token_s * token,
        step_s=group.step_s * step,
        prefill_s=group.prefill_s * prefill,
        context_s=group.context_s * prefill,
        notes=(*group.notes, BY_OTHERS),
    )


def finalists(
    survey: Survey, memories: Sequence[ModelMemory], candidates: Sequence[Candidate], *, asked_for: bool = False
) -> tuple[TensorSet, ...]:
    """The groups, at most `MOST_FINALISTS`, that are worth timing over their real links, by the formula alone.

    Those whose token or step is predicted within `WORTH_TIMING` of the best single device or layer split, or any where
    this mode is `asked_for`. Of few devices: the two fastest, the three fastest and so on.
    """
    untimed = replace(survey, tensor=())
    groups = _few(untimed, memories, candidates) or find_tensors(untimed, memories, candidates)
    if not asked_for:
        groups = _worth_timing(untimed, memories, candidates, groups)
    by_step = sorted(groups, key=lambda one: (one.step_s, _names_and_parts(one)))
    ordered = {_names_and_parts(one): one for one in (*groups[:1], *by_step[:1], *groups)}
    return tuple(TensorSet(*names_and_parts) for names_and_parts in [*ordered][:MOST_FINALISTS])


def tensor_group(
    survey: Survey, memories: Sequence[ModelMemory], members: Sequence[Candidate], parts: Sequence[int]
) -> Group | None:
    """These devices with these parts, at the micro-batch that reads a prompt fastest; None where it does not fit."""
    held = {memory.micro_batch: _budgets(survey, memory, members, parts) for memory in memories}
    fitting = [memory for memory in memories if held[memory.micro_batch]]
    if not fitting or fitting[0] is not memories[0]:
        return None
    timed = _timed(survey, members, parts)
    pass_s = _by_formula(members, parts) if timed is None else _as_timed(timed)
    memory = fastest_reading(fitting, lambda one: _prefill_s(one, members, parts, pass_s))
    notes = (NOT_EQUAL,) if timed else (NOT_EQUAL, NOT_TIMED)
    return _group(memory, held[memory.micro_batch], parts, pass_s, notes)


def best_parts(
    paces: Seconds,
    per_part_s: Sequence[float],
    most: Sequence[int],
    hold: Hold | None = None,
) -> tuple[int, ...] | None:
    """The parts that minimise the slowest device's time plus what each part costs on its link; exact.

    `paces[d, p]` is the time of device d with p parts, not falling with p; their number is that of the columns less one
    and each device takes 1 to `most[d]` of them, as far as the memories that devices share `hold` them. For each time
    that could be the slowest, parts go where links are cheapest. None when they do not fit.
    """
    wanted = paces.shape[1] - 1
    if sum(most) < wanted or min(most) < 1 or len(most) > wanted:
        return None
    best, best_s = None, np.inf
    cheapest_s = min(per_part_s) * wanted
    for limit_s in np.unique(paces[:, 1:][paces[:, 1:] >= paces[:, 1].max()]):
        if limit_s + cheapest_s >= best_s:
            break
        allowed = [min(most[d], int(np.searchsorted(row[1:], limit_s, "right"))) for d, row in enumerate(paces)]
        if sum(allowed) < wanted:
            continue
        parts = _hand_out(paces, per_part_s, allowed, hold)
        if not parts:
            continue
        total_s = max(paces[d, part] for d, part in enumerate(parts)) + float(np.dot(per_part_s, parts))
        if total_s < best_s:
            best, best_s = tuple(parts), total_s
    return best


def most_parts(memory: ModelMemory, candidate: Candidate, whole: int) -> int:
    """How many of so many equal parts the budget of this device holds."""
    every_part = range(1, whole + 1)
    return bisect_right(
        every_part, candidate.budget_bytes, key=lambda part: needed_bytes(part_bytes(memory, part, whole).total_bytes)
    )


def _hand_out(paces: Seconds, per_part_s: Sequence[float], allowed: Sequence[int], hold: Hold | None) -> list[int]:
    """One part each, and every other one where its link costs least; among those, where it is done first. Nothing where
    memory is too small."""
    parts = [1] * len(allowed)
    if hold and not hold(parts):
        return []
    for _ in range(paces.shape[1] - 1 - len(parts)):
        open_to = [d for d, part in enumerate(parts) if part < allowed[d]]
        if hold:
            open_to = [d for d in open_to if hold([*parts[:d], parts[d] + 1, *parts[d + 1 :]])]
        if not open_to:
            return []
        parts[min(open_to, key=lambda d: (per_part_s[d], paces[d, parts[d] + 1], d))] += 1
    return parts


def _device_sets(memory: ModelMemory, candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, ...]]:
    """The sets to try, each fastest first."""
    most = min(memory.kv_heads, ENGINE_DEVICES, len(candidates))
    if len(candidates) <= EVERY_SET:
        for count in range(2, most + 1):
            yield from combinations(candidates, count)
        return
    place = {one.device.name: k for k, one in enumerate(candidates)}
    orders = (
        list(candidates),
        sorted(candidates, key=lambda one: (-one.budget_bytes, place[one.device.name])),
        sorted(candidates, key=lambda one: (_alone_s(memory, one.device), place[one.device.name])),
    )
    sets = {frozenset(order[:count]): None for order in orders for count in range(2, most + 1)}
    for members in sets:
        yield tuple(sorted(members, key=lambda one: place[one.device.name]))


def _groups(survey: Survey, memories: Sequence[ModelMemory], members: Sequence[Candidate]) -> Iterator[Group]:
    """These devices as they were timed, where that fits, else with the parts that the formula finds best; none where
    that failed when it was tried."""
    names = _names(members)
    if any(names == frozenset(devices) for devices in survey.tensor_failed):
        return
    sums = {whole_parts(memories[0], len(members)), memories[0].kv_heads, len(members)}
    timed = [one for one in survey.tensor if set(one.devices) == names and sum(one.parts) in sums]
    by_name = {one.device.name: one for one in members}
    found = [tensor_group(survey, memories, [by_name[name] for name in one.devices], one.parts) for one in timed]
    if not any(found):
        parts = _choose_parts(survey, memories[0], members)
        found = [tensor_group(survey, memories, members, parts)] if parts else []
    yield from (group for group in found if group is not None)


def _choose_parts(survey: Survey, memory: ModelMemory, members: Sequence[Candidate]) -> tuple[int, ...] | None:
    pooled = _pooled(survey, memory, members)
    if pooled is None or len(members) > memory.kv_heads:
        return None
    whole = whole_parts(memory, len(members))
    if whole:
        return _equal_parts(memory, pooled, whole)
    ways = [one for one in _uneven_ways(memory, pooled) if pooled.hold(_needs(memory, pooled, one))]

    def token_s(parts: tuple[int, ...]) -> float:
        return _by_formula(pooled.candidates, parts)(memory, sum(memory.layer_weights_bytes), 1, 1)

    return min(ways, key=lambda parts: (token_s(parts), parts), default=None)


def _equal_parts(memory: ModelMemory, pooled: Pooled, whole: int) -> tuple[int, ...] | None:
    """How many of so many equal parts each device has best."""
    members = pooled.alone
    logits_s = [memory.logits_bytes / whole / one.device.link.down_bytes_per_s for one in members]
    paces = np.stack([_paces(memory, one.device.speed, whole) for one in members])
    most = [most_parts(memory, one, whole) for one in members]
    if not pooled.crowded:
        return best_parts(paces, logits_s, most)
    needed = [needed_bytes(part_bytes(memory, part, whole).total_bytes) for part in range(whole + 1)]
    memories = [
        ([k for k, one in enumerate(members) if one.device.name in shared.names], shared.limit_bytes)
        for shared in pooled.memories
    ]

    def hold(parts: Sequence[int]) -> bool:
        return all(sum(needed[parts[k]] for k in sharing) <= limit for sharing, limit in memories)

    return best_parts(paces, logits_s, most, hold)


def _uneven_ways(memory: ModelMemory, pooled: Pooled) -> Iterator[tuple[int, ...]]:
    """Ways to share a model that cannot be cut into equal parts: one part each, and its KV heads in whole numbers."""
    devices, heads = len(pooled.candidates), memory.kv_heads
    yield (1,) * devices
    if comb(heads - 1, devices - 1) > MOST_UNEVEN:
        if best := _equal_parts(memory, pooled, heads):
            yield best
        return
    for ends in combinations(range(1, heads), devices - 1):
        yield tuple(end - begin for begin, end in zip((0, *ends), (*ends, heads), strict=True))


def _paces(memory: ModelMemory, speed: Speed, whole: int) -> Seconds:
    """Seconds of a token's computing with 0, 1, ... all parts; what noise makes fall is taken as level."""
    parts = np.arange(whole + 1)
    blocks_s = layers_s(speed, sum(memory.layer_weights_bytes) * parts // whole, 1)
    rising: Seconds = np.maximum.accumulate(blocks_s + output_seconds(speed, memory.output_bytes) * parts / parts[-1])
    return rising


def _pooled(survey: Survey, memory: ModelMemory, members: Sequence[Candidate]) -> Pooled | None:
    head_bytes = head_need_bytes(memory, output=False)
    available = survey.controller.memory_available_bytes
    return pool_budgets(members, controller_bytes=available, head_bytes=head_bytes)


def _budgets(
    survey: Survey, memory: ModelMemory, members: Sequence[Candidate], parts: Sequence[int]
) -> tuple[Candidate, ...]:
    """The devices with their budgets beside each other; none where these parts do not fit."""
    pooled = _pooled(survey, memory, members)
    if pooled is None:
        return ()
    needs = _needs(memory, pooled, parts)
    return pooled.beside(needs) if pooled.hold(needs) else ()


def _needs(memory: ModelMemory, pooled: Pooled, parts: Sequence[int]) -> dict[str, int]:
    held = zip(pooled.candidates, cut_bytes(memory, parts), strict=True)
    return {one.device.name: needed_bytes(its.total_bytes) for one, its in held}


def _timed(survey: Survey, members: Sequence[Candidate], parts: Sequence[int]) -> TensorTime | None:
    wanted: Mapping[str, int] = {one.device.name: part for one, part in zip(members, parts, strict=True)}
    matching = (one for one in survey.tensor if dict(zip(one.devices, one.parts, strict=True)) == wanted)
    return next(matching, None)


def _as_timed(timed: TensorTime) -> PassSeconds:
    speed = Speed(passes=timed.passes, output_s=timed.output_s)

    def pass_s(memory: ModelMemory, weights: int, tokens: int, rows: int) -> float:
        seconds = layers_seconds(speed, weights, tokens)
        return seconds + (output_seconds(speed, memory.output_bytes, rows) if rows else 0.0)

    return pass_s


def _by_formula(members: Sequence[Candidate], parts: Sequence[int]) -> PassSeconds:
    devices = [one.device for one in members]

    def pass_s(memory: ModelMemory, weights: int, tokens: int, rows: int) -> float:
        made, of_all = cut(memory, parts), weights / sum(memory.layer_weights_bytes)

        def computing_s(number: int, heads: float) -> float:
            speed, share = devices[number].speed, made.share(number)
            seconds = layers_seconds(speed, int(layers_part(memory, share, heads) * of_all), tokens)
            return seconds + (output_seconds(speed, memory.output_bytes, rows) * share if rows else 0.0)

        slowest_s = [max(computing_s(*one) for one in enumerate(row)) for row in made.heads]
        logits_s = sum(
            memory.logits_bytes * rows * made.share(number) / device.link.down_bytes_per_s
            for number, device in enumerate(devices)
        )
        return sum(slowest_s) / len(slowest_s) + _exchanges_s(memory, devices, tokens) + logits_s

    return pass_s


def _alone_s(memory: ModelMemory, device: Device) -> float:
    """What its link would cost if it were the only one."""
    return _exchanges_s(memory, [device], 1)


def _exchanges_s(memory: ModelMemory, devices: Sequence[Device], tokens: int) -> float:
    """Seconds of the exchanges of one pass, each with all devices at once."""
    hidden = memory.hidden_bytes * tokens
    round_trip_s = max(one.link.round_trip_s for one in devices)
    bytes_s = sum(
        (hidden + MESSAGES_BYTES) / one.link.up_bytes_per_s + hidden / one.link.down_bytes_per_s for one in devices
    )
    return SYNCHRONISATIONS * memory.blocks * (round_trip_s + bytes_s)


def _prefill_s(memory: ModelMemory, members: Sequence[Candidate], parts: Sequence[int], pass_s: PassSeconds) -> float:
    micro_batch = min(memory.micro_batch, memory.prompt_tokens)
    each_s = pass_s(memory, prefill_bytes(memory, 0, memory.blocks), micro_batch, 0)
    return memory.prompt_tokens / micro_batch * each_s + _context_s(memory, members, parts)


def _context_s(memory: ModelMemory, members: Sequence[Candidate], parts: Sequence[int]) -> float:
    """What the context adds to a prompt: attention is cut by heads, the slowest device's part counts in each layer."""
    whole_s = [context_seconds(one.device.speed, memory.blocks, memory.prompt_tokens, memory) for one in members]
    rows = cut(memory, parts).heads
    return sum(max(heads * s for heads, s in zip(row, whole_s, strict=True)) for row in rows) / len(rows)


def _group(
    memory: ModelMemory,
    members: Sequence[Candidate],
    parts: Sequence[int],
    pass_s: PassSeconds,
    notes: tuple[str, ...],
) -> Group:
    weights, head = sum(memory.layer_weights_bytes), head_share_bytes(memory, output=False)
    token_s, held = pass_s(memory, weights, 1, 1), cut_bytes(memory, parts)
    return Group(
        mode="tensor",
        head="",
        shares=tuple(_share(memory, *one, token_s) for one in zip(members, parts, held, strict=True)),
        parallel=memory.parallel,
        micro_batch=memory.micro_batch,
        output_on_head=False,
        head_bytes=head.total_bytes,
        head_compute_bytes=head.compute_bytes,
        head_time_s=0.0,
        token_s=token_s,
        step_s=pass_s(memory, weights, memory.parallel, memory.parallel),
        prefill_s=_prefill_s(memory, members, parts, pass_s),
        context_s=_context_s(memory, members, parts),
        prompt_tokens=memory.prompt_tokens,
        traffic=_traffic(memory, len(members)),
        notes=notes,
    )


def _share(memory: ModelMemory, candidate: Candidate, part: int, held: ShareBytes, token_s: float) -> Share:
    return Share(
        device=candidate.device.name,
        first_layer=0,
        layers=memory.blocks,
        output=True,
        weights_bytes=held.weights_bytes,
        kv_bytes=held.kv_bytes,
        compute_bytes=held.compute_bytes,
        budget_bytes=candidate.budget_bytes,
        time_s=token_s,
        part=part,
        own_memory=not candidate.in_main_memory,
    )


def _traffic(memory: ModelMemory, devices: int) -> Traffic:
    """All devices are one stage, and are waited for together; bytes are those of all."""
    synchronisations = SYNCHRONISATIONS * memory.blocks
    hidden = synchronisations * devices * memory.hidden_bytes
    return Traffic(
        hops=1,
        synchronisations=synchronisations,
        up_bytes=hidden + synchronisations * devices * MESSAGES_BYTES,
        down_bytes=hidden + memory.logits_bytes,
    )


def _best_of(groups: Sequence[Group], count: int) -> Iterator[Group]:
    """Of the groups of this many devices the one with the fastest token and the one with the fastest step."""
    ours = [one for one in groups if len(one.shares) == count]
    if ours:
        yield min(ours, key=lambda one: (one.token_s, _names_and_parts(one)))
        yield min(ours, key=lambda one: (one.step_s, _names_and_parts(one)))


def _few(survey: Survey, memories: Sequence[ModelMemory], candidates: Sequence[Candidate]) -> Sequence[Group]:
    """Of so few devices that all of these can be timed: the two fastest, the three fastest and so on."""
    if len(candidates) > MOST_FINALISTS + 1 or survey.tensor_refused:
        return ()
    prefixes = [candidates[:count] for count in range(2, len(candidates) + 1)]
    return [group for members in prefixes for group in _groups(survey, memories, members)]


def _worth_timing(
    survey: Survey, memories: Sequence[ModelMemory], candidates: Sequence[Candidate], groups: Sequence[Group]
) -> list[Group]:
    others = [*find_singles(survey, memories, candidates), *find_splits(survey, memories, candidates, goal="latency")]
    token_s = min((one.token_s for one in others), default=np.inf) * WORTH_TIMING
    step_s = min((one.step_s for one in others), default=np.inf) * WORTH_TIMING
    return [one for one in groups if one.token_s <= token_s or one.step_s <= step_s]


def _names(members: Sequence[Candidate]) -> frozenset[str]:
    return frozenset(one.device.name for one in members)


def _names_and_parts(group: Group) -> tuple[tuple[str, ...], tuple[int, ...]]:
    return tuple(share.device for share in group.shares), group.tensor_split

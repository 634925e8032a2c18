"""A ranking as JSON for programs; docs/plan.md describes every key. Pure; prints nothing."""

import json

from orchestrator.plan.costs import margin_bytes
from orchestrator.plan.values import Fallback, Group, Plan, Ranking, Share, plan_key
from orchestrator.survey.values import Link, Survey
from orchestrator.view.ranking import worse_by
from workers.engine_commands import flash_attention_told


def ranking_json(ranking: Ranking, survey: Survey) -> str:
    """Every plan that was considered, best first, as indented JSON. Keys are only ever added."""
    links = {device.name: device.link for device in survey.devices}
    chosen = ranking.chosen
    return json.dumps(
        {
            "survey": {"cluster": survey.cluster, "taken_at": survey.taken_at, "engine": survey.engine},
            "goal": chosen.goal,
            "model": chosen.model,
            "context": chosen.context,
            "parallel": chosen.parallel,
            "cache_type": chosen.cache_type,
            "plans": [_plan_json(plan, chosen, links) for plan in ranking.plans],
        },
        indent=2,
        ensure_ascii=False,
    )


def _plan_json(plan: Plan, chosen: Plan, links: dict[str, Link]) -> dict[str, object]:
    return {
        "mode": plan.mode,
        "key": plan_key(plan),
        "worse_by": worse_by(plan, chosen),
        "prediction": {
            "token_s": plan.token_s,
            "decode_tokens_per_s": plan.decode_tokens_per_s,
            "prefill_tokens_per_s": plan.prefill_tokens_per_s,
            "first_token_s": plan.first_token_s,
            "aggregate_tokens_per_s": plan.aggregate_tokens_per_s,
        },
        "groups": [_group_json(group, plan, links) for group in plan.groups],
        "left_out": [{"device": one.device, "reason": one.reason} for one in plan.left_out],
        "reasons": list(plan.reasons),
        "fallbacks": [_fallback_json(one) for one in plan.fallbacks],
    }


def _fallback_json(fallback: Fallback) -> dict[str, object]:
    plan = fallback.plan
    return {
        "without": fallback.host,
        "mode": plan.mode,
        "key": plan_key(plan),
        "context": plan.context,
        "decode_tokens_per_s": plan.decode_tokens_per_s,
        "aggregate_tokens_per_s": plan.aggregate_tokens_per_s,
    }


def _group_json(group: Group, plan: Plan, links: dict[str, Link]) -> dict[str, object]:
    cut = group.mode == "tensor"
    return {
        "mode": group.mode,
        "known": group.known,
        "parallel": group.parallel,
        "micro_batch": group.micro_batch,
        "flash_attention": flash_attention_told(plan.cache_type, plan.flash_attention, cut=cut),
        "tensor_split": None if group.mode == "single" else list(group.tensor_split),
        "prediction": {
            "token_s": group.token_s,
            "decode_tokens_per_s": group.decode_tokens_per_s,
            "step_s": group.step_s,
            "aggregate_tokens_per_s": group.aggregate_tokens_per_s,
            "prompt_tokens": group.prompt_tokens,
            "prefill_s": group.prefill_s,
            "prefill_tokens_per_s": group.prefill_tokens_per_s,
            "first_token_s": group.first_token_s,
        },
        "traffic": {
            "hops": group.traffic.hops,
            "synchronisations": group.traffic.synchronisations,
            "up_bytes": group.traffic.up_bytes,
            "down_bytes": group.traffic.down_bytes,
        },
        "head": _head_json(group),
        "shares": [_share_json(share, links.get(share.device)) for share in group.shares],
        "notes": list(group.notes),
    }


def _head_json(group: Group) -> dict[str, object]:
    return {
        "host": group.head,
        "output": group.output_on_head,
        "weights_bytes": group.head_bytes - group.head_compute_bytes,
        "compute_bytes": group.head_compute_bytes,
        "total_bytes": group.head_bytes,
        "time_s": group.head_time_s,
    }


def _share_json(share: Share, link: Link | None) -> dict[str, object]:
    return {
        "device": share.device,
        "native": share.native,
        "first_layer": share.first_layer,
        "layers": share.layers,
        "part": share.part,
        "output": share.output,
        "weights_bytes": share.weights_bytes,
        "kv_bytes": share.kv_bytes,
        "compute_bytes": share.compute_bytes,
        "total_bytes": share.total_bytes,
        "margin_bytes": margin_bytes(share.total_bytes),
        "budget_bytes": share.budget_bytes,
        "time_s": share.time_s,
        "link": None if link is None else _link_json(link),
    }


def _link_json(link: Link) -> dict[str, object]:
    return {
        "kind": link.kind,
        "medium": link.medium,
        "round_trip_s": link.round_trip_s,
        "up_bytes_per_s": link.up_bytes_per_s,
        "down_bytes_per_s": link.down_bytes_per_s,
    }

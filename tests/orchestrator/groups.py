"""Groups and plans as a planner might give them, for tests of what is done with them: round numbers throughout."""

from orchestrator.plan.values import Group, GroupMode, Plan, PlanMode, Share
from workers.budget import MIB


def make_share(
    device: str,
    layers: int = 10,
    *,
    first_layer: int = 0,
    part: int = 0,
    native: bool = False,
    gpu: str = "",
    mib: int = 100,
) -> Share:
    """`mib` MiB of weights, a tenth as much of KV cache and as much again of buffers, in a budget of ten times that."""
    sizes = (mib * MIB, mib * MIB // 10, mib * MIB // 10, 10 * mib * MIB)
    return Share(device, first_layer, layers, False, *sizes, 0.1, part=part, native=native or bool(gpu), gpu=gpu)


def make_group(
    *shares: Share,
    mode: GroupMode = "layers",
    head: str = "",
    parallel: int = 1,
    micro_batch: int = 64,
    output_on_head: bool = True,
    token_s: float = 0.1,
    prefill_s: float = 2.0,
) -> Group:
    """A step of all conversations takes twice a token's time when there are several."""
    return Group(
        mode=mode,
        head=head,
        shares=shares,
        parallel=parallel,
        micro_batch=micro_batch,
        output_on_head=output_on_head,
        head_bytes=50 * MIB,
        head_compute_bytes=20 * MIB,
        head_time_s=0.01,
        token_s=token_s,
        step_s=token_s if parallel == 1 else 2 * token_s,
        prefill_s=prefill_s,
        prompt_tokens=1024,
    )


def make_plan_of(*groups: Group, mode: PlanMode | None = None) -> Plan:
    """A plan of these groups for all their conversations."""
    return Plan(
        mode=mode or ("replicas" if len(groups) > 1 else groups[0].mode),
        goal="latency",
        model="llama.gguf",
        context=4096,
        parallel=sum(group.parallel for group in groups),
        groups=groups,
    )

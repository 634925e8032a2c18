"""Plans made by hand for the tests of their views: what the planner would decide is no matter there."""

from orchestrator.plan.values import Group, LeftOut, Plan, Ranking, Share, Traffic
from orchestrator.survey.values import Link
from tests.orchestrator.plan.examples import LOOPBACK, make_device, make_survey
from workers.budget import MIB

FAR = Link("tunnel", round_trip_s=0.0031, up_bytes_per_s=12 * MIB, down_bytes_per_s=12 * MIB, medium="wireless")

SURVEY = make_survey(
    [
        make_device("desk/cpu", 700, link=LOOPBACK),
        make_device("nuc/cpu", 800),
        make_device("[pi]/cpu", 900, link=FAR),
    ],
    local=["desk"],
)


def share(device: str, first: int, layers: int, *, part: int = 0, native: bool = False, output: bool = False) -> Share:
    """Layers of 100 MiB with 10 MiB of KV that take 10 ms each."""
    return Share(
        device=device,
        first_layer=first,
        layers=layers,
        output=output,
        weights_bytes=100 * layers * MIB,
        kv_bytes=10 * layers * MIB,
        compute_bytes=40 * MIB,
        budget_bytes=800 * MIB,
        time_s=0.01 * layers,
        part=part,
        native=native,
    )


LAYERS = Group(
    mode="layers",
    head="",
    shares=(share("desk/cpu", 0, 4, native=True), share("nuc/cpu", 4, 5), share("[pi]/cpu", 9, 1)),
    parallel=4,
    micro_batch=64,
    output_on_head=True,
    head_bytes=170 * MIB,
    head_compute_bytes=20 * MIB,
    head_time_s=0.01,
    token_s=0.125,
    step_s=0.25,
    prefill_s=8.0,
    prompt_tokens=1024,
    traffic=Traffic(hops=2, synchronisations=2, up_bytes=16384, down_bytes=16384),
    notes=("desk/cpu computes natively",),
)

TENSOR = Group(
    mode="tensor",
    head="",
    shares=(share("desk/cpu", 0, 10, part=3), share("[pi]/cpu", 0, 10, part=1)),
    parallel=4,
    micro_batch=256,
    output_on_head=False,
    head_bytes=70 * MIB,
    head_compute_bytes=20 * MIB,
    head_time_s=0.0,
    token_s=0.15,
    step_s=0.5,
    prefill_s=16.0,
    prompt_tokens=1024,
    traffic=Traffic(hops=1, synchronisations=20, up_bytes=5_200_000, down_bytes=400_000),
    known="corrected",
)


def single(device: str, parallel: int, token_s: float) -> Group:
    """A whole copy on one device, the head there."""
    return Group(
        mode="single",
        head=device.split("/")[0],
        shares=(share(device, 0, 10, native=True, output=True),),
        parallel=parallel,
        micro_batch=512,
        output_on_head=False,
        head_bytes=0,
        head_compute_bytes=0,
        head_time_s=0.0,
        token_s=token_s,
        step_s=parallel * token_s / 2,
        prefill_s=4.0,
        prompt_tokens=1024,
        known="measured",
    )


def plan(*groups: Group, goal: str = "latency", left_out: tuple[LeftOut, ...] = ()) -> Plan:
    """What these groups make together; its one reason is in it twice, as the group's note is elsewhere."""
    return Plan(
        mode="replicas" if len(groups) > 1 else groups[0].mode,
        goal=goal,
        model="llama.gguf",
        context=4096,
        parallel=sum(group.parallel for group in groups),
        groups=groups,
        left_out=left_out,
        reasons=("no single device holds the whole model",),
    )


RANKING = Ranking(
    (
        plan(LAYERS, left_out=(LeftOut("hub/cpu", "its link costs 3.1 ms"),)),
        plan(TENSOR),
        plan(single("nuc/cpu", 4, 0.2)),
        plan(single("nuc/cpu", 2, 0.125), single("[pi]/cpu", 2, 0.25)),
    )
)

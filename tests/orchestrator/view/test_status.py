"""The state of a cluster as a person reads it."""

from dataclasses import replace
from datetime import UTC, datetime

from orchestrator.host_state import HeadState, HostAside, HostFault, HostState, StepState, StepTime
from orchestrator.state import ClusterState, GroupSpeed, ProcessState
from orchestrator.view.status import status_view
from tests.orchestrator.groups import make_group, make_plan_of, make_share
from tests.orchestrator.view.rendering import rendered
from workers.budget import MIB

GIB = 1024 * MIB
NOW = datetime(2026, 11, 22, 12, 3, 5, tzinfo=UTC)
LAYERS = make_group(make_share("[a]/cpu", 4), make_share("b/cpu", 6))
SINGLE = make_group(make_share("c/cpu", native=True), mode="single", head="c")
FAULT = HostFault("2026-11-22T12:02:55+00:00", "b: worker-cpu-20001 ended by itself (ended by signal 9)")
ASIDE = HostAside("2026-11-22T12:08:05+00:00", "it failed 3 times within 10 minutes; set aside for 5")
STATE = ClusterState(
    cluster="home",
    inventory="/inventory.yaml",
    pid=1,
    phase="degraded",
    message="nuc is missing: no route",
    since="2026-11-22T12:00:00+00:00",
    gateway="http://127.0.0.1:11435/v1",
    plan=make_plan_of(LAYERS, SINGLE),
    processes=(
        ProcessState("c", "head2-20000", 7, 100 * MIB, 0.98),
        ProcessState("b", "worker-cpu-20001", 12345, None),
    ),
    speeds=(
        GroupSpeed("head1", "controller", "layers", 10.0, 11.0, 10.0, 11.0, 500.0, 480.0),
        GroupSpeed("head2", "c", "single", 8.0, 8.0, 16.0, 12.0, 200.0, 201.0),
    ),
    hosts=(
        HostState("controller", 50 * MIB, 20 * MIB, 3 * GIB, 0.02, 8, 1, 11.2),
        HostState("[a]", 160 * MIB, 95 * MIB, 20 * GIB, 0.97, 2, 1, 11.2),
        HostState("b", 2 * GIB, GIB, 4 * GIB, None, 4, 1, 11.2, FAULT),
        HostState("nuc", missing="no route"),
        HostState("pi", cores=4, aside=ASIDE),
    ),
    heads=(
        HeadState("head1", "controller", ("controller", "[a]", "b"), 1, 11.2),
        HeadState("head2", "c", ("c",), 0, 0.0),
    ),
    requests_running=1,
    tokens_per_s=11.2,
    key_file="/key",
)

TEXT = """\
home  degraded for 3 min 5 s, since 2026-11-22 12:00:00Z
nuc is missing: no route
gateway    http://127.0.0.1:11435/v1
API key    /key
requests   1 running, 0 waiting, 0 finished; 11.2 tok/s now
plan       replicas:
             layers: [a]/cpu (4), b/cpu (6)
             single: all layers on c/cpu
inventory  /inventory.yaml

host          used/budget      left  cores  tokens/s
controller  20.0/50.0 MiB   3.0 GiB  0.0/8      11.2
[a]          95.0/160 MiB  20.0 GiB  1.0/2      11.2
b             1.0/2.0 GiB   4.0 GiB    -/4      11.2
nuc                     -         -      -         -
pi                      -         -    -/4         -
b: last fault 10 s ago: worker-cpu-20001 ended by itself
(ended by signal 9)
nuc: missing: no route
pi: set aside until 2026-11-22 12:08:05Z (in 5 min 0 s): it
failed 3 times within 10 minutes; set aside for 5

head on     tokens/s           predicted  measured  error
controller  decode                  10.0      11.0   +10%
(layers)    prefill                500.0     480.0    -4%
            now, 1 running                    11.2
c           decode                   8.0       8.0    +0%
(single)    all conversations       16.0      12.0   -25%
            prefill                200.0     201.0    +0%
            now, 0 running                     0.0

host  process             pid   memory  cores
c     head2-20000           7  100 MiB    1.0
b     worker-cpu-20001  12345        -      -
"""


def test_a_cluster_that_serves_tells_how_long_its_start_took() -> None:
    """Only steps that could be felt."""
    took = (StepTime("Connecting to 2 hosts", 0.412), StepTime("Planning", 0.004), StepTime("Loading", 61.3))
    text = rendered(status_view(replace(STATE, took=took), NOW), width=60)
    assert (
        "inventory  /inventory.yaml\n"
        "start      took 61.7 s, of that\n"
        "              0.4 s  Connecting to 2 hosts\n"
        "             61.3 s  Loading\n"
        "\n"
    ) in text
    assert "took" not in rendered(status_view(replace(STATE, took=took, phase="recovering"), NOW), width=60)


def test_a_certificate_is_shown_with_its_fingerprint() -> None:
    encrypted = replace(STATE, certificate="/c.crt", certificate_sha256="AB:CD")
    assert rendered(status_view(encrypted, NOW), 60) == TEXT.replace(
        "API key    /key\n", "API key    /key\nTLS        /c.crt\nSHA-256    AB:CD\n"
    )


def test_every_group_is_shown_with_what_was_predicted_and_measured() -> None:
    assert rendered(status_view(STATE, NOW), 60) == TEXT


def test_nothing_needs_more_than_ascii_or_is_cut_off_in_60_columns() -> None:
    text = rendered(status_view(STATE, NOW), 60)
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 60


def test_while_it_is_brought_up_the_step_is_shown_with_its_fraction() -> None:
    step = StepState("loading", "Starting the head and loading the model", 0.42)
    recovering = replace(STATE, phase="recovering", message="b: its worker ended", step=step, processes=(), heads=())
    text = rendered(status_view(recovering, NOW))
    assert "step       loading, 42%: Starting the head and loading the model\n" in text
    assert "tok/s now" not in text
    waiting = replace(recovering, step=StepState("waiting", "Waiting for more memory"))
    assert "step       waiting: Waiting for more memory\n" in rendered(status_view(waiting, NOW))


def test_what_was_not_measured_after_a_recovery_is_a_dash() -> None:
    hurried = GroupSpeed("head", "b", "single", 61.3, None, 61.3, None, 300.0, None)
    lines = rendered(status_view(replace(STATE, speeds=(hurried,), heads=()), NOW), width=60).splitlines()
    assert [line.split() for line in lines if "decode" in line or "prefill" in line] == [
        ["b", "decode", "61.3", "-", "-"],
        ["(single)", "prefill", "300.0", "-", "-"],
    ]


def test_what_is_still_to_be_measured_is_said_to_be_as_long_as_it_serves() -> None:
    first, second = STATE.speeds
    hurried = GroupSpeed("head2", "c", "single", 8.0, None, 16.0, None, 200.0, None, awaited=True)
    serving = replace(STATE, speeds=(first, hurried))
    assert "\n\nhost  process " in rendered(status_view(replace(serving, speeds=(first, second)), NOW), 60)
    assert (
        "            now, 0 running                     0.0\n"
        "c (single): not measured yet, but will be when the cluster\n"
        "is quiet\n\nhost  process "
    ) in rendered(status_view(serving, NOW), 60)
    assert "not measured yet" not in rendered(status_view(replace(serving, phase="recovering"), NOW), 60)


def test_another_cache_type_than_f16_stands_beside_the_plan() -> None:
    kept = replace(make_plan_of(LAYERS), cache_type="q4_0", flash_attention="on")
    lines = rendered(status_view(replace(STATE, plan=kept), NOW), width=100).splitlines()
    (shown,) = (line for line in lines if line.startswith("plan "))
    assert shown.endswith("; contexts in q4_0, flash attention on")


def test_speeds_of_an_earlier_start_are_said_to_be() -> None:
    first, second = STATE.speeds
    text = rendered(status_view(replace(STATE, speeds=(replace(first, earlier=True), second)), NOW), 60)
    assert text == TEXT.replace(
        "\nhost  process ", "controller (layers): measured at an earlier start\n\nhost  process "
    )

"""The state of a cluster as a person reads it."""

from dataclasses import replace

from orchestrator.state import ClusterState, GroupSpeed, ProcessState
from orchestrator.view.status import status_view
from tests.orchestrator.groups import make_group, make_plan_of, make_share
from tests.orchestrator.view.rendering import rendered
from workers.budget import MIB

LAYERS = make_group(make_share("[a]/cpu", 4), make_share("b/cpu", 6))
SINGLE = make_group(make_share("c/cpu", native=True), mode="single", head="c")
STATE = ClusterState(
    cluster="home",
    inventory="/inventory.yaml",
    pid=1,
    phase="ready",
    message="answers",
    since="2026-11-22T12:00:00+00:00",
    gateway="http://127.0.0.1:11435/v1",
    plan=make_plan_of(LAYERS, SINGLE),
    processes=(ProcessState("c", "head2-20000", 7, 100 * MIB),),
    speeds=(
        GroupSpeed("head1", "controller", "layers", 10.0, 11.0, 10.0, 11.0, 500.0, 480.0),
        GroupSpeed("head2", "c", "single", 8.0, 8.0, 16.0, 12.0, 200.0, 201.0),
    ),
    key_file="/key",
)

TEXT = """\
home  ready
since 2026-11-22T12:00:00+00:00: answers
inventory /inventory.yaml
gateway http://127.0.0.1:11435/v1, API key in /key
requests running 0, waiting 0, finished 0
plan replicas:
  layers: [a]/cpu (4), b/cpu (6)
  single: all layers on c/cpu

head on              tokens/s           predicted  measured  error
controller (layers)  decode                  10.0      11.0   +10%
                     prefill                500.0     480.0    -4%
c (single)           decode                   8.0       8.0    +0%
                     all conversations       16.0      12.0   -25%
                     prefill                200.0     201.0    +0%

host  process      pid   memory
c     head2-20000    7  100 MiB
"""


def test_a_certificate_is_shown_with_its_fingerprint() -> None:
    encrypted = replace(STATE, certificate="/c.crt", certificate_sha256="AB:CD")
    assert rendered(status_view(encrypted)) == TEXT.replace(
        "API key in /key\n", "API key in /key\ncertificate /c.crt, SHA-256 AB:CD\n"
    )


def test_every_group_is_shown_with_what_was_predicted_and_measured() -> None:
    assert rendered(status_view(STATE)) == TEXT

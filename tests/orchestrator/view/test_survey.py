"""The whole text of a survey."""

from dataclasses import replace

from orchestrator.survey.values import HostSurvey, Link
from orchestrator.view.survey import survey_view
from tests.orchestrator.plan.examples import FACTS, GIB, LOOPBACK, make_device, make_speed, make_survey
from tests.orchestrator.view.rendering import rendered
from workers.budget import MIB, Budget

FAR = Link("tunnel", round_trip_s=0.0031, up_bytes_per_s=12 * MIB, down_bytes_per_s=12 * MIB)
RESERVED = Budget(free_bytes=8 * GIB, capped_bytes=int(6.4 * GIB), reserve_bytes=32 * MIB)
NUC = replace(make_device("nuc/cpu", 0, gib_per_s=6), budget=RESERVED)
DISTURBED = tuple(replace(one, spread=0.12) if one.tokens >= 64 else one for one in make_speed().passes)
GPU = replace(
    make_device("[pi]/vulkan0", 900, kind="vulkan", link=FAR),
    description="V3D 4.2 [unified memory]",
    speed=replace(make_speed(), passes=DISTURBED, source="synthetic"),
)
BARE = HostSurvey("bare", False, FACTS, ())
MEASURED = make_survey([make_device("desk/cpu", 700, link=LOOPBACK), NUC, GPU], local=["desk"])
SURVEY = replace(MEASURED, hosts=(*MEASURED.hosts, BARE))

TEXT = """\
survey of demo, taken 2026-11-22T18:00:00Z
engine cpu-linux-x86_64-1a2b3c4d5e6f; controller desk: Debian GNU/Linux 12 (bookworm), 48.0 GiB of
64.0 GiB available

 device                          budget             link             speed (spread)
 ───────────────────────────────────────────────────────────────────────────────────────────────
 desk/cpu, this machine          700 MiB            loopback 10 µs   RPC 25.0 ms a layer (2%)
 AMD Ryzen 7 5800X               free 1.4 GiB       up 1.7 GiB/s     in prompts 2.50 ms (2%)
 8 threads                       cap 700 MiB (50%)  down 1.7 GiB/s   native 25.0 ms a layer (2%)
                                                                     in prompts 2.50 ms (2%)
 nuc/cpu                         6.4 GiB            tunnel 250 µs    RPC 41.7 ms a layer (2%)
 AMD Ryzen 7 5800X               free 8.0 GiB       up 110 MiB/s     in prompts 4.17 ms (2%)
 8 threads                       cap 6.4 GiB (80%)  down 110 MiB/s   native 41.7 ms a layer (2%)
                                 less 32.0 MiB                       in prompts 4.17 ms (2%)
 [pi]/vulkan0                    900 MiB            tunnel 3.10 ms   RPC 25.0 ms a layer (2%)
 V3D 4.2 [unified memory]        free 1.8 GiB       up 12.0 MiB/s    in prompts 2.50 ms (12%)
                                 cap 900 MiB (50%)  down 12.0 MiB/s  native 25.0 ms a layer (2%)
                                                                     in prompts 2.50 ms (2%)
                                                                     on a synthetic model
 bare                            48.0 GiB free
 Debian GNU/Linux 12 (bookworm)
 no device

"""


def test_every_device_shows_its_memory_budget_link_and_speed() -> None:
    """Also a host without a device, and names and descriptions in brackets, which are not markup."""
    assert rendered(survey_view(SURVEY)) == TEXT

"""A survey of hosts reached by SSH: speeds through tunnels, natively where the model fits, and over what medium."""

import json

import pytest

from lab_hosts import LabHost
from tests.end_to_end.inventories import free_port
from tests.lab_fixture import MakeLab
from tests.program import Meshctl

pytestmark = [pytest.mark.lab, pytest.mark.engine]


def test_a_survey_times_both_paths_and_says_over_what_a_host_is_reached(make_lab: MakeLab, meshctl: Meshctl) -> None:
    """A second survey finds every speed kept, and measures the link again."""
    lab = make_lab(LabHost("host1"))
    inventory = str(lab.inventory(context=512, memory="100%", gateway_port=free_port()))
    meshctl.ok("trust", inventory, "--yes")
    first = json.loads(meshctl.ok("survey", inventory, "--json").stdout)
    device = first["hosts"][0]["devices"][0]
    assert (device["link"]["kind"], device["link"]["medium"]) == ("tunnel", "wired")
    assert [one["tokens"] for one in device["speed"]["passes"]] == [1, 64, 256]
    assert [one["tokens"] for one in device["native"]["passes"]] == [1, 64, 256]
    again = json.loads(meshctl.ok("survey", inventory, "--json").stdout)["hosts"][0]["devices"][0]
    assert (again["speed"], again["native"]) == (device["speed"], device["native"])

"""Survey what a running cluster does not use, and work out whether a plan with it would be better."""

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.crew import Crew
from orchestrator.folders import Folders
from orchestrator.hosts import open_hosts
from orchestrator.inventory import Inventory
from orchestrator.plan.robust import rank_within
from orchestrator.plan.values import Plan
from orchestrator.prepare import asked_of, prepare
from orchestrator.rebalance import Worth, gain, inventory_now, joined
from orchestrator.report import Report
from orchestrator.survey.values import Survey
from orchestrator.wishes import Wishes


async def better_plan(
    inventory: Inventory, crews: Sequence[Crew], present: Plan, folders: Folders, report: Report, wishes: Wishes
) -> Worth:
    """The best plan with every host of the inventory's file that can be reached now, and its gain over the present one.

    What the cluster uses is known from its bring-up: measuring it now would measure the cluster. InventoryError where
    more than the hosts has changed, HostsError where none of the further hosts can be reached.
    """
    fresh = inventory_now(inventory)
    known = [crew.prepared for crew in crews]
    surveys = [one.survey for one in known]
    connected = {name for crew in crews for name in crew.hosts.by_name}
    unused = tuple(host for host in fresh.hosts if host.name not in connected)
    if unused:
        surveys.append(await _surveyed(replace(fresh, hosts=unused), folders, report, wishes))
    names = {host.name for host in fresh.hosts}
    every = joined(surveys)
    every = replace(every, hosts=tuple(host for host in every.hosts if host.name in names))
    ranking = rank_within(every, known[0].memories, asked_of(wishes, fresh), known[0].experience)
    return Worth(fresh, ranking.chosen, gain(present, ranking))


async def _surveyed(inventory: Inventory, folders: Folders, report: Report, wishes: Wishes) -> Survey:
    async with open_hosts(inventory, folders, report, tolerant=True) as hosts:
        there = tuple(host for host in inventory.hosts if host.name in hosts.by_name)
        prepared = await prepare(replace(inventory, hosts=there), hosts, folders, report, replace(wishes, hurry=True))
        return prepared.survey

"""Survey what a running cluster does not use, and work out whether a plan with it would be better."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from orchestrator.crew import Crew, busy_devices, plan_of
from orchestrator.experience_store import load_experience
from orchestrator.folders import Folders
from orchestrator.hosts import open_hosts
from orchestrator.inventory import Inventory
from orchestrator.plan.conversations import for_conversations
from orchestrator.prepare import asked_of, prepare, ranked_as_tuned
from orchestrator.rebalance import Worth, gain, inventory_now, joined
from orchestrator.report import Report
from orchestrator.survey.values import Survey
from orchestrator.wishes import Wishes


async def better_plan(
    inventory: Inventory,
    crews: Sequence[Crew],
    folders: Folders,
    report: Report,
    wishes: Wishes,
    aside: Collection[str],
) -> Worth:
    """The best plan with every host of the inventory's file that can be reached now, and its gain over the present one.

    What the cluster uses is known from its bring-up: measuring it now would measure the cluster. Every other host is
    surveyed, but for those set `aside`. InventoryError where more than the hosts has changed, HostsError where none of
    the others can be reached.
    """
    fresh = inventory_now(inventory)
    known = [crew.prepared for crew in crews]
    used = {device.partition("/")[0] for device in busy_devices(crews)}
    others = tuple(host for host in fresh.hosts if host.name not in used and host.name not in aside)
    surveys = [_only(one.survey, used & {host.name for host in fresh.hosts}) for one in known]
    if others:
        surveys.append(await _surveyed(replace(fresh, hosts=others), folders, report, wishes))
    memories = for_conversations(known[0].memories, fresh.parallel)
    together = replace(known[0], inventory=fresh, memories=memories, survey=joined(surveys))
    # With what has been measured since the bring-up, too, and by the very order that it will be brought up in.
    together = replace(together, experience=load_experience(folders, together.circumstances))
    asked, again = asked_of(wishes, fresh), replace(wishes, recalibrate=False)
    _, ranking = await ranked_as_tuned(together, folders, asked, report, again)
    return Worth(fresh, ranking.chosen, gain(plan_of(crews), ranking))


def _only(survey: Survey, names: Collection[str]) -> Survey:
    return replace(survey, hosts=tuple(host for host in survey.hosts if host.name in names))


async def _surveyed(inventory: Inventory, folders: Folders, report: Report, wishes: Wishes) -> Survey:
    async with open_hosts(inventory, folders, report, tolerant=True) as hosts:
        there = tuple(host for host in inventory.hosts if host.name in hosts.by_name)
        prepared = await prepare(replace(inventory, hosts=there), hosts, folders, report, replace(wishes, hurry=True))
        return prepared.survey

"""`meshctl rebalance`: whether hosts that are not in use would make a cluster faster, and by how much. Also the two
files by which a user asks the supervisor, and is answered.

The supervisor reads the request, surveys what is not in use, and only where the gain is worth an interruption brings
the cluster up anew, at a moment when nothing is under way.
"""

import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from orchestrator.errors import InventoryError
from orchestrator.folders import ClusterFolder
from orchestrator.inventory import Inventory
from orchestrator.inventory_file import load_inventory
from orchestrator.plan.values import Plan, Ranking, alike_key, plan_key
from orchestrator.state import write_private
from orchestrator.survey.values import HostSurvey, Survey

WORTH = 0.10
"""Moving interrupts every answer for some seconds: it has to gain more than this."""


@dataclass(frozen=True)
class Request:
    """What a user asks for. `now`: without waiting for a quiet moment; running answers are carried over then."""

    number: str
    now: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of the request of this number; `failed`: it could not be worked out, for the reason in `message`."""

    number: str
    moved: bool
    message: str
    failed: bool = False


@dataclass(frozen=True)
class Worth:
    """The best plan with every host of the inventory as it is now, and what it gains."""

    inventory: Inventory
    plan: Plan
    gain: float

    def __str__(self) -> str:
        what = f"{self.plan.mode} on {devices_text(self.plan)} is the best plan"
        if self.gain == inf:
            return f"{what}, with more context"
        return f"{what} now, {max(0.0, self.gain):.0%} faster than the present one"


_REQUEST, _OUTCOME = TypeAdapter(Request), TypeAdapter(Outcome)


def ask(folder: ClusterFolder, *, now: bool) -> Request:
    """Leave a request where the supervisor looks; a former one that was not taken yet is replaced."""
    request = Request(secrets.token_hex(8), now)
    write_private(folder.rebalance_request, _REQUEST.dump_json(request).decode())
    return request


def take_request(folder: ClusterFolder) -> Request | None:
    """The request that waits, which then is gone; None when there is none."""
    text = _taken(folder.rebalance_request)
    try:
        return None if text is None else _REQUEST.validate_json(text)
    except ValidationError:
        return None


def withdraw(folder: ClusterFolder, request: Request) -> None:
    """Nobody waits for it any more. One that another user has left since stays."""
    with suppress(FileNotFoundError, ValidationError):
        if _REQUEST.validate_json(folder.rebalance_request.read_bytes()).number == request.number:
            folder.rebalance_request.unlink()


def tell(folder: ClusterFolder, outcome: Outcome) -> None:
    """Leave the outcome where the user's command looks; where the disk is full it waits in vain, and says so."""
    with suppress(OSError):
        write_private(folder.rebalance_outcome, _OUTCOME.dump_json(outcome).decode())


def outcome_of(folder: ClusterFolder, request: Request) -> Outcome | None:
    """None as long as there is none."""
    try:
        outcome = _OUTCOME.validate_json(folder.rebalance_outcome.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return outcome if outcome.number == request.number else None


def inventory_now(inventory: Inventory) -> Inventory:
    """The inventory as its file is now; InventoryError when more than the hosts has changed since."""
    fresh = load_inventory(inventory.path)
    if replace(fresh, hosts=inventory.hosts) != inventory:
        raise InventoryError(
            f"{inventory.path}: more than the hosts has changed since the cluster came up",
            hint="`meshctl down`, then `meshctl up` again",
        )
    return fresh


def joined(surveys: Iterable[Survey]) -> Survey:
    """One survey of all their hosts; of a host that is in several the last one's."""
    every = tuple(surveys)
    hosts: dict[str, HostSurvey] = {host.name: host for survey in every for host in survey.hosts}
    tensor = {timed.devices: timed for survey in every for timed in survey.tensor}
    return replace(every[0], hosts=tuple(hosts.values()), tensor=tuple(tensor.values()))


def gain(present: Plan, ranking: Ranking) -> float:
    """How much less time the best plan takes than the present one: 0.25 is a quarter more tokens per second.

    The present plan is compared as the ranking has it, by the same measurements; infinite where that has more context.
    """
    best, key = ranking.chosen, alike_key(plan_key(present))
    if best.context > present.context:
        return inf
    alike = (plan for plan in ranking.plans if alike_key(plan_key(plan)) == key)
    return next(alike, present).goal_s / best.goal_s - 1


def devices_text(plan: Plan) -> str:
    """The devices that a plan uses, for a sentence."""
    return " and ".join(share.device for share in plan.shares)


def _taken(path: Path) -> bytes | None:
    try:
        text = path.read_bytes()
        path.unlink()
    except FileNotFoundError:
        return None
    return text

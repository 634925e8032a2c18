"""What the user asks of the plan on the command line; everything left out is decided by the planner."""

from dataclasses import dataclass

from workers.engine_commands import CacheType


@dataclass(frozen=True)
class Wishes:
    """The planning options of one command. None means: not asked for.

    devices: the names of the only devices that may be used.
    mode: one of `orchestrator.plan.values.MODES`.
    split: the number of layers of each device, in pipeline order; implies mode "layers".
    goal: one of `orchestrator.plan.values.GOALS`; overrides the inventory.
    recalibrate: measure again what has been measured before.
    hurry: measure nothing that a plan can be made without; no option, but what a recovery asks for.
    busy: names of devices that are in use already; likewise.
    cache_type: what keys and values are kept as; overrides the inventory.
    parallel: conversations that are left for what is planned, where others are served already; likewise.
    """

    devices: frozenset[str] | None = None
    mode: str | None = None
    split: dict[str, int] | None = None
    goal: str | None = None
    recalibrate: bool = False
    hurry: bool = False
    busy: frozenset[str] = frozenset()
    parallel: int | None = None
    cache_type: CacheType | None = None

    @property
    def split_text(self) -> str:
        """The split as it is written behind `--split`; "" where none is asked for."""
        return ",".join(f"{device}={layers}" for device, layers in (self.split or {}).items())

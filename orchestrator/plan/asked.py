"""What a user asked of the plan. A leaf: values only."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Asked:
    """None allows everything.

    `goal` is one of `values.GOALS`, `mode` one of `values.MODES`; `devices` are the only ones that may be used. `split`
    gives devices in pipeline order with their numbers of layers: mode "layers", and these devices only. `survive`: of
    the loss of so many hosts at a time; `minimum_context`: the least tokens of a conversation where the context wanted
    does not fit (0: no less than that); `lenient`: mode and split are given up where they cannot be kept.
    """

    goal: str
    devices: frozenset[str] | None = None
    mode: str | None = None
    split: Mapping[str, int] | None = None
    survive: int = 0
    minimum_context: int = 0
    lenient: bool = False

    @property
    def only_mode(self) -> str | None:
        """The mode that was asked for, also by a split."""
        return "layers" if self.split is not None else self.mode

    @property
    def only_devices(self) -> frozenset[str] | None:
        """The devices that were asked for, also by a split."""
        if self.split is None:
            return self.devices
        return frozenset(self.split) if self.devices is None else self.devices & frozenset(self.split)

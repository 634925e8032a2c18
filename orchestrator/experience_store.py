"""Measurements of groups as they are kept: a file per model (by its tensors' shapes), engine and cache type, under
the cache.

A measurement is of machines, so each is kept with what they were: only those whose machines are the same now are
loaded. The newest are kept; a file that cannot be read counts as empty, since everything in it can be measured again.
Programs that measure the same model at the same moment write one after the other.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from orchestrator.folders import Folders
from orchestrator.inventory import Inventory
from orchestrator.plan.experience import Experience, Measured, Record, record_of
from orchestrator.plan.values import Group, GroupMode
from orchestrator.state import write_private
from orchestrator.survey.speeds import passes_for
from orchestrator.survey.values import Device, HostSurvey, Speed, Survey, kept_as
from quant.model import Model
from quant.slice import shape_digest
from workers.engine_commands import CacheType, FlashAttention

MOST_RECORDS = 300
MOST_OF_ONE_GROUP = 5
_FORMAT = "3"
COMMON = passes_for(1)
"""Passes that are timed whatever the number of conversations."""


@dataclass(frozen=True)
class Circumstances:
    """What measurements are of: a model, an engine, the machine behind each device's name ("": the controller), and
    what keys and values are kept as and read by. `timed` has what each device is predicted by, natively and through
    RPC."""

    shape: str
    engine_id: str
    machines: Mapping[str, str]
    cache_type: CacheType = "f16"
    flash_attention: FlashAttention = "auto"
    timed: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def kinds(self) -> dict[str, str]:
        """What each device is: the same for those of one machine that are predicted by the same timings."""
        return {name: _digest(self.machines[name], *timed) for name, timed in self.timed.items()}

    def of(self, group: Group) -> tuple[str, ...]:
        """The machines that a group runs on: its devices' in order, and that of its head."""
        devices = tuple(self.machines[share.device] for share in group.shares)
        return devices if group.head else (*devices, self.machines[""])

    def timed_of(self, mode: GroupMode, devices: Collection[str]) -> str:
        """What predictions for these devices in this mode are worked out from."""
        path = 0 if mode == "single" else 1
        return _digest(*(self.timed[device][path] for device in sorted(devices) if device in self.timed))


@dataclass(frozen=True)
class _Kept:
    """A record, its machines as `Circumstances.of` gives them, and what it was predicted by (`timed_of`)."""

    record: Record
    machines: tuple[str, ...]
    timed: str = ""

    @property
    def place(self) -> tuple[GroupMode, frozenset[tuple[str, str]], tuple[str, ...]]:
        """Its mode, each device with its machine, and the machine of a head elsewhere: what it corrects groups of."""
        devices = self.record.devices
        return self.record.mode, frozenset(zip(devices, self.machines, strict=False)), self.machines[len(devices) :]


_FILE = TypeAdapter(tuple[_Kept, ...])


def circumstances_of(model: Model, engine_id: str, survey: Survey, inventory: Inventory) -> Circumstances:
    """`survey` with the threads that will really be used: a measurement with others is another one."""
    own_words = {host.name: host.own_words for host in inventory.hosts}
    machines = {
        device.name: _digest(host.facts.hostname, *_machine(host, device), *own_words.get(host.name, ()))
        for host in survey.hosts
        for device in host.devices
    }
    timed = {one.name: (_of_speed(one.native), _of_speed(one.speed)) for one in survey.devices}
    facts = survey.controller
    machines[""] = _digest(facts.hostname, facts.cpu_name, str(facts.cores_logical), str(facts.cpu_quota))
    return Circumstances(
        shape=shape_digest(model),
        engine_id=engine_id,
        machines=machines,
        cache_type=inventory.cache_type,
        flash_attention=inventory.flash_attention,
        timed=timed,
    )


def load_experience(folders: Folders, circumstances: Circumstances) -> Experience:
    """What was measured in these circumstances, oldest first."""
    kept = _read(_path(folders, circumstances))
    records = tuple(_as_of_now(one, circumstances) for one in kept if _is_of(one, circumstances))
    return Experience(records, kinds=circumstances.kinds)


def left_aside(folders: Folders, circumstances: Circumstances) -> Experience:
    """None of what was measured, on whichever machines: all of it is outdated."""
    return Experience(outdated=tuple(one.record for one in _read(_path(folders, circumstances))))


def remember(
    folders: Folders, circumstances: Circumstances, group: Group, measured: Measured, outdated: Collection[Record] = ()
) -> None:
    """Keep a measurement beside the group's uncorrected prediction.

    It takes the place of those `outdated` ones that say something of the same groups: of its mode, on its machines.
    """
    path = _path(folders, circumstances)
    record = record_of(group, measured)
    new = _Kept(record, circumstances.of(group), circumstances.timed_of(record.mode, record.devices))
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        others = (one for one in _read(path) if one.record not in outdated or one.place != new.place)
        kept = (*others, new)
        write_private(path, _FILE.dump_json(_newest(kept), indent=2).decode())


def _path(folders: Folders, circumstances: Circumstances) -> Path:
    kept = kept_as(circumstances.cache_type, circumstances.flash_attention)
    name = _digest(_FORMAT, circumstances.shape, circumstances.engine_id, *kept)
    return folders.cache / "experience" / f"{name}.json"


def _read(path: Path) -> tuple[_Kept, ...]:
    try:
        return _FILE.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return ()


def _is_of(one: _Kept, circumstances: Circumstances) -> bool:
    now = tuple(circumstances.machines.get(device, "") for device in one.record.devices)
    return one.machines in (now, (*now, circumstances.machines[""]))


def _as_of_now(one: _Kept, circumstances: Circumstances) -> Record:
    """Where the devices have been timed anew since, the group's own figures stay, but how far the former predictions
    were off says nothing of the new ones."""
    record = one.record
    same = one.timed == circumstances.timed_of(record.mode, record.devices)
    return record if same else replace(record, devices=())


def _newest(kept: Iterable[_Kept]) -> tuple[_Kept, ...]:
    """At most `MOST_RECORDS`, and of the same group on the same machines at most `MOST_OF_ONE_GROUP`."""
    seen = Counter[tuple[str, tuple[str, ...]]]()
    newest_first = []
    for one in reversed(tuple(kept)):
        group = (one.record.key, one.machines)
        seen[group] += 1
        if seen[group] <= MOST_OF_ONE_GROUP:
            newest_first.append(one)
    return tuple(reversed(newest_first[:MOST_RECORDS]))


def _machine(host: HostSurvey, device: Device) -> tuple[str, ...]:
    facts = host.facts
    cores = (facts.cpu_name, str(facts.cores_logical), str(facts.cpu_quota))
    return (*cores, device.kind, device.description, str(device.threads), device.link.kind)


def _of_speed(speed: Speed) -> str:
    """All that predictions for this model go by; rates are for others, and steps of several conversations are timed
    beside the rest and change nothing of it."""
    return _digest(repr(replace(speed, rates=(), passes=tuple(one for one in speed.passes if one.tokens in COMMON))))


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]

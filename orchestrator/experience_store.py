"""Keep what runs have measured: one file per model shapes and engine, the newest records, replaced whole."""

from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from orchestrator.folders import Folders
from orchestrator.plan.experience import NO_EXPERIENCE, Experience, Measured, record_of
from orchestrator.plan.values import Group
from orchestrator.state import write_private
from quant.model import Model
from quant.slice import shape_digest

MOST_RECORDS = 300

_EXPERIENCE = TypeAdapter(Experience)


def load_experience(folders: Folders, cluster: str, model: Model, engine_id: str) -> Experience:
    """What this cluster's runs of the model on this engine have measured; a file that cannot be read counts as none."""
    try:
        return _EXPERIENCE.validate_json(_file(folders, cluster, model, engine_id).read_bytes())
    except (FileNotFoundError, ValidationError):
        return NO_EXPERIENCE


def remember(folders: Folders, cluster: str, model: Model, engine_id: str, group: Group, measured: Measured) -> None:
    """Add one run, in place of earlier ones of the same group; `group` has the uncorrected predictions."""
    record = record_of(group, measured)
    kept = [one for one in load_experience(folders, cluster, model, engine_id).records if one.key != record.key]
    path = _file(folders, cluster, model, engine_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    newest = Experience((*kept, record)[-MOST_RECORDS:])
    write_private(path, _EXPERIENCE.dump_json(newest, indent=2).decode())


def forget(folders: Folders, cluster: str, model: Model, engine_id: str) -> None:
    """Forget all runs: devices are measured anew."""
    _file(folders, cluster, model, engine_id).unlink(missing_ok=True)


def _file(folders: Folders, cluster: str, model: Model, engine_id: str) -> Path:
    return folders.cache / "experience" / cluster / f"{engine_id}-{shape_digest(model)}.json"

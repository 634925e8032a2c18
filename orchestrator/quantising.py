"""`meshctl model quantise`: make a smaller model of one that is here, by the engine, on this machine.

All that can be known beforehand (types, sizes, what is refused) is asked of the engine and checked before a byte is
written. The program that writes is under a leash: it ends with us, and what is unfinished goes with it.
"""

import re
import secrets
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.errors import HostError, UsageError
from orchestrator.folders import Folders
from orchestrator.leash import Leashed, start_leashed
from orchestrator.models_quota import keep_to_quota
from orchestrator.own_machine import OwnMachine, own_machine
from orchestrator.prepare import prepare_model
from orchestrator.report import Report
from orchestrator.view.sizes import bytes_text
from quant.errors import QuantiseError
from quant.gguf_file import read_model
from quant.made import Made, lost_before, read_made, write_made
from quant.model import Model
from quant.predict import Prediction, environment, predict_quantised, read_outcomes
from quant.quantisations import QUANTISATIONS, Quantisation, bits_per_weight
from quant.quantise import Request, command
from quant.quantising_log import read_tensor_line
from quant.whole_file import files_digest
from workers.engine_commands import ENVIRONMENT

DISK_RESERVE_BYTES = 64 << 20
LOGS = "quantise"
ODD_ROWS = "blocks of that type do not divide their rows"

_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_TYPE = re.compile(rf"[.\-_]({'|'.join(sorted(QUANTISATIONS, key=len, reverse=True))}|Q[345]_K|FP16)$", re.IGNORECASE)


@dataclass(frozen=True)
class Wanted:
    """What shall become of the model `source` names; `target` None: a file in the models folder, named after both."""

    source: str
    quantisation: Quantisation
    target: Path | None = None
    importance: Path | None = None
    requantise: bool = False
    force: bool = False


async def quantise(wanted: Wanted, folders: Folders, report: Report) -> Path:
    """Write the quantised model and give its path; nothing stands under that name unless it is whole.

    UsageError and QuantiseError say why not, before anything is written where that can be known.
    """
    report.step("Reading the model")
    source = await prepare_model(wanted.source, Path.cwd(), folders, report)
    target = (wanted.target or default_target(source, wanted.quantisation, folders)).absolute()
    check_target(source, target, force=wanted.force)
    async with own_machine(folders, report) as own:
        report.step(f"Asking the engine what {wanted.quantisation.name} takes")
        prediction = await _predict(wanted, source, own, folders)
        check_prediction(wanted, source, prediction)
        await _make_room(prediction, target, source, folders, report)
        report.say(f"{target.name}: {_described(prediction.model, prediction.file_bytes)}")
        _warn_of(prediction, report)
        report.step(f"Quantising to {wanted.quantisation.name}")
        await _write(wanted, source, target, own, report)
    made = read_model(target)
    told = Made(str(target), made.files_digest, wanted.quantisation.name, str(source.path), source.files_digest)
    write_made(folders.cache, replace(told, lost=prediction.lossy))
    report.say(f"{target.name}: {_described(made, target.stat().st_size)}")
    report.say(f"it was: {_described(source, sum(shard.stat().st_size for shard in source.shards))}")
    return target


async def _make_room(prediction: Prediction, target: Path, source: Model, folders: Folders, report: Report) -> None:
    """On the disk, and in the quota where it counts for that."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.parent.resolve() == (folders.cache / "models").resolve():
        coming = {target.name: prediction.file_bytes}
        await keep_to_quota(folders, report.warn, kept=(source.path.name,), coming=coming)
    check_disk(prediction, target, shutil.disk_usage(target.parent).free)


def _warn_of(prediction: Prediction, report: Report) -> None:
    count = len(prediction.model.tensors)
    if prediction.fallbacks:
        report.warn(f"{prediction.fallbacks} of its {count} tensors get a larger type: {ODD_ROWS}")
    if prediction.without_importance:
        missing = f"the importance matrix has nothing for {prediction.without_importance} of its {count} tensors"
        report.warn(f"{missing}: these are quantised as if there were none")


def default_target(source: Model, quantisation: Quantisation, folders: Folders) -> Path:
    """In the models folder: the source's name with its type (and its number of a shard) replaced. Where a file of that
    name was not made of this source, digits that are the source's stand before the type."""
    stem = _TYPE.sub("", _SHARD.sub("", source.path.stem))
    usual = folders.cache / "models" / f"{stem}-{quantisation.name}.gguf"
    made = read_made(folders.cache, files_digest((usual,))) if usual.is_file() else None
    is_another = usual.exists() and (made is None or made.source_digest != source.files_digest)
    return usual.with_name(f"{stem}-{source.files_digest}-{quantisation.name}.gguf") if is_another else usual


def check_target(source: Model, target: Path, *, force: bool) -> None:
    """UsageError where a file stands there already, or it is the source itself."""
    if target.is_dir():
        raise UsageError(f"{target} is a folder", hint="name a file: --out FILE")
    if any(target.resolve() == shard.resolve() for shard in source.shards):
        raise UsageError(f"{target} is the model itself", hint="write to another file: --out FILE")
    if target.exists() and not force:
        raise UsageError(f"{target} is there already", hint="write over it: --force; or to another file: --out FILE")


async def _predict(wanted: Wanted, source: Model, own: OwnMachine, folders: Folders) -> Prediction:
    """As the engine says it; what the source's own source had lost counts, too."""
    name = wanted.quantisation.name
    found = (await predict_quantised(own.engine.folder, source, (wanted.quantisation,), wanted.importance))[name]
    if isinstance(found, QuantiseError):
        raise found
    lost = dict.fromkeys((*lost_before(folders.cache, source), *found.lossy))
    return replace(found, lossy=tuple(lost))


def check_prediction(wanted: Wanted, source: Model, prediction: Prediction) -> None:
    """QuantiseError for what would give a useless model, or a worse one than need be."""
    name = wanted.quantisation.name
    if prediction.lossy and not wanted.requantise:
        raise QuantiseError(
            f"{source.path.name} is quantised already ({', '.join(prediction.lossy)}): what that has lost stays lost, "
            f"and {name} of it is worse than {name} of the original",
            hint="quantise the original (F16, BF16 or F32); or accept that: --allow-requantise",
        )
    if prediction.needs_importance and wanted.importance is None:
        raise QuantiseError(
            f"{name} of {source.path.name} needs an importance matrix: with so few bits the model is useless unless "
            "the engine knows which weights matter",
            hint="add --imatrix FILE (publishers put it beside their models), or choose a type that needs none: Q2_K",
        )


def check_disk(prediction: Prediction, target: Path, free_bytes: int) -> None:
    """QuantiseError where the disk has no room for the result beside what is there."""
    size = prediction.file_bytes
    if free_bytes < size + DISK_RESERVE_BYTES:
        raise QuantiseError(
            f"{target.name} takes {bytes_text(size)}; {target.parent} has {bytes_text(free_bytes)} free",
            hint="make room there, choose a smaller type, or write to another disk: --out FILE",
        )


async def _write(wanted: Wanted, source: Model, target: Path, own: OwnMachine, report: Report) -> None:
    partial = target.with_name(f"{target.name}.{secrets.token_hex(4)}.partial")
    request = Request(
        str(own.engine.folder),
        str(source.path),
        (wanted.quantisation.file_type,),
        str(target),
        str(partial),
        "" if wanted.importance is None else str(wanted.importance.absolute()),
        wanted.requantise,
        wanted.force,
    )
    with own.log(LOGS) as log:
        held = await _start(request, source, own, log, _follow(source, report))
        try:
            ended = await held.wait()
        finally:
            await held.stop()
            partial.unlink(missing_ok=True)
        if ended.status is None:
            raise HostError(own.host.name, f"{held.name}: {ended}", hint="try again", details=ended.tail)
        (outcome,) = read_outcomes(ended.status, ended.output.encode(), ended.tail or ended.reason)
        if outcome.refusal:
            raise QuantiseError(
                f"{source.path.name} could not be quantised: {outcome.refusal}",
                hint=f"the engine's whole log is {log}",
                details=ended.tail,
            )


def _follow(source: Model, report: Report) -> Callable[[str], None]:
    """Tensors differ in size a thousandfold: counted is what has been read of the source."""
    sizes = {tensor.name: tensor.size_bytes for tensor in source.tensors}
    done = 0

    def follow(line: str) -> None:
        nonlocal done
        tensor = read_tensor_line(line)
        if tensor is not None:
            done += sizes.get(tensor.name, 0)
            report.progress(source.path.name, done, source.size_bytes, "bytes")

    return follow


async def _start(request: Request, source: Model, own: OwnMachine, log: str, follow: Callable[[str], None]) -> Leashed:
    host = own.host
    return await start_leashed(
        host.shell,
        host.agent,
        command(sys.executable, request),
        log=log,
        environment={**environment(), **ENVIRONMENT, "LC_ALL": "C"},
        name=f"quantising {source.path.name}",
        uses=host.items(str(own.engine.folder), *(str(shard) for shard in source.shards)),
        temporary=(request.partial,),
        capture=True,
        may_end=True,
        on_line=follow,
    )


def _described(model: Model, file_bytes: int) -> str:
    return f"{bytes_text(file_bytes)}, {bits_per_weight(model):.2f} bits per weight, mostly {model.quantisation}"

"""What a model would be in other quantisations: the type of every tensor, so the bytes of each layer and of the file.

The engine itself is asked (its dry run, which opens the file and reads none of the weights), so that its rules stand in
one place. In a process of its own, for all the quantisations at once: 13 of them take 0.6 s for a model of 272 tensors
and 49,000 words, 1.5 s for one of 722 tensors and 152,000 words. So what it says can be kept.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from quant.errors import QuantiseError
from quant.model import Model
from quant.quantisations import Quantisation, lossy_types, retyped
from quant.quantise import Outcome, Request, command
from quant.whole_file import written_whole

_DEADLINE_S = 120.0
_ALIGNMENT = 32
_SHOWN_CHARACTERS = 2000
_CHECK = "check the engine: meshctl engine check; and the model: meshctl model show"
_REFUSED = (
    "choose another type; where it is so with every type, the engine cannot read this file: fetch it again, or another "
    "conversion of this model"
)
_KILLED = "a system ends a program so when its memory runs out: end other programs, or do it on a larger machine"
_OUTCOMES = TypeAdapter(tuple[Outcome, ...])


@dataclass(frozen=True)
class Prediction:
    """`model` is the source with its tensors in the types they would have, for sums only: no file has it.

    `lossy`: the types of tensors that would be converted although they have lost precision already; `fallbacks`: how
    many tensors get a larger type, since no block of the wanted one divides their rows; `without_importance`: how many
    the importance matrix that was given has nothing for.
    """

    quantisation: Quantisation
    model: Model
    file_bytes: int
    needs_importance: bool
    lossy: tuple[str, ...]
    fallbacks: int = 0
    without_importance: int = 0


async def predict_quantised(
    engine_folder: Path,
    model: Model,
    wanted: Iterable[Quantisation],
    importance: Path | None = None,
    kept: Path | None = None,
) -> dict[str, Prediction | QuantiseError]:
    """By name, what the model would be as each of these; a QuantiseError where the engine does not make that of it.

    In the folder `kept` the engine's answers stay, for these files and this engine; those with an importance matrix do
    not. QuantiseError when the engine cannot be asked, with the end of what it said.
    """
    asked = tuple(wanted)
    book = None if kept is None or importance else kept / f"{model.files_digest}-{engine_folder.name}.json"
    known = _read_known(book)
    missing = tuple(one.file_type for one in asked if one.file_type not in known)
    if missing:
        request = Request(str(engine_folder), str(model.path), missing, importance=str(importance or ""))
        known |= {outcome.file_type: outcome for outcome in read_outcomes(*await _run(request))}
        _keep(book, known)
    return {one.name: _prediction(model, one, known[one.file_type]) for one in asked}


def _read_known(book: Path | None) -> dict[int, Outcome]:
    """What cannot be read counts as nothing: the engine can be asked again."""
    try:
        outcomes = () if book is None else _OUTCOMES.validate_json(book.read_bytes())
    except (OSError, ValidationError):
        outcomes = ()
    return {outcome.file_type: outcome for outcome in outcomes}


def _keep(book: Path | None, known: Mapping[int, Outcome]) -> None:
    if book is not None:
        book.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(book) as partial:
            partial.write_bytes(_OUTCOMES.dump_json(tuple(known.values())))


def read_outcomes(status: int | None, stdout: bytes, said: str) -> tuple[Outcome, ...]:
    """What `quant.quantise` has answered; QuantiseError when it did not, or could not do anything at all."""
    try:
        answer = json.loads(stdout)
        if "error" in answer:
            raise QuantiseError(answer["error"], hint=answer["hint"])
        return _OUTCOMES.validate_python(answer["outcomes"])
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise QuantiseError(
            f"the engine ended {_how(status)} instead of answering",
            hint=_KILLED if status == -signal.SIGKILL else _CHECK,
            details=said[-_SHOWN_CHARACTERS:],
        ) from error


def _how(status: int | None) -> str:
    if status is None:
        return "late"
    return f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"


def file_bytes(source: Model, quantised: Model) -> int:
    """Of one file with these tensors: the engine writes the source's metadata, and each tensor to a multiple of 32."""
    tensors = sum(-(-tensor.size_bytes // _ALIGNMENT) * _ALIGNMENT for tensor in quantised.tensors)
    return _header_bytes(source) + tensors


def _header_bytes(model: Model) -> int:
    starts: dict[int, int] = {}
    for tensor in model.tensors:
        starts[tensor.shard] = min(tensor.offset, starts.get(tensor.shard, tensor.offset))
    return sum(starts.get(index, path.stat().st_size) for index, path in enumerate(model.shards))


def _prediction(model: Model, wanted: Quantisation, outcome: Outcome) -> Prediction | QuantiseError:
    if outcome.refusal:
        return QuantiseError(f"{model.path.name} cannot become {wanted.name}: {outcome.refusal}", hint=_REFUSED)
    quantised = retyped(model, outcome.types)
    lossy, size = lossy_types(model, quantised), file_bytes(model, quantised)
    missing = outcome.without_importance
    return Prediction(wanted, quantised, size, outcome.needs_importance, lossy, outcome.fallbacks, missing)


async def _run(request: Request) -> tuple[int | None, bytes, str]:
    """Exit status (None: it was late), stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        *command(sys.executable, request),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment()},
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(_DEADLINE_S):
            stdout, stderr = await process.communicate()
    except TimeoutError:
        return None, b"", ""
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    return process.returncode, stdout, stderr.decode(errors="replace")


def environment() -> Mapping[str, str]:
    """What that program needs beside this process's own: where our packages are. What aborts shall do so at once, with
    its own words last, not those of a debugger."""
    return {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "GGML_NO_BACKTRACE": "1"}

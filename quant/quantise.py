"""The program that quantises (`python -m quant.quantise`), in a process of its own: native code that aborts there takes
nobody along.

What it shall do is its only argument, what has become of it one line of JSON on stdout; on stderr is what the engine
says that people or a progress bar want to know. The file appears under its name whole or not at all.
"""

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from quant.bindings import load_bindings
from quant.errors import QuantError, QuantiseError
from quant.gguf_file import read_model
from quant.importance import Importance, check_importance, read_importance
from quant.quantisations import LOSSLESS
from quant.quantising_log import read_fallbacks, read_refusal, read_tensor_line, says_importance_needed
from quant.whole_file import DISK_RESERVE_BYTES

BUFFER_BYTES = 512 * 1024 * 1024
"""Rows in memory at once. The engine's own limit is 8 GiB; the result is the same."""

WARNING, ERROR = 3, 4
_OVERRIDE_BYTES = 127
_INTEGER, _TEXT = 0, 3  # llama_model_kv_override_type


@dataclass(frozen=True)
class Request:
    """Write `source` (the first of its shards) to `target` as each of `file_types`, over `partial` beside it (which may
    stay); a file that stands there is replaced if `force`. Without a target only say what would become of each tensor.
    `threads` 0: all processors."""

    engine: str
    source: str
    file_types: tuple[int, ...]
    target: str = ""
    partial: str = ""
    importance: str = ""
    requantise: bool = False
    force: bool = False
    threads: int = 0


@dataclass(frozen=True)
class Outcome:
    """What has become (or would) of a model as `file_type`: the types of its tensors by name, whether an importance
    matrix is needed that was not given, how many tensors get another type than they should since no block of that
    divides their rows, why the engine gave up, if it did, and how many tensors of layers the matrix that was given has
    nothing for."""

    file_type: int
    types: Mapping[str, str]
    needs_importance: bool
    fallbacks: int
    refusal: str
    without_importance: int = 0


def command(python: str, request: Request) -> tuple[str, ...]:
    """The words that run this program."""
    return (python, "-P", "-m", "quant.quantise", json.dumps(asdict(request)))


@dataclass
class _Listener:
    """Takes the engine's log in the pieces it comes in, keeps what matters and passes on what is worth reading."""

    dry: bool
    types: dict[str, str] = field(default_factory=dict)
    needs_importance: bool = False
    fallbacks: int = 0
    refusal: str = ""
    _line: str = ""

    def hear(self, level: int, text: bytes, _: Any) -> None:
        *whole, self._line = (self._line + text.decode(errors="replace")).split("\n")
        for line in whole:
            self._take(level, line)

    def _take(self, level: int, line: str) -> None:
        tensor = read_tensor_line(line)
        if tensor is not None:
            self.types[tensor.name] = tensor.target_type
        self.needs_importance = self.needs_importance or says_importance_needed(line)
        self.fallbacks = read_fallbacks(line) or self.fallbacks
        self.refusal = read_refusal(line) or self.refusal
        if level == ERROR or (not self.dry and (level == WARNING or tensor is not None)):
            print(line, file=sys.stderr, flush=True)  # noqa: T201 # what this program is for


def main() -> int:
    """Do what the argument says; the status is 1 when that could not be done."""
    request = Request(**json.loads(sys.argv[1]))
    try:
        outcomes = tuple(_outcomes(request))
    except (QuantError, OSError) as error:
        _answer({"error": str(error), "hint": getattr(error, "hint", "")})
        return 1
    _answer({"outcomes": [asdict(outcome) for outcome in outcomes]})
    return 1 if any(outcome.refusal for outcome in outcomes) else 0


def _answer(answer: Mapping[str, Any]) -> None:
    print(json.dumps(answer), flush=True)  # noqa: T201 # what this program is for


def _outcomes(request: Request) -> Iterator[Outcome]:
    native = load_bindings(Path(request.engine)).llama_cpp
    importance = _importance(request) if request.importance else None
    for file_type in request.file_types:
        yield _quantise(native, request, file_type, importance)


def _importance(request: Request) -> Importance:
    """QuantiseError where it is none of this model."""
    file, model = Path(request.importance), read_model(Path(request.source))
    importance = read_importance(file)
    check_importance(file, importance, {tensor.name: tensor.shape for tensor in model.tensors})
    return importance


def _quantise(native: ModuleType, request: Request, file_type: int, importance: Importance | None) -> Outcome:
    listener = _Listener(dry=not request.target)
    hear = native.llama_log_callback(listener.hear)
    native.llama_log_set(hear, None)
    parameters = native.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = file_type, request.threads
    parameters.dry_run, parameters.allow_requantize = listener.dry, request.requantise
    parameters.max_buf_size = BUFFER_BYTES
    held = [] if importance is None else _give(native, parameters, importance, Path(request.importance).name)
    words = (os.fsencode(request.source), os.fsencode(request.partial))
    failed = native.llama_model_quantize(*words, ctypes.byref(parameters)) != 0
    del held
    if failed:
        _check_disk(request)
        listener.refusal = listener.refusal or "it does not say why"
    elif not listener.dry:
        _put_in_place(Path(request.partial), Path(request.target), force=request.force)
    without = 0 if importance is None else _without(importance, listener.types)
    return Outcome(file_type, listener.types, listener.needs_importance, listener.fallbacks, listener.refusal, without)


def _check_disk(request: Request) -> None:
    """QuantiseError where it is the disk that has failed the engine, which only speaks of a stream."""
    if request.target and shutil.disk_usage(Path(request.partial).parent).free < DISK_RESERVE_BYTES:
        folder, name = Path(request.target).parent, Path(request.target).name
        raise QuantiseError(
            f"the disk of {folder} has run full while {name} was written",
            hint="make room there, or write to another disk: --out FILE",
        )


def _without(importance: Importance, types: Mapping[str, str]) -> int:
    quantised = (name for name, kind in types.items() if name.startswith("blk.") and kind not in LOSSLESS)
    return sum(name not in importance.values for name in quantised)


def _give(native: ModuleType, parameters: Any, importance: Importance, file: str) -> list[Any]:
    """Point `parameters` at the matrix, and at what the result shall say of it; gives what must live until the end."""
    entries = (native.llama_model_imatrix_data * (len(importance.values) + 1))()  # the last one, all zeros, ends it
    for entry, (name, values) in zip(entries, importance.values.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    facts: dict[str, str | int] = {
        "quantize.imatrix.file": file,
        "quantize.imatrix.dataset": importance.text,
        "quantize.imatrix.entries_count": len(importance.values),
        "quantize.imatrix.chunks_count": importance.chunks,
    }
    told = {key: value for key, value in facts.items() if value}
    overrides = (native.llama_model_kv_override * (len(told) + 1))()
    for override, (key, value) in zip(overrides, told.items(), strict=False):
        override.key, override.tag = key.encode(), _INTEGER if isinstance(value, int) else _TEXT
        if isinstance(value, int):
            override.value.val_i64 = value
        else:
            override.value.val_str = value.encode()[:_OVERRIDE_BYTES]
    parameters.imatrix, parameters.kv_overrides = entries, overrides
    return [entries, overrides, importance]


def _put_in_place(partial: Path, target: Path, *, force: bool) -> None:
    """On the disk before it gets its name. QuantiseError where another file has got that meanwhile, unless `force`."""
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    if not force:
        try:
            os.link(partial, target)  # fails where the name is taken, which renaming does not
        except OSError as error:  # or where the disk knows no such links
            if target.exists():
                raise QuantiseError(
                    f"{target} has come to be there while it was made anew",
                    hint="write over it: --force; or to another file: --out FILE",
                ) from error
    partial.replace(target)


if __name__ == "__main__":
    sys.exit(main())

"""Cut a model into files of a limited size and put such files together again, as `llama-gguf-split` does.

The first shard has all metadata, each has its number, their count and the number of all tensors. Metadata and tensors
are copied byte by byte, so that joining what was split gives the same file again.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from gguf import GGUFValueType

from quant.errors import SplitError
from quant.gguf_file import SHARD_NAME, read_model, shard_name
from quant.gguf_header import printable, read_header
from quant.gguf_writing import (
    NewFile,
    Part,
    entry_bytes,
    fact_entries,
    number_entry,
    padded,
    parts_of,
    write_gguf,
)
from quant.model import Model
from quant.pack import check_unchanged
from quant.sizes import size_text
from quant.whole_file import check_room, written_together

OnProgress = Callable[[int, int], None]
"""Called with the bytes written and those of all files."""

SPLIT_KEYS = "split."
_MOST_SHARDS = 2**16 - 1
_ALIGNMENT = 32
"""Of shards after the first: without metadata of their own they have the format's default."""


def split_model(
    path: Path,
    folder: Path,
    max_bytes: int,
    *,
    force: bool = False,
    on_progress: OnProgress = lambda done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Path, ...]:
    """Write the model at `path` into `folder` as shards of at most `max_bytes` each; their paths, or nothing is left.

    Files that exist are replaced with `force` only. Where joining them will not give the same file again, that is said.
    SplitError, NoRoomError, and ModelFileError for an unusable model.
    """
    model = read_model(path)
    shards = _shards(model, max_bytes)
    targets = tuple(folder / shard_name(_stem(path), number, len(shards)) for number in range(1, len(shards) + 1))
    _write(model, shards, targets, force, on_progress)
    if len(model.shards) == 1 and (difference := _whole(model).size_bytes - path.stat().st_size):
        say(_not_the_same(path, difference))
    return targets


def join_model(
    first: Path, target: Path, *, force: bool = False, on_progress: OnProgress = lambda done, total: None
) -> None:
    """Write the model whose first shard is `first` into the one file `target`.

    Errors as with `split_model`; SplitError also for a model that is one file already.
    """
    model = read_model(first)
    if len(model.shards) == 1:
        raise SplitError(f"{first} is a whole model, not one of several shards", hint="it can be used as it is")
    _write(model, (_whole(model),), (target,), force, on_progress)


def _not_the_same(path: Path, difference: int) -> str:
    """For a file that is larger or smaller than what llama.cpp would write of its metadata and weights."""
    how = f"{abs(difference):,} bytes {'longer' if difference > 0 else 'shorter'}"
    kept = "metadata and weights are the same, not how its writer left the end, nor marks of earlier shards"
    return f"joined again it will be {how} than {path.name}: {kept}"


def _whole(model: Model) -> NewFile:
    """All shards as one file, without what tells of shards."""
    header = read_header(model.path)
    entries = fact_entries(model.path, header)
    facts = tuple(entry for key, entry in entries.items() if not key.startswith(SPLIT_KEYS))
    return NewFile(header.version, header.alignment, facts, tuple(_parts(model)))


def _parts(model: Model) -> Iterator[Part]:
    for shard in model.shards:
        yield from parts_of(shard, read_header(shard))


def _shards(model: Model, max_bytes: int) -> tuple[NewFile, ...]:
    whole = _whole(model)
    if whole.size_bytes <= max_bytes:
        raise SplitError(
            f"{model.path.name} takes {size_text(whole.size_bytes)}: it fits into one file of {size_text(max_bytes)}",
            hint="name a smaller --max-size",
        )
    first = replace(whole, facts=(*whole.facts, *_split_facts(0, 0, 0)), parts=())
    later = NewFile(whole.version, _ALIGNMENT, _split_facts(0, 0, 0))
    groups = tuple(_groups(whole.parts, first, later, max_bytes))
    if len(groups) > _MOST_SHARDS:
        raise SplitError(
            f"{model.path.name} would be {len(groups):,} shards; {_MOST_SHARDS:,} are possible",
            hint="name a larger --max-size",
        )
    told = (_split_facts(number, len(groups), len(whole.parts)) for number in range(len(groups)))
    files = (replace(first, facts=(*whole.facts, *next(told))), *(replace(later, facts=facts) for facts in told))
    return tuple(replace(file, parts=group) for file, group in zip(files, groups, strict=True))


def _split_facts(number: int, count: int, tensors: int) -> tuple[bytes, ...]:
    """In the order that the engine's tool leaves them in."""
    return (
        number_entry("split.no", GGUFValueType.UINT16, number),
        number_entry("split.tensors.count", GGUFValueType.INT32, tensors),
        number_entry("split.count", GGUFValueType.UINT16, count),
    )


def _groups(parts: tuple[Part, ...], first: NewFile, later: NewFile, max_bytes: int) -> Iterator[tuple[Part, ...]]:
    """The tensors of each shard, as many as it holds."""
    room = _Room(first, max_bytes)
    group: list[Part] = []
    for part in parts:
        if group and not room.takes(part):
            yield tuple(group)
            room, group = _Room(later, max_bytes), []
        if not group and not room.takes(part):
            raise _too_large(part, room.size_with(part), max_bytes)
        room.take(part)
        group.append(part)
    yield tuple(group)


class _Room:
    """How large a shard is with what it has so far."""

    def __init__(self, empty: NewFile, max_bytes: int) -> None:
        self._alignment = empty.alignment
        self._max_bytes = max_bytes
        self._header_bytes = empty.header_bytes
        self._data_bytes = 0

    def size_with(self, part: Part) -> int:
        header = padded(self._header_bytes + entry_bytes(part.info), self._alignment)
        return header + self._data_bytes + padded(part.info.size_bytes, self._alignment)

    def takes(self, part: Part) -> bool:
        return self.size_with(part) <= self._max_bytes

    def take(self, part: Part) -> None:
        self._header_bytes += entry_bytes(part.info)
        self._data_bytes += padded(part.info.size_bytes, self._alignment)


def _too_large(part: Part, size_bytes: int, max_bytes: int) -> SplitError:
    alone, with_header = size_text(part.info.size_bytes), size_text(size_bytes)
    return SplitError(
        f"{printable(part.info.name)} alone takes {alone}, {with_header} with what stands before it in its shard; "
        f"{size_text(max_bytes)} are too little",
        hint=f"name a --max-size of at least {-(-size_bytes // 2**20)}MiB",
    )


def _write(
    model: Model, files: tuple[NewFile, ...], targets: tuple[Path, ...], force: bool, on_progress: OnProgress
) -> None:
    """All or none; the model must be at the end what it was when it was read."""
    folder = targets[0].parent
    _check_targets(model, targets, force)
    folder.mkdir(parents=True, exist_ok=True)
    total = sum(file.size_bytes for file in files)
    check_room(folder, total, f"writing {len(files)} shards" if len(files) > 1 else f"writing {targets[0].name}")
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        on_progress(min(done, total), total)

    with written_together(targets) as partials:
        for file, partial in zip(files, partials, strict=True):
            write_gguf(file, partial, on_bytes)
            _sync(partial)
        check_unchanged(model)
        _check_targets(model, targets, force)
        on_progress(total, total)  # the last chance to be stopped: from here on the files are there


def _sync(path: Path) -> None:
    """Wait until the disk has all of it: who splits or joins may remove the source next."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _check_targets(model: Model, targets: tuple[Path, ...], force: bool) -> None:
    if folders := [target for target in targets if target.is_dir()]:
        raise SplitError(
            f"{folders[0]} is a folder", hint=f"name a file in it: --out {folders[0] / _stem(model.path)}.gguf"
        )
    own = {os.path.realpath(shard) for shard in model.shards}
    if mine := [target for target in targets if os.path.realpath(target) in own]:
        raise SplitError(f"{mine[0]} belongs to the model itself", hint="name another place with --out")
    there = [target for target in targets if os.path.lexists(target)]
    if there and not force:
        some = f"{there[0]} and {len(there) - 1} more exist" if len(there) > 1 else f"{there[0]} exists"
        them = "them" if len(there) > 1 else "it"
        raise SplitError(f"{some} already", hint=f"--force replaces {them}; or name another place with --out")


def _stem(path: Path) -> str:
    """What the names of all shards begin with."""
    shard = SHARD_NAME.fullmatch(path.name)
    return shard["stem"] if shard else path.name.removesuffix(".gguf")

"""Read a GGUF model, all its shards, into a `Model`. Only headers are read, so this is quick for any size."""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from quant.errors import ModelFileError
from quant.gguf_header import FETCH_AGAIN, Array, Header, printable, read_header
from quant.model import Model, Tensor, dominant_type
from quant.model_facts import Facts
from quant.whole_file import files_digest

SHARD_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_ARCHITECTURE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LARGEST_BLOCK_COUNT = 4096
_MOST_TENSORS = 100_000
_NAMED_SHARDS = 4


def read_model(path: Path) -> Model:
    """Read the model whose only file or first shard is at `path`.

    ModelFileError: no such file, not GGUF, truncated, damaged, another shard than the first, a shard missing, or no
    language model.
    """
    return read_model_and_facts(path)[0]


def read_model_and_facts(path: Path) -> tuple[Model, Facts]:
    """The model, and all that its first file states of it."""
    header = read_header(path)
    paths = _shards(path, header)
    digest = files_digest(paths)
    tensors = tuple(_tensors(path, header, paths))
    _check_tensors(path, header, tensors)
    facts = Facts(path, header)
    return replace(_model(facts, paths, tensors), files_digest=digest), facts


def shard_name(stem: str, number: int, count: int) -> str:
    """Of the file of one shard; they are numbered from 1."""
    return f"{stem}-{number:05}-of-{count:05}.gguf"


def _shards(path: Path, header: Header) -> tuple[Path, ...]:
    count = header.facts.get("split.count", 1)
    number = header.facts.get("split.no", 0)
    name = SHARD_NAME.fullmatch(path.name)
    if isinstance(number, int) and number > 0:
        first = path.with_name(f"{name['stem']}-00001-of-{name['count']}.gguf") if name else None
        raise ModelFileError(
            f"{path} is shard {number + 1} of {_told(count)}; a model is named by its first shard",
            hint=f"use {first}" if first else "use the file whose name has -00001-of-",
        )
    if not isinstance(count, int) or count <= 1:
        return (path,)
    if name is None or int(name["number"]) != 1 or int(name["count"]) != count:
        raise ModelFileError(
            f"{path} is the first of {count} shards, but its name does not end in -00001-of-{count:05}.gguf",
            hint="give all shards the names they were published under",
        )
    paths = tuple(path.with_name(shard_name(name["stem"], index, count)) for index in range(1, count + 1))
    missing = list(islice((shard.name for shard in paths if not shard.exists()), _NAMED_SHARDS + 1))
    if missing:
        more = " and more" if len(missing) > _NAMED_SHARDS else ""
        raise ModelFileError(
            f"{path} is the first of {count} shards; missing beside it: {', '.join(missing[:_NAMED_SHARDS])}{more}",
            hint=f"put every shard into {path.parent}",
        )
    return paths


def _check_shard(path: Path, header: Header, number: int, count: int) -> None:
    if count == 1:
        return
    stated = header.facts.get("split.no"), header.facts.get("split.count")
    if stated != (number, count):
        raise ModelFileError(
            f"{path} is not shard {number + 1} of {count} of this model: it says {_said(stated)}", hint=FETCH_AGAIN
        )


def _said(stated: tuple[object, object]) -> str:
    number, count = stated
    return f"shard {number + 1} of {_told(count)}" if isinstance(number, int) else "nothing of shards"


def _told(value: object) -> str:
    """What should be a number and may be anything."""
    return printable(str(value))


def _tensors(path: Path, first: Header, shards: tuple[Path, ...]) -> Iterator[Tensor]:
    """Of one shard after the other: of the headers only the first is kept, there may be thousands."""
    count = 0
    for number, shard in enumerate(shards):
        header = first if number == 0 else read_header(shard)
        _check_shard(shard, header, number, len(shards))
        count += len(header.tensors)
        if count > _MOST_TENSORS:
            raise ModelFileError(f"{path}: its shards have more than {_MOST_TENSORS:,} tensors", hint=FETCH_AGAIN)
        for tensor in header.tensors:
            start = tensor.end - tensor.size_bytes
            yield Tensor(tensor.name, tensor.type, tensor.shape, tensor.size_bytes, number, start)


def _check_tensors(path: Path, header: Header, tensors: tuple[Tensor, ...]) -> None:
    if not tensors:
        raise ModelFileError(f"{path} has no tensors: it holds a vocabulary only", hint="fetch the model itself")
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise ModelFileError(f"{path}: its shards repeat the same tensors", hint=FETCH_AGAIN)
    stated = header.facts.get("split.tensors.count", len(tensors))
    if stated != len(tensors):
        raise ModelFileError(
            f"{path}: {_told(stated)} tensors are announced, its shards have {len(tensors)}", hint=FETCH_AGAIN
        )


def _model(facts: Facts, shards: tuple[Path, ...], tensors: tuple[Tensor, ...]) -> Model:
    architecture = _language_model_architecture(facts)
    blocks = facts.number(f"{architecture}.block_count")
    if not 1 <= blocks <= _LARGEST_BLOCK_COUNT:
        raise ModelFileError(f"{facts.path}: {architecture}.block_count is {blocks}", hint=FETCH_AGAIN)
    embedding = facts.number(f"{architecture}.embedding_length")
    heads = facts.numbers(f"{architecture}.attention.head_count", blocks, 0)
    most_heads = max(heads)
    key_default = embedding // most_heads if most_heads else 0
    kv_heads = f"{architecture}.attention.head_count_kv"
    return Model(
        path=facts.path,
        shards=shards,
        name=printable(facts.text("general.name", facts.path.stem)),
        architecture=architecture,
        quantisation=dominant_type(tensors),
        parameters=sum(tensor.parameters for tensor in tensors),
        block_count=blocks,
        context_length=facts.number(f"{architecture}.context_length"),
        embedding_length=embedding,
        head_count=most_heads,
        head_count_kv=facts.numbers(kv_heads, blocks) if kv_heads in facts.header.facts else heads,
        key_length=facts.number(f"{architecture}.attention.key_length", key_default),
        value_length=facts.number(f"{architecture}.attention.value_length", key_default),
        vocabulary=_vocabulary(facts, architecture, tensors),
        output_tied=all(tensor.name != "output.weight" for tensor in tensors),
        tensors=tensors,
        experts_used=_experts_used(facts, architecture, blocks),
    )


def _experts_used(facts: Facts, architecture: str, blocks: int) -> float:
    count = facts.number(f"{architecture}.expert_count", 0)
    used = max(facts.numbers(f"{architecture}.expert_used_count", blocks, 0))
    return min(used, count) / count if count > 0 and used > 0 else 1.0


def _language_model_architecture(facts: Facts) -> str:
    architecture = facts.text("general.architecture", "")
    kind = facts.text("general.type", "model")
    if kind == "adapter":
        raise ModelFileError(f"{facts.path} is a LoRA adapter, not a model", hint="name the model it belongs to")
    if kind == "mmproj" or architecture == "clip":
        raise ModelFileError(
            f"{facts.path} is the image part (mmproj) of a model", hint="name the language model that came with it"
        )
    if not architecture:
        raise ModelFileError(f"{facts.path} does not state general.architecture", hint=FETCH_AGAIN)
    if not _ARCHITECTURE.fullmatch(architecture):
        raise ModelFileError(f"{facts.path}: {printable(architecture)} is no possible architecture", hint=FETCH_AGAIN)
    return architecture


def _vocabulary(facts: Facts, architecture: str, tensors: tuple[Tensor, ...]) -> int:
    """As the engine counts: the tokeniser's list, else the stated size, else the rows of the embedding."""
    tokens = facts.header.facts.get("tokenizer.ggml.tokens")
    if isinstance(tokens, Array):
        return tokens.count
    rows = [tensor.shape[-1] for tensor in tensors if tensor.name == "token_embd.weight"]
    return facts.number(f"{architecture}.vocab_size", rows[0] if rows else None)

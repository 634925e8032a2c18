"""A model as its file tells of it: facts, tensors by type, what a conversation takes, and a picture of its layers."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.view.sizes import bytes_text
from quant.description import Description, Experts
from quant.kv_cache import CACHE_TYPES, layer_cache_bytes, refusal, state_bytes, token_bytes

_BAR = 24
_USUAL_CONTEXTS = (4096, 32768)


def model_view(description: Description, *, is_here: bool = True) -> RenderableType:
    """All there is to say, from the name to a bar for each layer. `is_here` False: only its headers are."""
    return Group(
        Text(description.name, "bold"),
        _facts_table(description, is_here),
        Text(),
        _types_table(description),
        Text(),
        *_cache_part(description),
        Text(),
        _picture(description),
    )


def model_json(description: Description, *, is_here: bool = True) -> str:
    """The same as JSON, with the bytes of a conversation by cache type and context."""
    facts = {"is_here": is_here, **asdict(description), "weight_bytes": description.weight_bytes}
    if not is_here:
        facts |= {"path": None, "shards": [], "files_digest": ""}
    facts["bits_per_weight"] = round(description.bits_per_weight, 3)
    facts["conversation"] = {kind: _conversation(description, kind) for kind in CACHE_TYPES}
    return json.dumps(facts, indent=2, default=str)


def _conversation(description: Description, cache_type: str) -> dict[str, Any] | None:
    if description.cache.unknown:
        return None
    if refused := refusal(description.cache, cache_type):
        return {"refused": refused}
    return {
        "token_bytes": token_bytes(description.cache, cache_type),
        "state_bytes": state_bytes(description.cache),
        "bytes_at": {context: _at(description, cache_type, context) for context in _contexts(description)},
    }


def _facts_table(description: Description, is_here: bool) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in _facts(description, is_here):
        table.add_row(Text(f"  {name}"), Text(value, overflow="fold"))
    return table


def _facts(description: Description, is_here: bool) -> Iterator[tuple[str, str]]:
    yield "architecture", _architecture(description)
    yield "layers", _layers(description)
    yield "heads", _heads(description)
    if description.experts is not None:
        yield "experts", _experts(description, description.experts)
    yield "context", f"{description.context_length} tokens as trained"
    yield "vocabulary", _vocabulary(description)
    yield "chat template", f"{len(description.chat_template)} characters" if description.chat_template else "none"
    yield "licence", description.licence or "not told in the file"
    shards = f" in {len(description.shards)} shards" if len(description.shards) > 1 else ""
    place = str(description.path) if is_here else "not on this machine: meshctl pull fetches it"
    yield "files", f"{bytes_text(description.file_bytes)}{shards}, {place}"


def _architecture(description: Description) -> str:
    bits = f"{description.bits_per_weight:.2f} bits per weight"
    return f"{description.architecture}, {_count_text(description.parameters)} parameters, {bits}"


def _layers(description: Description) -> str:
    text = f"{description.block_count}, {description.embedding_length} wide"
    if description.feed_forward_length:
        text += f", feed-forward {description.feed_forward_length}"
    if description.predicting_layers:
        text += f"; {description.predicting_layers} at the end only for predicting further tokens"
    return text


def _heads(description: Description) -> str:
    counts = sorted({heads for heads in description.head_count_kv if heads})
    if not counts or not description.head_count:
        return "none"
    said = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{description.head_count}, {said} for keys and values{_lengths(description)}"


def _lengths(description: Description) -> str:
    """Of K and of V, for the layers that have them."""
    lengths = {(layer.key_length, layer.value_length) for layer in description.cache.layers if layer.token_elements}
    if len(lengths) != 1:
        return ""
    key, value = lengths.pop()
    if not value:
        return f", {key} elements together (compressed)"
    return f", {key} elements each" if key == value else f", {key} and {value} elements"


def _experts(description: Description, experts: Experts) -> str:
    shared = f" and {experts.shared} always" if experts.shared else ""
    active = _count_text(description.active_parameters)
    return f"{experts.count}, {experts.used} of them{shared} for each token: {active} parameters"


def _vocabulary(description: Description) -> str:
    tokenizer = description.tokenizer
    kind = tokenizer.kind or "not told"
    rules = f" ({tokenizer.rules})" if tokenizer.rules else ""
    ends = f", ends with {tokenizer.last_token}" if tokenizer.last_token is not None else ""
    return f"{description.vocabulary} words, tokenizer {kind}{rules}{ends}"


def _types_table(description: Description) -> Table:
    table = Table("tensors", box=None, pad_edge=False)
    for name in ("number", "weights", "bytes", "share"):
        table.add_column(name, justify="right")
    for share in description.types:
        part = f"{share.size_bytes / description.weight_bytes:.1%}"
        weights = _count_text(share.parameters)
        table.add_row(f"  {share.type}", str(share.tensors), weights, bytes_text(share.size_bytes), part)
    weights, size = _count_text(description.parameters), bytes_text(description.weight_bytes)
    table.add_row("  all", str(sum(share.tensors for share in description.types)), weights, size, "")
    return table


def _cache_part(description: Description) -> Iterator[RenderableType]:
    """What each conversation takes beside the weights."""
    cache = description.cache
    if cache.unknown:
        yield Text(f"KV cache: {cache.unknown}")
        return
    yield _cache_table(description)
    if refused := next(filter(None, (refusal(cache, kind) for kind in CACHE_TYPES)), ""):
        yield Text(f"  not possible: {refused}")
    windows = [layer.window for layer in cache.layers if layer.window and layer.token_elements]
    if windows:
        told = str(windows[0]) if len(set(windows)) == 1 else f"{min(windows)} to {max(windows)}"
        yield Text(f"  {len(windows)} of {len(cache.layers)} layers look back over {told} tokens only")
    if state := state_bytes(cache):
        having = sum(layer.state > 0 for layer in cache.layers)
        yield Text(f"  {having} recurrent layers keep {bytes_text(state)} of each conversation, however long")


def _cache_table(description: Description) -> Table:
    table = Table("KV cache", box=None, pad_edge=False)
    table.add_column("per token", justify="right")
    for context in _contexts(description):
        table.add_column(f"{context} tokens", justify="right")
    for kind in CACHE_TYPES:
        refused = refusal(description.cache, kind)
        sizes = [] if refused else [_at(description, kind, context) for context in _contexts(description)]
        token = "not possible" if refused else bytes_text(token_bytes(description.cache, kind))
        table.add_row(f"  {kind}", token, *map(bytes_text, sizes))
    return table


def _contexts(description: Description) -> tuple[int, ...]:
    """Usual ones, and what it was trained for."""
    longest = description.context_length
    usual = tuple(context for context in _USUAL_CONTEXTS if context < longest)
    return (*usual, longest) if longest else usual


def _at(description: Description, cache_type: str, context: int) -> int:
    return sum(layer_cache_bytes(description.cache, cache_type, context=context))


def _picture(description: Description) -> Table:
    """Weights of the input, of each layer and of the output; layers of one size after each other share a row."""
    largest = max(1, description.input_bytes, description.output_bytes, *description.layer_bytes)
    table = Table("bytes by layer", "", box=None, pad_edge=False)
    table.add_column("", justify="right")
    table.add_column("")
    for name, size, note in _rows(description):
        bar = Text("█" * max(1 if size else 0, round(size / largest * _BAR)), "cyan", no_wrap=True)
        table.add_row(f"  {name}", bar, bytes_text(size), note)
    return table


def _rows(description: Description) -> Iterator[tuple[str, int, str]]:
    yield "input", description.input_bytes, ""
    first = 0
    for size, same in groupby(description.layer_bytes):
        count = len(list(same))
        name = str(first) if count == 1 else f"{first}-{first + count - 1}"
        yield name, size, "" if count == 1 else f"each, {bytes_text(size * count)} in all"
        first += count
    yield "output", description.output_bytes, "the input's weights again" if description.output_tied else ""


def _count_text(count: int) -> str:
    """Such as "134.5 M" or "1.24 B"."""
    for name, factor in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= factor:
            return f"{count / factor:.{2 if count < 100 * factor else 0}f} {name}"
    return str(count)

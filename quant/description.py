"""What a user may want to know of a model before running it, from its file alone."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from quant.engine_caches import cache_of
from quant.gguf_file import read_model_and_facts
from quant.gguf_header import printable
from quant.kv_cache import Cache
from quant.model import Model, Tensor, input_bytes, layer_bytes, output_bytes
from quant.model_facts import Facts


@dataclass(frozen=True)
class TypeShare:
    """The tensors of one ggml type."""

    type: str
    tensors: int
    parameters: int
    size_bytes: int


@dataclass(frozen=True)
class Experts:
    """How many there are in a layer, how many of them work for each token, and how many for all tokens."""

    count: int
    used: int
    shared: int


@dataclass(frozen=True)
class Tokenizer:
    """`kind` is how it works, `rules` how it takes a text apart before; special tokens by number, None: not told."""

    kind: str
    rules: str
    first_token: int | None
    last_token: int | None


@dataclass(frozen=True)
class Description:
    """A model as its file tells of it. Texts are printable; `licence` and `chat_template` may be "".

    `files_digest`: of its files when they were read. `active_parameters`: of those, what is used for each token.
    `predicting_layers`: how many of its layers only predict further tokens. Bytes are of weights but `file_bytes`.
    """

    path: Path
    shards: tuple[Path, ...]
    files_digest: str
    name: str
    architecture: str
    licence: str
    parameters: int
    active_parameters: int
    block_count: int
    predicting_layers: int
    context_length: int
    embedding_length: int
    feed_forward_length: int
    head_count: int
    head_count_kv: tuple[int, ...]
    experts: Experts | None
    vocabulary: int
    tokenizer: Tokenizer
    chat_template: str
    file_bytes: int
    input_bytes: int
    layer_bytes: tuple[int, ...]
    output_bytes: int
    output_tied: bool
    types: tuple[TypeShare, ...]
    cache: Cache

    @property
    def weight_bytes(self) -> int:
        return sum(share.size_bytes for share in self.types)

    @property
    def bits_per_weight(self) -> float:
        return self.weight_bytes * 8 / self.parameters


def describe(path: Path) -> Description:
    """Read the headers of the model's files; ModelFileError as `read_model` raises it."""
    model, facts = read_model_and_facts(path)
    experts = _experts(model, facts)
    key = f"{model.architecture}."
    return Description(
        path=model.path,
        shards=model.shards,
        files_digest=model.files_digest,
        name=model.name,
        architecture=model.architecture,
        licence=printable(facts.text("general.license", "")),
        parameters=model.parameters,
        active_parameters=_active_parameters(model, experts),
        block_count=model.block_count,
        predicting_layers=min(model.block_count, facts.number(f"{key}nextn_predict_layers", 0)),
        context_length=model.context_length,
        embedding_length=model.embedding_length,
        feed_forward_length=max(facts.numbers(f"{key}feed_forward_length", model.block_count, 0)),
        head_count=model.head_count,
        head_count_kv=model.head_count_kv,
        experts=experts,
        vocabulary=model.vocabulary,
        tokenizer=_tokenizer(facts),
        chat_template=facts.text("tokenizer.chat_template", ""),
        file_bytes=sum(shard.stat().st_size for shard in model.shards),
        input_bytes=input_bytes(model),
        layer_bytes=layer_bytes(model),
        output_bytes=output_bytes(model),
        output_tied=model.output_tied,
        types=_type_shares(model.tensors),
        cache=cache_of(model, facts),
    )


def _experts(model: Model, facts: Facts) -> Experts | None:
    key = f"{model.architecture}.expert"
    count = facts.number(f"{key}_count", 0)
    if not count:
        return None
    used = max(facts.numbers(f"{key}_used_count", model.block_count, 0))
    return Experts(count, used, facts.number(f"{key}_shared_count", 0))


def _active_parameters(model: Model, experts: Experts | None) -> int:
    """All but the experts that have nothing to do."""
    if experts is None:
        return model.parameters
    in_experts = sum(tensor.parameters for tensor in model.tensors if "_exps." in tensor.name)
    return model.parameters - in_experts + in_experts * min(experts.used, experts.count) // experts.count


def _tokenizer(facts: Facts) -> Tokenizer:
    return Tokenizer(
        kind=printable(facts.text("tokenizer.ggml.model", "")),
        rules=printable(facts.text("tokenizer.ggml.pre", "")),
        first_token=facts.integer("tokenizer.ggml.bos_token_id"),
        last_token=facts.integer("tokenizer.ggml.eos_token_id"),
    )


def _type_shares(tensors: Iterable[Tensor]) -> tuple[TypeShare, ...]:
    """The types that take most first."""
    counts, parameters, sizes = Counter[str](), Counter[str](), Counter[str]()
    for tensor in tensors:
        counts[tensor.type] += 1
        parameters[tensor.type] += tensor.parameters
        sizes[tensor.type] += tensor.size_bytes
    return tuple(TypeShare(kind, counts[kind], parameters[kind], size) for kind, size in sizes.most_common())

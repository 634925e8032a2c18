"""Files that want to harm, read with little memory: run as a program in a process of its own, which says how it went.

Each is described, shown, sliced, split and joined, as far as it lets itself be. One JSON object per line.
"""

import json
import resource
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from time import process_time

from rich.console import Console

from orchestrator.view.model import model_json, model_view
from quant.description import describe
from quant.errors import QuantError
from quant.gguf_file import read_model
from quant.shards import join_model, split_model
from quant.slice import write_slice
from tests.quant.gguf_bytes import ARRAY, LLAMA, STRING, fact, gguf, number, tensor, words

MEMORY_BYTES = 192 * 1024 * 1024
"""What reading may take beside what the process has already."""

UINT8, FLOAT64 = 0, 12
FACTS = (*LLAMA, number("llama.vocab_size", 4))
WEIGHT = tensor("token_embd.weight", (8, 4))
MIB = 1024 * 1024


def sparse(path: Path, start: bytes, size_bytes: int) -> Path:
    """A file whose rest is a hole: it takes no disk."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size_bytes)
    return path


def whole(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def array(key: str, kind: int, count: int, data: bytes = b"") -> bytes:
    return fact(key, ARRAY, struct.pack("<IQ", kind, count) + data)


def started(facts: int, tensors: int, *entries: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, facts) + b"".join(entries)


def four_million_empty_words(folder: Path) -> Path:
    return sparse(folder / "words.gguf", started(1, 0, array("w", STRING, 4_000_000)), 40 * MIB)


def ten_thousand_arrays(folder: Path) -> Path:
    arrays = [array(f"a{n}", UINT8, 4096, bytes(4096)) for n in range(9000)]
    return whole(folder / "arrays.gguf", gguf((*FACTS, *arrays), (WEIGHT,), data_bytes=128))


def numbers_that_take_most(folder: Path) -> Path:
    arrays = [array(f"a{n}", FLOAT64, 4096, struct.pack("<4096d", *range(4096))) for n in range(1000)]
    return whole(folder / "numbers.gguf", gguf((*FACTS, *arrays), (WEIGHT,), data_bytes=128))


def texts_that_grow(folder: Path, count: int = 15) -> Path:
    """Each byte that is no text becomes a character of two bytes."""
    long = struct.pack("<Q", 4 * MIB) + b"\xff" * (4 * MIB)
    facts = (
        *FACTS,
        fact("tokenizer.chat_template", STRING, long),
        *(fact(f"t{n}", STRING, long) for n in range(count)),
    )
    return whole(folder / "texts.gguf", gguf(facts, (WEIGHT,), data_bytes=128))


def texts_that_just_fit(folder: Path) -> Path:
    return texts_that_grow(folder, 2)


def many_tensors(folder: Path) -> Path:
    tensors = [tensor(f"blk.0.t{n}", (8,), 0, 32 * n) for n in range(29_999)]
    return whole(folder / "tensors.gguf", gguf(FACTS, tensors, data_bytes=32 * 29_999))


def long_names(folder: Path) -> Path:
    tensors = [tensor(f"{n}" + "../" * 20_000, (8,), 0, 32 * n) for n in range(1000)]
    return whole(folder / "names.gguf", gguf(FACTS, tensors, data_bytes=32_000))


def a_layer_beyond_all_numbers(folder: Path) -> Path:
    """Of more digits than Python turns into one."""
    tensors = (WEIGHT, tensor(f"blk.{'9' * 5000}.attn_q.weight", (8,), 0, 128))
    return whole(folder / "digits.gguf", gguf(FACTS, tensors, data_bytes=160))


def a_layer_of_many_digits(folder: Path) -> Path:
    tensors = (WEIGHT, tensor(f"blk.{'9' * 40}.attn_q.weight", (8,), 0, 128))
    return whole(folder / "many_digits.gguf", gguf(FACTS, tensors, data_bytes=160))


def tensors_that_share_bytes(folder: Path) -> Path:
    """A small file that would be cut into endless ones."""
    tensors = [tensor(f"t{n}", (MIB,), 0, 0) for n in range(10_000)]
    return whole(folder / "shared.gguf", gguf(FACTS, tensors, data_bytes=4 * MIB))


def terabytes_of_nothing(folder: Path) -> Path:
    start = gguf(FACTS, (tensor("output.weight", (2**40,)), tensor("output_norm.weight", (2**40,), 0, 2**42)))
    return sparse(folder / "hole.gguf", start, 2**43 + len(start))


def many_layers(folder: Path) -> Path:
    counts = struct.pack("<IQ4096I", 4, 4096, *range(4096))
    facts = (
        words("general.architecture", "nemotron_h"),
        number("nemotron_h.block_count", 4096),
        number("nemotron_h.context_length", 2**31 - 1),
        number("nemotron_h.embedding_length", 2**31 - 1),
        fact("nemotron_h.attention.head_count", ARRAY, counts),
        fact("nemotron_h.attention.head_count_kv", ARRAY, counts),
        fact("nemotron_h.feed_forward_length", ARRAY, counts),
        number("nemotron_h.ssm.inner_size", 2**31 - 1),
        number("nemotron_h.ssm.state_size", 2**31 - 1),
    )
    return whole(folder / "layers.gguf", gguf(facts, (WEIGHT,), data_bytes=128))


def endless_loops(folder: Path) -> Path:
    facts = [
        words("general.architecture", "nanbeige"),
        *(number(f"nanbeige.{key}", 100) for key in ("block_count", "context_length", "embedding_length")),
        number("nanbeige.attention.head_count", 1),
        number("nanbeige.num_loops", 2**31 - 1),
    ]
    return whole(folder / "loops.gguf", gguf(facts, (WEIGHT,), data_bytes=128))


def shard(number_: int, count: int, *tensors: bytes, data_bytes: int = 128) -> bytes:
    facts = (number("split.no", number_), number("split.count", count))
    return gguf((*(LLAMA if number_ == 0 else ()), *facts), tensors, data_bytes=data_bytes)


def shards_in_a_circle(folder: Path) -> Path:
    first = whole(folder / "m-00001-of-00003.gguf", shard(0, 3, WEIGHT))
    (folder / "m-00002-of-00003.gguf").symlink_to("m-00003-of-00003.gguf")
    (folder / "m-00003-of-00003.gguf").symlink_to("m-00002-of-00003.gguf")
    return first


def shards_that_are_the_first(folder: Path) -> Path:
    first = whole(folder / "m-00001-of-00002.gguf", shard(0, 2, WEIGHT))
    (folder / "m-00002-of-00002.gguf").symlink_to(first)
    return first


def shards_elsewhere(folder: Path) -> Path:
    """Caches keep files under their hashes and link to them: that is allowed."""
    first = whole(folder / "m-00001-of-00002.gguf", shard(0, 2, WEIGHT))
    (folder / "blobs").mkdir()
    (folder / "m-00002-of-00002.gguf").symlink_to(whole(folder / "blobs" / "1f", shard(1, 2, tensor("b", (8, 4)))))
    return first


def shards_without_end(folder: Path) -> Path:
    return whole(folder / "m-00001-of-99999.gguf", shard(0, 99_999, WEIGHT))


def a_count_of_shards_that_is_a_text(folder: Path) -> Path:
    facts = (*FACTS, number("split.no", 1), words("split.count", "\x1b[2J" * 1000))
    return whole(folder / "m.gguf", gguf(facts, (WEIGHT,), data_bytes=128))


def shards_of_many_tensors(folder: Path) -> Path:
    for part in range(3):
        tensors = [tensor(f"p{part}t{n}", (8,), 0, 32 * n) for n in range(34_000)]
        whole(folder / f"m-0000{part + 1}-of-00003.gguf", shard(part, 3, *tensors, data_bytes=32 * 34_000))
    return folder / "m-00001-of-00003.gguf"


def arrays_in_arrays(folder: Path) -> Path:
    return whole(
        folder / "deep.gguf",
        gguf(
            (*FACTS, array("a", ARRAY, 1, struct.pack("<IQ", ARRAY, 1) * 100_000)),
        ),
    )


def negative_counts(folder: Path) -> Path:
    return whole(folder / "negative.gguf", b"GGUF" + struct.pack("<Iqq", 3, -1, -1))


def a_name_for_a_terminal(folder: Path) -> Path:
    facts = (*FACTS, words("general.name", "\x1b]0;owned\x07" * 9), words("general.license", "\x1b[2J\r\n"))
    return whole(folder / "terminal.gguf", gguf(facts, (WEIGHT,), data_bytes=128))


def an_architecture_that_is_a_path(folder: Path) -> Path:
    facts = (words("general.architecture", "../../etc"), number("../../etc.block_count", 1))
    return whole(folder / "path.gguf", gguf(facts, (WEIGHT,), data_bytes=128))


def a_key_twice(folder: Path) -> Path:
    return whole(folder / "twice.gguf", gguf((number("\x1b[31m" * 99, 1),) * 2, (WEIGHT,), data_bytes=128))


CASES: tuple[Callable[[Path], Path], ...] = (
    four_million_empty_words,
    ten_thousand_arrays,
    numbers_that_take_most,
    texts_that_grow,
    texts_that_just_fit,
    many_tensors,
    long_names,
    a_layer_beyond_all_numbers,
    a_layer_of_many_digits,
    tensors_that_share_bytes,
    terabytes_of_nothing,
    many_layers,
    endless_loops,
    shards_in_a_circle,
    shards_that_are_the_first,
    shards_elsewhere,
    shards_without_end,
    a_count_of_shards_that_is_a_text,
    shards_of_many_tensors,
    arrays_in_arrays,
    negative_counts,
    a_name_for_a_terminal,
    an_architecture_that_is_a_path,
    a_key_twice,
)


def outcome(act: Callable[[], object]) -> str:
    """ "" when it went well, else what was said; any other error ends this process."""
    try:
        act()
    except QuantError as error:
        return str(error)
    return ""


def shown(path: Path) -> None:
    description = describe(path)
    Console(file=StringIO(), width=80).print(model_view(description))
    model_json(description)


def uses(path: Path, folder: Path) -> dict[str, str]:
    """Everything that meshctl does with a model's file."""
    parts = folder / "parts"
    return {
        "show": outcome(lambda: shown(path)),
        "slice": outcome(lambda: write_slice(read_model(path), 1, folder / "slice.gguf")),
        "split": outcome(lambda: split_model(path, parts, 2**42 + 80 * MIB if "hole" in path.name else 2 * MIB)),
        "join": outcome(lambda: join_model(path, folder / "joined.gguf")),
    }


def main() -> None:
    for make in CASES:
        folder = Path(sys.argv[1]) / make.__name__
        folder.mkdir()
        path = make(folder)
        began = process_time()
        with little_memory():
            said = uses(path, folder)
        print(json.dumps({"case": make.__name__, "seconds": process_time() - began, "said": said}))  # noqa: T201


@contextmanager
def little_memory() -> Iterator[None]:
    """A MemoryError for whoever wants more; to make the files takes more than to read them."""
    used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used_bytes + MEMORY_BYTES, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    main()

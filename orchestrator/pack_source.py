"""The model on the controller, as what is brought to hosts of it: pieces of its tensors, each with its digests."""

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.shell.protocol import Span
from quant.model import Model
from quant.pack import DigestBook, Digests, blake2b_digest, check_unchanged, engine_name, read_piece
from quant.piece import Piece
from workers.source_edits import HASHED_ABOVE_BYTES

BATCH_BYTES = 256 * 1024 * 1024
"""So much is read and hashed before it is sent, so that it need not be read from the disk a second time."""


@dataclass(frozen=True)
class PackFile:
    """A piece of a tensor with its digests: a file of a pack."""

    piece: Piece
    digests: Digests
    shard: str

    @property
    def name(self) -> str:
        return self.digests.name

    @property
    def size_bytes(self) -> int:
        return self.piece.size_bytes

    @property
    def span(self) -> Span:
        """Where it lies in the model's file."""
        runs = (self.piece.run_bytes, self.piece.stride_bytes) if self.piece.count > 1 else (0, 0)
        return Span(self.piece.offset, self.size_bytes, *runs)

    def as_asked(self) -> dict[str, Any]:
        """As the agent reads it."""
        return {**asdict(self.digests), **asdict(self.span), "shard": self.shard}


@dataclass(frozen=True)
class PackSource:
    """The model on the controller; its tensors are read and hashed one at a time, whoever asks."""

    model: Model
    book: DigestBook
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def known(self, piece: Piece) -> PackFile | None:
        digests = self.book.of(piece)
        return None if digests is None else PackFile(piece, digests, self.model.shards[piece.tensor.shard].name)

    async def file(self, piece: Piece) -> PackFile:
        """With digests that are worked out unless they are known."""
        async with self.turn:
            known = self.known(piece)
            if known is not None:
                return known
            data = await asyncio.to_thread(read_piece, self.model, piece)
            name, blake2b = await asyncio.gather(
                asyncio.to_thread(engine_name, data), asyncio.to_thread(blake2b_digest, data)
            )
            check_unchanged(self.model)
            self.book.add(piece, Digests(name, blake2b))
        return await self.file(piece)


def asked_for(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """What a head asks a worker for by a hash, of what it has for it: a piece in runs by one hash of all
    (`workers/source_edits.py`)."""
    return (piece for piece in pieces if piece.size_bytes > HASHED_ABOVE_BYTES)


def batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Of so many bytes each, or one piece."""
    batch: list[Piece] = []
    for piece in pieces:
        if batch and sum(one.size_bytes for one in batch) + piece.size_bytes > BATCH_BYTES:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def size_of(items: Iterable[Piece | PackFile]) -> int:
    """In bytes, all together."""
    return sum(item.size_bytes for item in items)

"""A tensor that lies in stretches of flat buffers, as DeepSpeed's partitions have it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from neoxkit.checkpoint.format import ITEM_BYTES
from neoxkit.convert.pickles.storage import Files, Storage, Stored


@dataclass(frozen=True)
class Spliced:
    """A tensor whose elements, row by row, are those of `stretches` (each one-dimensional) one after the other."""

    shape: tuple[int, ...]
    stretches: tuple[Stored, ...]

    @property
    def dtype(self) -> str:
        """As safetensors spells it."""
        return self.stretches[0].dtype

    @property
    def storage(self) -> Storage:
        """Where its first element lies."""
        return self.stretches[0].storage

    @property
    def bytes(self) -> int:
        """Of its elements."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]


Part = Stored | Spliced
"""A rank's part of a tensor."""


def read_rows(files: Files, part: Part, rows: tuple[int, int], into: npt.NDArray[np.uint8]) -> None:
    """Fill the bytes `into` with rows of a part. Raises CheckpointError when a file is too short."""
    if isinstance(part, Stored):
        files.read_rows(part, rows, into)
        return
    row, item = prod(part.shape[1:]), ITEM_BYTES[part.dtype]
    at = 0
    for stretch in cut(part.stretches, rows[0] * row, rows[1] * row):
        size = stretch.shape[0] * item
        files.read_rows(stretch, (0, stretch.shape[0]), into[at : at + size])
        at += size


def cut(buffers: Sequence[Stored], first: int, last: int) -> Iterator[Stored]:
    """Elements first:last of flat buffers laid end to end, as stretches of them.

    Raises ValueError when the buffers end before. Example: 5:9 of buffers of 6 and 6 elements is 5:6
    of the first and 0:3 of the second.
    """
    at = 0
    for buffer in buffers:
        begin, end = max(at, first), min(at + buffer.shape[0], last)
        if begin < end:
            yield Stored(buffer.storage, buffer.offset + begin - at, (end - begin,), (1,))
        at += buffer.shape[0]
    if at < last:
        raise ValueError(f"{last} elements of buffers that have {at}")

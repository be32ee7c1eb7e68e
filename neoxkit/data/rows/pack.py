"""Documents packed into rows of equal length, by gpt-neox's algorithm, number for number.

The documents of as many epochs as the run needs are shuffled together and laid end to end; row j
is tokens j*S to j*S + S of that stream (S + 1 tokens: neighbours share one, the label of the last
and the input of the first). The rows are then shuffled, with the same generator. So a run that
changes between gpt-neox and neoxkit sees the same rows in the same order.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from neoxkit.data.rows.order import Span
from neoxkit.data.tokens.shares import borders
from neoxkit.errors import DataError
from neoxkit.log import counted

_CHUNK = 1 << 20  # documents looked at together
_HIGH = 1 if sys.byteorder == "little" else 0  # which half of 64 bits has the upper ones


@dataclass(frozen=True)
class Packing:
    """Which tokens make each row.

    `order` i32 [epochs x documents]: documents end to end; `bounds` [M + 1, 2]: (place in `order`,
    offset in that document) of each row's first token; `shuffle` [M]: row k is stretch shuffle[k].
    gpt-neox calls them doc_idx, sample_idx and shuffle_idx.
    """

    order: npt.NDArray[np.int32]
    bounds: npt.NDArray[np.integer[Any]]
    shuffle: npt.NDArray[np.integer[Any]]
    epochs: int


def epochs_for(tokens: int, context: int, rows: int) -> int:
    """The fewest epochs E of `tokens` that hold `rows` rows: (E * tokens - 1) // context >= rows."""
    return max(1, -(-(rows * context + 1) // tokens))


def bounds_of(lengths: npt.NDArray[np.integer[Any]], context: int) -> npt.NDArray[np.integer[Any]]:
    """The first token of each row, and of the row after the last: [M + 1, 2] of (document, offset).

    `lengths` are the documents' tokens in the order they are laid. Example: lengths 5, 3, 7 and
    context 4 make M = (15 - 1) // 4 = 3 rows, at (0, 0), (0, 4), (2, 0), (2, 4).
    """
    count = max(0, (int(lengths.sum(dtype=np.int64)) - 1) // context)
    wide = 2 * (count + 1) >= 1 << 31 or len(lengths) >= 1 << 31
    bounds: npt.NDArray[np.integer[Any]] = np.zeros((count + 1, 2), np.int64 if wide else np.int32)
    row, before = 0, 0
    # A chunk at a time: ends of all documents would take gigabytes, and a search in them leaves the processor's cache.
    for first in range(0, len(lengths), _CHUNK):
        chunk = lengths[first : first + _CHUNK]
        ends = np.cumsum(chunk, dtype=np.int64) + before
        after = int(ends[-1])
        stop = min(count + 1, -(-after // context))  # of the rows that begin before the chunk ends
        starts = np.arange(row, stop, dtype=np.int64) * context
        place = np.searchsorted(ends, starts, side="right")
        bounds[row:stop, 0] = place + first
        bounds[row:stop, 1] = starts - (ends[place] - chunk[place])
        row, before = stop, after
    bounds[0] = 0  # gpt-neox begins at document 0, even where that is empty
    return bounds


def pack(
    sizes: npt.NDArray[np.integer[Any]],
    documents: npt.NDArray[np.integer[Any]],
    context: int,
    *,
    seed: int,
    rows: int | None = None,
    epochs: int | None = None,
) -> Packing:
    """The packing of `documents`, numbers into `sizes`, for at least `rows` rows, or for `epochs` epochs.

    Raises DataError when the documents hold fewer than context + 1 tokens, or the order of so many epochs does not
    fit in memory.
    """
    assert (rows is None) != (epochs is None), "give rows or epochs"
    entries = _entries(sizes, documents)
    tokens = sum(int((entries[k : k + _CHUNK] >> 32).sum()) for k in range(0, len(entries), _CHUNK))
    if tokens < context + 1:
        raise DataError(
            f"there are {tokens} tokens in {counted(len(documents), 'document')}, and a row of context {context} takes "
            f"{context + 1}",
            "give more text, lower data.sequence, or choose another data.packing",
        )
    if epochs is None:
        assert rows is not None
        epochs = epochs_for(tokens, context, rows)
    generator = np.random.RandomState(seed)
    try:
        laid = entries if epochs == 1 else np.tile(entries, epochs)
    except (MemoryError, ValueError):  # the latter beyond 2^63 bytes
        raise DataError(
            f"{epochs:,} epochs of {len(documents):,} documents are too many to hold their order in memory",
            "lower steps or batch.size, or give more text",
        ) from None
    del entries
    generator.shuffle(laid)
    order, lengths = laid.astype(np.int32), laid.view(np.int32)[_HIGH::2]
    bounds = bounds_of(lengths, context)
    del laid, lengths
    count = len(bounds) - 1
    dtype: type[np.integer[Any]] = np.uint32 if count < (1 << 32) - 2 else np.int64
    shuffle = np.arange(count, dtype=dtype)
    generator.shuffle(shuffle)
    return Packing(order, bounds, shuffle, epochs)


def _entries(sizes: npt.NDArray[np.integer[Any]], documents: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
    """size << 32 | document of each, i64 [documents].

    What a shuffle does depends on nothing but the length of what is shuffled. Shuffled together, the sizes need not
    be fetched from all over memory afterwards; and numpy moves 8 bytes faster than 4.
    """
    entries = np.empty(len(documents), np.int64)
    for first in range(0, len(documents), _CHUNK):
        chunk = documents[first : first + _CHUNK]
        here = entries[first : first + _CHUNK]
        here[:] = sizes[chunk]
        here <<= 32
        here |= chunk
    return entries


class Packed:
    """The pass of a packing: row k is S + 1 tokens of stretch shuffle[k]."""

    def __init__(self, packing: Packing, sizes: npt.NDArray[np.integer[Any]]) -> None:
        """`sizes` [N] are those of all sequences of the file."""
        self.packing, self._sizes = packing, sizes

    @property
    def count(self) -> int:
        """M. gpt-neox trains on M - 1 rows of it, never on the last."""
        return len(self.packing.shuffle)

    def spans(self, number: int) -> list[Span]:
        """What row `number` consists of: parts of documents that follow each other."""
        packing = self.packing
        stretch = int(packing.shuffle[number])
        (place, offset), (last, end) = packing.bounds[stretch : stretch + 2].tolist()
        if place == last:
            return [Span(int(packing.order[place]), offset, end + 1)]
        sequences = packing.order[place : last + 1]
        stops = self._sizes[sequences].tolist()
        stops[-1] = end + 1
        starts = [offset] + [0] * (last - place)
        found = zip(sequences.tolist(), starts, stops, strict=True)
        return [Span(*each) for each in found if each[1] < each[2]]


def split(weights: str | Sequence[float], documents: int) -> list[tuple[int, int]]:
    """The stretches (start, stop) of `documents` that go to training, validation and test.

    Weights "969, 30, 1" or "969/30/1" need not sum to anything; missing ones are 0. See `borders`.

    Raises DataError when the weights are not one to three numbers of at least 0, or all 0.
    """
    try:
        given = [
            float(part) for part in (weights.replace("/", ",").split(",") if isinstance(weights, str) else weights)
        ]
    except ValueError:
        given = []
    if not 1 <= len(given) <= 3 or min(given) < 0 or not 0 < sum(given) < float("inf"):
        raise DataError(f'data.split "{weights}" is not up to three weights', 'write it as "969,30,1"')
    found = borders([*given, 0.0, 0.0][:3], documents)
    return [(found[k], found[k + 1]) for k in range(3)]

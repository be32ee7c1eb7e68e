"""Documents packed into rows of equal length, by gpt-neox's algorithm, number for number.

The documents of as many epochs as the run needs are shuffled together and laid end to end; row j
is tokens j*S to j*S + S of that stream (S + 1 tokens: neighbours share one, the label of the last
and the input of the first). The rows are then shuffled, with the same generator. So a run that
changes between gpt-neox and neoxkit sees the same rows in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from neoxkit.data.rows.row import Row
from neoxkit.data.tokens.indexed import IndexedFile
from neoxkit.errors import DataError


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
    ends = np.cumsum(lengths, dtype=np.int64)
    count = max(0, (int(ends[-1]) - 1) // context)
    starts = np.arange(count + 1, dtype=np.int64) * context
    place = np.searchsorted(ends, starts, side="right")
    offset = starts - (ends[place] - lengths[place])
    wide = 2 * (count + 1) >= 1 << 31 or len(lengths) >= 1 << 31
    bounds: npt.NDArray[np.integer[Any]] = np.stack((place, offset), axis=1).astype(np.int64 if wide else np.int32)
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
    tokens = int(np.asarray(sizes)[documents].sum(dtype=np.int64)) if len(documents) else 0
    if tokens < context + 1:
        raise DataError(
            f"{len(documents)} documents hold {tokens} tokens, and a row of context {context} takes {context + 1}",
            "give more text or a shorter context",
        )
    if epochs is None:
        assert rows is not None
        epochs = epochs_for(tokens, context, rows)
    generator = np.random.RandomState(seed)
    try:
        order = np.tile(np.asarray(documents, np.int32), epochs)
    except (MemoryError, ValueError):  # the latter beyond 2^63 bytes
        raise DataError(
            f"{epochs:,} epochs of {len(documents):,} documents are too many to hold their order in memory",
            "lower steps or batch.size, or give more text",
        ) from None
    generator.shuffle(order)
    bounds = bounds_of(np.asarray(sizes)[order], context)
    count = len(bounds) - 1
    dtype: type[np.integer[Any]] = np.uint32 if count < (1 << 32) - 2 else np.int64
    shuffle = np.arange(count).astype(dtype)
    generator.shuffle(shuffle)
    return Packing(order, bounds, shuffle, epochs)


class Rows:
    """Rows of context + 1 tokens of one file, in the order in which training reads them.

    `documents` is the stretch of sequences to use (all, when None); `vocab` bounds the ids that may
    be read. len() is M - 1, as in gpt-neox, which never trains on the last row; `row` reads all M,
    so a run of exactly M rows is not cut short.

    Raises DataError when the file is not of integers, or has too little text for one row.
    """

    def __init__(
        self,
        file: IndexedFile,
        context: int,
        *,
        seed: int,
        rows: int | None = None,
        epochs: int | None = None,
        documents: tuple[int, int] | None = None,
        vocab: int | None = None,
    ) -> None:
        if file.dtype.kind not in "iu":
            raise DataError(f"{file.idx} holds {file.dtype.name}, not token ids", "give the prefix of a token file")
        first, last = documents or (0, len(file))
        try:
            self.packing = pack(
                file.sizes, np.arange(first, last, dtype=np.int32), context, seed=seed, rows=rows, epochs=epochs
            )
        except DataError as error:
            raise DataError(f"{file.bin}: {error.cause}", error.remedy) from error
        self.file, self.context, self.vocab = file, context, vocab

    def __len__(self) -> int:
        return max(0, self.count - 1)

    @property
    def count(self) -> int:
        """M: every row, the last too."""
        return len(self.packing.shuffle)

    def row(self, number: int) -> Row:
        """Row `number`, 0 <= number < count, of context + 1 tokens.

        Raises DataError when it holds an id that the vocabulary has not.
        """
        if not 0 <= number < self.count:
            raise IndexError(f"row {number} of {self.count}")
        stretch = int(self.packing.shuffle[number])
        (place, offset), (last, end) = self.packing.bounds[stretch : stretch + 2].tolist()
        parts = []
        for at in range(place, last + 1):
            document = int(self.packing.order[at])
            parts.append(self.file.read(document, offset if at == place else 0, end + 1 if at == last else None))
        ids = np.concatenate(parts).astype(np.int64)
        assert len(ids) == self.context + 1, (len(ids), self.context)
        if self.vocab is not None and (ids.max() >= self.vocab or ids.min() < 0):
            wrong = int(ids.max() if ids.max() >= self.vocab else ids.min())
            raise DataError(
                f"{self.file.bin}: row {number} has token id {wrong}, and the vocabulary is {self.vocab}",
                "train with the vocabulary of the tokenizer that made the file",
            )
        return Row(ids)


def split(weights: str | Sequence[float], documents: int) -> list[tuple[int, int]]:
    """The stretches (start, stop) of `documents` that go to training, validation and test.

    Weights "969, 30, 1" or "969/30/1" need not sum to anything; missing ones are 0. As in gpt-neox,
    each share is rounded, halves to even, and what that leaves over is taken off every border but the first.

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
    total = sum(given)
    borders = [0]
    for weight in [*given, 0.0, 0.0][:3]:
        borders.append(borders[-1] + round(weight / total * float(documents)))
    over = borders[-1] - documents
    borders = [0, *(border - over for border in borders[1:])]
    return [(borders[k], borders[k + 1]) for k in range(3)]

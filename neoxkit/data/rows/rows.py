"""Rows of a token file: what an order says is in them, read and masked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from neoxkit.data.rows.fill_in_middle import FillInMiddle
from neoxkit.data.rows.order import Order, Span, seed_of
from neoxkit.data.rows.row import Row
from neoxkit.data.tokens.columns import IGNORED
from neoxkit.data.tokens.indexed import IndexedFile
from neoxkit.errors import DataError

PADDING = -1
"""The number, among those of documents, of what a row has no document for."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the tokens of a row become a sample of `context` tokens to predict.

    `within_documents`: attention and positions stay within a document, and its first token is not foretold. `end` is
    the token that ends documents; with `mask_after_end` what follows it is not learned from (gpt-neox's
    eod_mask_loss). `vocab` bounds the ids.
    """

    context: int
    vocab: int | None = None
    within_documents: bool = False
    end: int | None = None
    mask_after_end: bool = False
    fill_in_middle: FillInMiddle | None = None
    seed: int = 0


class Rows:
    """The rows of a token file in the order in which training reads them, without an end.

    `labels` is a file aligned with it: the token itself, or IGNORED where it is not learned from.
    """

    def __init__(self, file: IndexedFile, order: Order, reading: Reading, labels: IndexedFile | None = None) -> None:
        """Raises DataError when the file is not of integers."""
        if file.dtype.kind not in "iu":
            raise DataError(f"{file.idx} holds {file.dtype.name}, not token ids", "give the prefix of a token file")
        self.file, self.order, self.reading, self.labels = file, order, reading, labels

    @property
    def count(self) -> int:
        """The rows of the first pass."""
        return self.order.first.count

    def row(self, number: int) -> Row:
        """Row `number`, 0 or more.

        Raises DataError when it holds an id that the vocabulary has not, or labels that are not its tokens'.
        """
        reading = self.reading
        spans, parts, labels = self._parts(number)
        filled = sum(map(len, parts))
        ids = np.zeros(max(filled, reading.context + 1), np.int64)
        np.concatenate(parts, out=ids[:filled])
        ids = ids[: reading.context + 1]
        self._check(ids, number)
        lengths = np.array([len(part) for part in parts])
        counts = self._counts(ids, filled, spans, lengths, labels, number)
        segments = _numbered(lengths, reading.context) if reading.within_documents else None
        return Row(ids, counts, segments)

    def documents(self, number: int) -> npt.NDArray[np.int32]:
        """A number for the document of each token of row `number`, and PADDING: [context + 1]."""
        _, parts, _ = self._parts(number)
        found = _numbered(np.array([len(part) for part in parts]), self.reading.context + 1)
        found[sum(map(len, parts)) :] = PADDING
        return found

    def _parts(self, number: int) -> tuple[list[Span], list[npt.NDArray[Any]], list[npt.NDArray[Any]] | None]:
        """What a row consists of, its tokens and its labels, document by document."""
        spans, reading = self.order.spans(number), self.reading
        parts = [self.file.read(*span) for span in spans]
        labels = None if self.labels is None else [self.labels.read(*span) for span in spans]
        if reading.fill_in_middle:
            generator = np.random.RandomState(seed_of(reading.seed, number))
            for at, part in enumerate(parts):
                own = None if labels is None else labels[at]
                parts[at], turned = reading.fill_in_middle.apply(part, own, reading.end, generator)
                if labels is not None and turned is not None:
                    labels[at] = turned
        return spans, parts, labels

    def _check(self, ids: npt.NDArray[np.int64], number: int) -> None:
        vocab = self.reading.vocab
        if vocab is not None and (ids.max() >= vocab or ids.min() < 0):
            wrong = int(ids.max() if ids.max() >= vocab else ids.min())
            raise DataError(
                f"{self.file.bin}: row {number} has token id {wrong}, and the vocabulary is {vocab}",
                "train with the vocabulary of the tokenizer that made the file",
            )

    def _counts(
        self,
        ids: npt.NDArray[np.int64],
        filled: int,
        spans: list[Span],
        lengths: npt.NDArray[np.int64],
        labels: list[npt.NDArray[Any]] | None,
        number: int,
    ) -> npt.NDArray[np.bool_] | None:
        """Which labels, ids[1:], count; None: all."""
        reading = self.reading
        # The first token of every span but the first: where a piece begins within a document it was foretold before.
        begins = np.cumsum(lengths)[:-1]
        cut = [reading.within_documents or span.start > 0 for span in spans[1:]]
        hidden = begins[np.array(cut, bool)] if any(cut) else begins[:0]
        ends = reading.mask_after_end and reading.end is not None
        if labels is None and filled > reading.context and not len(hidden) and not ends:
            return None
        counts = np.ones(reading.context + 1, np.bool_)
        if labels is not None:
            wanted = np.concatenate(labels)[: reading.context + 1]
            counts[: len(wanted)] = wanted != IGNORED
            self._check_labels(ids[: len(wanted)], wanted, number)
        counts[filled:] = False
        counts[hidden[hidden <= reading.context]] = False
        if ends:
            counts[1:] &= ids[:-1] != reading.end
        return counts[1:]

    def _check_labels(self, ids: npt.NDArray[np.int64], labels: npt.NDArray[Any], number: int) -> None:
        wrong = np.flatnonzero((labels != IGNORED) & (labels != ids))
        if len(wrong):
            at = int(wrong[0])
            raise DataError(
                f"{self.labels.bin if self.labels else ''}: token {at} of row {number} has label {int(labels[at])} "
                f"where {self.file.bin.name} has {int(ids[at])}",
                f"labels are the token itself or {IGNORED}; make the two files together",
            )


def _numbered(lengths: npt.NDArray[np.int64], tokens: int) -> npt.NDArray[np.int32]:
    """The span that each of the first `tokens` is of, by number; padding is the next. Example: [2, 1], 4: 0 0 1 2."""
    rest = max(0, tokens - int(lengths.sum()))
    return np.repeat(np.arange(len(lengths) + 1, dtype=np.int32), np.append(lengths, rest))[:tokens]

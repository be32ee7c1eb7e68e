"""Rows of several sources by weight: which source row n is of, and which of that source's rows it is.

Weights may change while a run goes on: each change begins a phase. A source goes on where it was, so the position
stays one number.

Shapes: K sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from neoxkit.data.rows.order import last_not_above
from neoxkit.errors import DataError
from neoxkit.native.blending import blend

Algorithm = Literal["exact", "gpt-neox"]

PERIOD = 1 << 20
"""Rows in which the exact algorithm gives each source its share to the row, of weights that are not whole numbers."""

LONGEST_PERIOD = 1 << 24
"""The greatest sum of whole weights that is taken as the period."""

BLOCK = 1 << 16
"""Rows of which the greedy algorithm remembers the choice at a time."""

MOST_SOURCES = 1 << 16

Choice = tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64]]
"""The source of each row, and which of its rows it is."""


@dataclass(frozen=True)
class Phase:
    """The weights [K] from a row of the run on, of any sum; 0 for a source that is not read."""

    start: int
    weights: tuple[float, ...]
    algorithm: Algorithm = "exact"


class Mixture(Protocol):
    """The rows of a phase."""

    def locate(self, row: int) -> tuple[int, int]:
        """The source of a row, and which of its rows it is, both counted from the phase's start."""

    def counts(self, rows: int) -> npt.NDArray[np.int64]:
        """How many of the first rows are of each source: [K]."""


class Blend:
    """The source of each row of a run. Raises DataError for weights that cannot be followed."""

    def __init__(self, phases: Sequence[Phase]) -> None:
        assert phases[0].start == 0, phases
        self._starts = [phase.start for phase in phases]
        self._mixtures = [_mixture(phase) for phase in phases]
        before = np.zeros(len(phases[0].weights), np.int64)
        self._before = [before]
        for mixture, phase, after in zip(self._mixtures, phases[:-1], phases[1:], strict=False):
            self._before.append(self._before[-1] + mixture.counts(after.start - phase.start))

    def locate(self, row: int) -> tuple[int, int]:
        """The source of row `row` of the run, and which of that source's rows it is."""
        phase = last_not_above(self._starts, row)
        source, index = self._mixtures[phase].locate(row - self._starts[phase])
        return source, index + int(self._before[phase][source])

    def counts(self, rows: int) -> npt.NDArray[np.int64]:
        """How many of the first rows of the run are of each source: [K]."""
        phase = last_not_above(self._starts, rows)
        return self._before[phase] + self._mixtures[phase].counts(rows - self._starts[phase])


def _mixture(phase: Phase) -> Mixture:
    weights = np.asarray(phase.weights, np.float64)
    if not len(weights) or not np.isfinite(weights).all() or weights.min() < 0 or weights.sum() <= 0:
        raise DataError(f"weights {list(phase.weights)} are not numbers of at least 0, one above", "mend data.train")
    if len(weights) > MOST_SOURCES:
        raise DataError(f"{len(weights)} sources are more than {MOST_SOURCES}", "merge some: neoxkit data merge")
    if phase.algorithm == "gpt-neox":
        return Greedy(weights)
    return Exact(weights)


def apportion(weights: npt.NDArray[np.float64], rows: int) -> npt.NDArray[np.int64]:
    """So many rows by weight, to the row: by largest remainder, the first of equals (Hamilton's method).

    Example: weights 3, 2, 2 and 8 rows: quotas 3.43, 2.29, 2.29, so 4, 2, 2.
    """
    quotas = weights / weights.sum() * rows
    found = np.floor(quotas).astype(np.int64)
    left = rows - int(found.sum())
    found[np.argsort(found - quotas, kind="stable")[:left]] += 1
    return found


class Exact:
    """Of each period every source has its share by largest remainder, at even distances.

    Whole weights are themselves the rows of a period: 3 and 1 are three rows of four, and one.
    Row k of a source's K in a period is due at (k + 1/2) / K of it, and rows come as they are due. So any row is found
    without those before it.
    """

    def __init__(self, weights: npt.NDArray[np.float64]) -> None:
        whole = bool((weights == np.floor(weights)).all()) and weights.sum() <= LONGEST_PERIOD
        self.period = int(weights.sum()) if whole else PERIOD
        self.shares = apportion(weights, self.period)
        lost = np.flatnonzero((weights > 0) & (self.shares == 0))
        if len(lost):
            raise DataError(
                f"the weight {weights[lost[0]]:g} of source {lost[0] + 1} is below one row in {self.period:,}",
                "raise it, or leave the source out",
            )
        self._source, self._index = _period(tuple(self.shares.tolist()))

    def locate(self, row: int) -> tuple[int, int]:
        """As Mixture says."""
        periods, rest = divmod(row, self.period)
        source = int(self._source[rest])
        return source, periods * int(self.shares[source]) + int(self._index[rest])

    def counts(self, rows: int) -> npt.NDArray[np.int64]:
        """As Mixture says."""
        periods, rest = divmod(rows, self.period)
        return periods * self.shares + np.bincount(self._source[:rest], minlength=len(self.shares))


@lru_cache(maxsize=2)
def _period(shares: tuple[int, ...]) -> Choice:
    source = np.repeat(np.arange(len(shares), dtype=np.uint16), shares)
    index = np.concatenate([np.arange(share) for share in shares])
    due = (index + 0.5) / np.repeat(shares, shares)
    order = np.argsort(due, kind="stable")
    return source[order], index[order]


class Greedy:
    """gpt-neox's and Megatron's: each row of the source that is furthest behind its weight.

    A row depends on all before it, so the choice is made block by block. Blocks are begun with what came before.
    """

    def __init__(self, weights: npt.NDArray[np.float64]) -> None:
        # A source of no weight would be the first of equals where none is behind.
        self._read = np.flatnonzero(weights > 0)
        self._weights = np.ascontiguousarray(weights[self._read] / weights.sum())
        self._all = len(weights)
        self._before = [np.zeros(len(self._read), np.int64)]  # of each block
        self._at = -1
        self._block: Choice = (np.empty(0, np.uint16), np.empty(0, np.int64))

    def locate(self, row: int) -> tuple[int, int]:
        """As Mixture says."""
        number, rest = divmod(row, BLOCK)
        source, index = self._chosen(number)
        return int(self._read[source[rest]]), int(index[rest])

    def counts(self, rows: int) -> npt.NDArray[np.int64]:
        """As Mixture says."""
        number, rest = divmod(rows, BLOCK)
        source, _ = self._chosen(number)
        found = np.zeros(self._all, np.int64)
        found[self._read] = self._before[number] + np.bincount(source[:rest], minlength=len(self._read))
        return found

    def _chosen(self, number: int) -> Choice:
        if number != self._at:
            for block in range(min(number, len(self._before) - 1), number + 1):
                counts = self._before[block].copy()
                self._block = blend(self._weights, block * BLOCK, BLOCK, counts)
                if block + 1 == len(self._before):
                    self._before.append(counts)
            self._at = number
        return self._block


def weights_by_documents(documents: Sequence[int], alpha: float) -> list[float]:
    """gpt-neox's weights of sources of so many documents (weight_by_num_documents, weighted_sampler_alpha).

    With p the share of documents: p^alpha normalised, times 1 - p, normalised again. So a large source gets less than
    its share: not the multinomial sampling of arXiv 1901.07291 that gpt-neox says it is.
    """
    if len(documents) == 1:
        return [1.0]
    shares = np.asarray(documents, np.float64) / sum(documents)
    scaled = shares**alpha
    found = scaled / scaled.sum() * (1 - shares)
    if not found.sum() > 0:
        raise DataError("data.weigh_by_documents: one source has all documents", "leave the empty ones out")
    return [float(each) for each in found / found.sum()]

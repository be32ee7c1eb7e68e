"""Rows of whole documents: one a row, as many as come until the row is full, or those that fill it best.

A document longer than a row is cut into pieces that share one token, the label of the last and the input of the
first, so each token is read once and foretold once. What a row has no document for is padding.

Shapes: N sequences, P pieces, R rows of a pass.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from neoxkit.data.rows.order import Span

Integers = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Pieces:
    """What is put into rows whole: tokens start : start + size of a sequence; [P] each."""

    sequence: Integers
    start: Integers
    size: npt.NDArray[np.int32]


def pieces_of(sizes: Integers, first: int, longest: int, shortest: int = 1) -> Pieces:
    """The pieces, of at most `longest` tokens, of sequences of so many tokens, which `first` is the number of.

    Those of fewer than `shortest` tokens are left out. Example: sizes 7, 0, 3 and longest 4 make tokens 0:4 and 3:7
    of sequence 0, and 0:3 of sequence 2.
    """
    used = np.flatnonzero(np.asarray(sizes) >= shortest)
    lengths = np.asarray(sizes)[used].astype(np.int32)
    narrow = np.int32 if first + len(sizes) < 1 << 31 else np.int64
    if not len(used) or lengths.max() <= longest:
        return Pieces((used + first).astype(narrow), np.zeros(len(used), np.int32), lengths)
    step = longest - 1
    parts = np.maximum(1, -(-(lengths.astype(np.int64) - 1) // step))
    owner = np.repeat(np.arange(len(used)), parts)
    nth = np.arange(len(owner)) - np.repeat(np.cumsum(parts) - parts, parts)
    start = (nth * step).astype(np.int32)
    size = np.minimum(longest, lengths[owner] - start).astype(np.int32)
    return Pieces((used[owner] + first).astype(narrow), start, size)


class Grouped:
    """A pass whose row k is pieces members[begins[k] : begins[k + 1]]; `begins` is [R + 1], `members` [P]."""

    def __init__(self, pieces: Pieces, members: Integers, begins: Integers) -> None:
        self._pieces, self.members, self.begins = pieces, members, begins

    @property
    def count(self) -> int:
        """R."""
        return len(self.begins) - 1

    def spans(self, number: int) -> list[Span]:
        """The pieces of a row."""
        found = self.members[int(self.begins[number]) : int(self.begins[number + 1])]
        pieces = self._pieces
        columns = (pieces.sequence[found].tolist(), pieces.start[found].tolist(), pieces.size[found].tolist())
        return [Span(sequence, start, start + size) for sequence, start, size in zip(*columns, strict=True)]


def alone(pieces: Pieces, capacity: int, extra: int, generator: np.random.RandomState) -> Grouped:
    """A row for each piece, in random order."""
    count = len(pieces.size)
    return Grouped(pieces, shuffled(count, generator), np.arange(count + 1))


def until_full(pieces: Pieces, capacity: int, extra: int, generator: np.random.RandomState) -> Grouped:
    """Pieces in random order; a row ends before the one that `capacity` tokens would not hold.

    Each takes `extra` tokens more than it has. gpt-neox's `pack_until_overflow` means this; what it does is other
    (docs/defects.md).
    """
    members = shuffled(len(pieces.size), generator)
    ends = np.cumsum(pieces.size[members] + extra, dtype=np.int64)
    # following[i]: the piece that begins the row after one that begins with piece i.
    following = np.searchsorted(ends, np.concatenate(([0], ends[:-1])) + capacity, side="right")
    begins, at, jump = [0], 0, following.tolist()
    while at < len(members):
        at = jump[at]
        begins.append(at)
    return Grouped(pieces, members, np.asarray(begins, np.int64))


Recipe = tuple[tuple[int, int], ...]
"""What a row holds: (length, how many of it), the longest first."""


def best_fit(pieces: Pieces, capacity: int, extra: int, generator: np.random.RandomState) -> Grouped:
    """Best-fit decreasing: the longest first, each into the fullest row that holds it (arXiv 2404.10830, section 2).

    Each takes `extra` tokens more than it has. Which of the pieces of a length go where is random, and so is the order
    of rows. Rows that are filled alike are counted, not made one by one, so it takes a moment for many millions.
    """
    members = shuffled(len(pieces.size), generator)
    members = members[np.argsort(pieces.size[members], kind="stable")]
    lengths, first = np.unique(pieces.size[members], return_index=True)
    amounts = np.diff(np.append(first, len(members)))
    taken = dict(zip(lengths.tolist(), first.tolist(), strict=True))
    laid, widths = [], []
    for count, recipe in recipes(dict(zip(lengths.tolist(), amounts.tolist(), strict=True)), capacity, extra):
        columns = []
        for length, each in recipe:
            begin = taken[length]
            taken[length] = begin + count * each
            columns.append(members[begin : begin + count * each].reshape(count, each))
        block = np.concatenate(columns, axis=1)
        laid.append(block.ravel())
        widths.append(np.full(count, block.shape[1], np.int64))
    return Grouped(pieces, *_in_random_order(np.concatenate(laid), np.concatenate(widths), generator))


def _in_random_order(
    members: Integers, widths: Integers, generator: np.random.RandomState
) -> tuple[Integers, Integers]:
    """Rows of `widths` members each, laid end to end, in another order: the members, and where each row begins."""
    order = shuffled(len(widths), generator)
    chosen = widths[order]
    begins = np.concatenate(([0], np.cumsum(chosen)))
    starts = np.cumsum(widths) - widths
    # Member m of the new row r is member m of the old row order[r].
    source = np.arange(begins[-1]) + np.repeat(starts[order] - begins[:-1], chosen)
    return members[source], begins


def recipes(amounts: Mapping[int, int], capacity: int, extra: int) -> list[tuple[int, Recipe]]:
    """How many rows of which kind best-fit decreasing makes of so many pieces of each length.

    Of rows with as much room the ones made first are filled first. Once a row takes a piece it is the fullest that
    holds another of that length, until it does not: so rows are filled by kinds.
    """
    # Kinds by the room that is left: {room: [(rows, recipe), ...]}.
    kinds: dict[int, list[tuple[int, Recipe]]] = {}
    rooms: list[int] = []  # sorted
    for length in sorted(amounts, reverse=True):
        left, needs = amounts[length], length + extra
        at = bisect_left(rooms, needs)
        while left and at < len(rooms):
            left = _fill(kinds, rooms, rooms[at], (length, needs), left)
            at = bisect_left(rooms, needs)
        each = capacity // needs
        whole, rest = divmod(left, each)
        for count, many in ((whole, each), (1, rest)):
            if count and many:
                _keep(kinds, rooms, capacity - many * needs, (count, ((length, many),)))
    return [kind for found in kinds.values() for kind in found]


def _fill(
    kinds: dict[int, list[tuple[int, Recipe]]], rooms: list[int], room: int, what: tuple[int, int], left: int
) -> int:
    """Put pieces of one length, each of which `needs` tokens, into the rows with so much room; how many are left."""
    length, needs = what
    each = room // needs
    found = kinds.pop(room)
    rooms.remove(room)
    while found and left:
        rows, recipe = found.pop(0)
        full = min(rows, left // each)
        if full:
            _keep(kinds, rooms, room - each * needs, (full, (*recipe, (length, each))))
            rows, left = rows - full, left - full * each
        if rows and 0 < left < each:
            _keep(kinds, rooms, room - left * needs, (1, (*recipe, (length, left))))
            rows, left = rows - 1, 0
        if rows:
            found.insert(0, (rows, recipe))
    for kind in found:
        _keep(kinds, rooms, room, kind)
    return left


def _keep(kinds: dict[int, list[tuple[int, Recipe]]], rooms: list[int], room: int, kind: tuple[int, Recipe]) -> None:
    if room not in kinds:
        kinds[room] = []
        insort(rooms, room)
    kinds[room].append(kind)


def shuffled(count: int, generator: np.random.RandomState) -> Integers:
    """The numbers below `count` in random order."""
    found: Integers = np.arange(count, dtype=np.int32 if count < 1 << 31 else np.int64)
    generator.shuffle(found)
    return found

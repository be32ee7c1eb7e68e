"""Sources as rows of JSON, whole: a line, an item of an array, a row of a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from neoxkit.data.text.documents import Reject, UnusableError, parsed, split_lines
from neoxkit.data.text.pieces import Fault, Lines, Piece, Whole


@dataclass(frozen=True, slots=True)
class Row:
    """A value, and where it stands."""

    where: str
    value: Any

    def reject(self, kind: str, detail: str = "") -> Reject:
        """This row, as one that cannot be used."""
        return Reject(self.where, kind, detail)


def rows(pieces: Iterable[Piece], longest: int) -> Iterator[Row | Reject]:
    """The rows of pieces in order, and what in them is none. A line has at most `longest` bytes."""
    for piece in pieces:
        if isinstance(piece, Fault):
            yield Reject(piece.where, piece.kind, piece.detail)
        elif isinstance(piece, Whole):
            yield Reject(piece.where, "not JSON", "its name ends in none of .jsonl, .json and .parquet")
        elif isinstance(piece, Lines):
            for number, line in enumerate(split_lines(piece.data), start=piece.first):
                if line.strip():  # a blank line, at the end as a rule, is no row
                    yield _row(f"{piece.where}:{number}", line, longest)
        else:
            for number, value in enumerate(piece.rows, start=piece.first):
                yield Row(f"{piece.where}, row {number}", value)


def _row(where: str, line: bytes, longest: int) -> Row | Reject:
    try:
        return Row(where, parsed(line, longest))
    except UnusableError as fault:
        return Reject(where, fault.kind, fault.detail)

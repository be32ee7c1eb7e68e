"""What is read of files before anything is parsed: pieces, which another process may turn into documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class Lines:
    """Whole lines of a file, the first of which has number `first`, counted from 1."""

    where: str
    first: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Whole:
    """A file that is one document."""

    where: str
    group: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a table, the first of which has number `first`, counted from 1."""

    where: str
    first: int
    rows: list[Any]


@dataclass(frozen=True, slots=True)
class Fault:
    """What could not even be read."""

    where: str
    kind: str
    detail: str


Piece: TypeAlias = Lines | Whole | Rows | Fault


@dataclass(frozen=True, slots=True)
class Position:
    """Where reading goes on: the number of a source, and what is behind in it.

    `offset` counts decompressed bytes where there are lines, and rows where there are those; `line` lines.
    """

    source: int = 0
    offset: int = 0
    line: int = 0


@dataclass(frozen=True, slots=True)
class Block:
    """Pieces that are turned into tokens together; `end` is where the next one begins.

    `bytes` is about the text that they hold; `read` the bytes of files that were read for them.
    """

    pieces: tuple[Piece, ...]
    end: Position
    bytes: int
    read: int

"""Sources into blocks: read in order, from any position that an earlier block ended at."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from neoxkit.data.text.columns import Row, array_rows, dataset_rows, parquet_rows
from neoxkit.data.text.documents import too_long
from neoxkit.data.text.pieces import Block, Fault, Lines, Piece, Position, Rows, Whole
from neoxkit.data.text.sources import Source
from neoxkit.data.text.streams import Stream

BLOCK = 1 << 20  # bytes of text in a block: some 130 MB at work in the tokenizer
_BOM = b"\xef\xbb\xbf"
_ONE_VALUE = re.compile(rb"\s*(\[|\{[ \t\r]*\n)")  # an array, or an object that goes on in the next line


@dataclass(frozen=True, slots=True)
class _Read:
    """A piece, where it ends, its bytes, and how far into its file it reaches."""

    piece: Piece
    end: Position
    bytes: int
    raw: int


@dataclass(frozen=True)
class Reader:
    """Reads sources in blocks. A line or a file of more than `longest` bytes is passed over and not held.

    `keys` are the columns that are read of a table; None: all.
    """

    sources: Sequence[Source]
    keys: tuple[str, ...] | None
    longest: int

    def blocks(self, start: Position = Position()) -> Iterator[Block]:  # noqa: B008 (it cannot change)
        """The blocks from a position on. They end where they happen to: what is made of them must not depend on it.

        Raises DataError when a file is damaged, and CheckpointError when a store fails.
        """
        pieces: list[Piece] = []
        weight = read = 0
        at = start
        for number in range(start.source, len(self.sources)):
            raw = 0
            for found in self._pieces(number, start if number == start.source else Position(number)):
                pieces.append(found.piece)
                weight += found.bytes
                read, raw, at = read + max(0, found.raw - raw), max(raw, found.raw), found.end
                if weight >= BLOCK:
                    yield Block(tuple(pieces), at, weight, read)
                    pieces, weight, read = [], 0, 0
            at = Position(number + 1)
            read += max(0, (self.sources[number].bytes or 0) - raw)
        if pieces or read:
            yield Block(tuple(pieces), at, weight, read)

    def _pieces(self, number: int, start: Position) -> Iterator[_Read]:
        source = self.sources[number]
        if source.form == "text":
            yield self._whole(number, source)
        elif source.form == "parquet":
            yield from self._rows(source, start, parquet_rows(source, self.keys, start.offset))
        elif source.form == "dataset":
            yield from self._rows(source, start, dataset_rows(source, self.keys, start.offset))
        else:
            with Stream(source) as stream:
                head = stream.peek(256) if source.form == "json" else b""
                if _ONE_VALUE.match(head.removeprefix(_BOM)):
                    members = array_rows(stream, self.keys, self.longest, start.offset)
                    yield from self._rows(source, start, members)
                    return
                if start.offset:
                    stream.skip(start.offset)
                yield from self._lines(stream, start)

    def _whole(self, number: int, source: Source) -> _Read:
        end, where = Position(number + 1), str(source.where)
        with Stream(source) as stream:
            held: list[bytes] = []
            size = 0
            while data := stream.read(max(1, min(BLOCK, self.longest + 1 - size))):
                held.append(data)
                size += len(data)
                if size > self.longest:
                    fault = too_long(self.longest)
                    return _Read(Fault(where, fault.kind, fault.detail), end, 0, source.bytes or 0)
            return _Read(Whole(where, source.group, b"".join(held)), end, size, stream.raw)

    def _rows(self, source: Source, start: Position, found: Iterator[tuple[Row, int]]) -> Iterator[_Read]:
        rows: list[Row] = []
        weight = raw = 0
        first = start.offset
        for row, raw in found:
            rows.append(row)
            weight += 8 + (
                sum(len(v) for v in row.values() if isinstance(v, str | bytes)) if isinstance(row, dict) else 0
            )
            if weight >= BLOCK:
                end = Position(start.source, first + len(rows))
                yield _Read(Rows(str(source.where), first + 1, rows), end, weight, raw)
                first, rows, weight = end.offset, [], 0
        if rows:
            end = Position(start.source, first + len(rows))
            yield _Read(Rows(str(source.where), first + 1, rows), end, weight, raw)

    def _lines(self, stream: Stream, start: Position) -> Iterator[_Read]:
        """Runs of whole lines. A line that is too long is passed over as it is read."""
        where = str(stream.source.where)
        at, held, size, passing = start, list[bytes](), 0, False
        fault = too_long(self.longest)

        def run(data: bytes) -> _Read:
            nonlocal at
            lines = data.count(b"\n") + (not data.endswith(b"\n"))
            first, begins = at.line + 1, at.offset == 0
            at = Position(at.source, at.offset + len(data), at.line + lines)
            return _Read(Lines(where, first, data.removeprefix(_BOM) if begins else data), at, len(data), stream.raw)

        def passed(count: int) -> _Read:
            nonlocal at
            at = Position(at.source, at.offset + count, at.line + 1)
            return _Read(Fault(f"{where}:{at.line}", fault.kind, fault.detail), at, 0, stream.raw)

        while chunk := stream.read(BLOCK):
            if passing:
                end = chunk.find(b"\n") + 1
                if not end:
                    size += len(chunk)
                    continue
                yield passed(size + end)
                chunk, size, passing = chunk[end:], 0, False
            cut = chunk.rfind(b"\n") + 1
            if cut:
                yield run(b"".join([*held, chunk[:cut]]))
                held, size = [], 0
            if rest := chunk[cut:]:
                held.append(rest)
                size += len(rest)
            if size > self.longest:
                held, passing = [], True
        if passing:
            yield passed(size)
        elif held:
            yield run(b"".join(held))

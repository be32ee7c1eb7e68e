"""Every byte of a checkpoint's files, read once: the checksums of files, of pieces and of tensors. No torch."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from neoxkit.checkpoint.checksum import (
    closed,
    combine,
    contribution,
    crc64nvme,
    row_dim,
    run_contribution,
    shift,
    zeros,
)
from neoxkit.checkpoint.format import ITEM_BYTES, Manifest, PieceEntry, TensorEntry
from neoxkit.checkpoint.pieces import RAW, Bytes, PieceFiles
from neoxkit.checkpoint.safetensors_file import tensor_bytes
from neoxkit.errors import CheckpointError
from neoxkit.log import Progress
from neoxkit.spec import Box, Run, blocks, extent, rows, volume, whole

SPAN_BYTES = 2 << 20
"""Bytes that are looked at in one go: what the processor's cache holds until the last look."""

_MOST_ROW = 16 << 20  # bytes of a row that is put together of pieces of it
_THREADS = 2  # to fetch bytes takes about as long as to look at them
_AHEAD = 4  # spans in memory


@dataclass(frozen=True, slots=True)
class Block:
    """Part of a tensor, as a span held it: `run` of `box`, or all of the box."""

    name: str
    tensor: TensorEntry
    box: Box
    run: Run | None
    data: Bytes

    def gain(self, data: Bytes, shape: Sequence[int], item: int) -> int:
        """What the block's elements, or others in their places, contribute to the CRC of a tensor of this shape."""
        if self.run is None:
            return contribution(data, shape, self.box, item)
        return run_contribution(data, shape, self.box, self.run, item)


class Watcher(Protocol):
    """Looks at every block of every tensor."""

    def look(self, block: Block) -> Any:
        """What a block shows. Called in several threads at once; the block's data is gone afterwards."""

    def take(self, name: str, shown: Any) -> None:
        """Learn what a block of a tensor showed. Called in one thread."""


@dataclass
class Sums:
    """The CRCs of files, by number, of entries, by number and key, and of tensors.

    `failed` says why a file could not be read, `amiss` which entry of a tensor is not what the manifest
    says. Neither those nor what depends on them has a CRC.
    """

    files: dict[int, int] = field(default_factory=dict)
    entries: dict[tuple[int, str], int] = field(default_factory=dict)
    tensors: dict[str, int] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    amiss: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Part:
    """Bytes of a file that follow one another: of an entry, or, without a key, of what stands before all entries."""

    file: int
    at: int
    size: int
    key: str = ""
    box: Box = ()


@dataclass(frozen=True, slots=True)
class _Span:
    """What is looked at in one go: `run` of `box` of a tensor, in one part or in several side by side; or mere bytes.

    What spans of pieces that are `scattered` in their tensor contribute to its CRC is found span by span.
    """

    parts: tuple[_Part, ...]
    name: str | None = None
    box: Box = ()
    run: Run | None = None
    scattered: bool = False


@dataclass(frozen=True, slots=True)
class _Found:
    """The CRC of each part of a span (or why it cannot be read), what it contributes to its tensor's, what it shows."""

    crcs: list[int | str]
    gain: int = 0
    shown: Any = None


class Scan:
    """One pass over a checkpoint's files, but for those `without`."""

    def __init__(
        self, files: PieceFiles, manifest: Manifest, watcher: Watcher | None = None, without: Collection[int] = ()
    ) -> None:
        self._files, self._manifest, self._watcher = files, manifest, watcher
        self._holding = {piece.file for tensor in manifest.tensors.values() for piece in tensor.pieces}
        self._readable = dict.fromkeys(without, False)
        self._sums = Sums()
        self._gains: dict[str, int] = {}
        self._rooms = threading.local()

    def run(self, progress: Progress) -> Sums:
        """Read everything. `progress` is told of the files' bytes."""
        pending: deque[tuple[_Span, Future[_Found]]] = deque()
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="scan") as threads:
            for span in self._spans():
                pending.append((span, threads.submit(self._work, span)))
                if len(pending) > _AHEAD:
                    self._add(*pending.popleft(), progress)
            while pending:
                self._add(*pending.popleft(), progress)
        self._finish()
        return self._sums

    def _open(self, number: int) -> bool:
        """Whether a file can be read. It is opened here, lest two threads open it at once."""
        if number not in self._readable:
            try:
                if number in self._holding:
                    self._files.header(number)
                self._files.read_into(PieceEntry(number, "", ()), 0, np.empty(0, np.uint8))
                self._readable[number] = True
            except CheckpointError as error:
                self._fail(number, error.cause)
        return self._readable[number]

    def _fail(self, number: int, cause: str) -> None:
        self._readable[number] = False
        self._sums.failed.setdefault(number, cause)

    def _spans(self) -> Iterator[_Span]:
        """Every byte of every file that can be read, each entry's in order."""
        known: set[tuple[int, str]] = set()
        for name, tensor in self._manifest.tensors.items():
            if all(self._open(piece.file) for piece in tensor.pieces) and self._agrees(name, tensor):
                self._gains[name] = 0
                known.update((piece.file, piece.key) for piece in tensor.pieces)
                yield from self._of_tensor(name, tensor)
        for number, file in enumerate(self._manifest.files):
            if not self._open(number):
                continue
            if number not in self._holding:
                yield from _plain(number, 0, file.bytes)
                continue
            header = self._files.header(number)
            yield from _plain(number, 0, header.start)
            for key, entry in header.entries.items():
                if (number, key) not in known:
                    yield from _plain(number, entry.first, entry.last, key)

    def _agrees(self, name: str, tensor: TensorEntry) -> bool:
        try:
            for piece in tensor.pieces:
                self._files.entry(name, tensor, piece)
        except CheckpointError as error:
            self._sums.amiss[name] = error.cause
            return False
        return True

    def _of_tensor(self, name: str, tensor: TensorEntry) -> Iterator[_Span]:
        joined: set[tuple[int, str]] = set()
        for group in _side_by_side(tensor):
            joined.update((piece.file, piece.key) for piece in group)
            yield from self._of_group(name, tensor, group)
        item = ITEM_BYTES[tensor.dtype]
        most = max(1, SPAN_BYTES // item)
        for piece in tensor.pieces:
            if (piece.file, piece.key) in joined:
                continue
            at, apart = self._files.entry(name, tensor, piece).first, scattered(tensor, piece)
            parts: Iterator[tuple[Box, Run | None, int]]
            if piece.run is None:
                parts = ((box, None, volume(box)) for box in blocks(piece.box, most))
            else:
                starts = range(piece.run[0], piece.run[1], most)
                cuts = ((first, min(first + most, piece.run[1])) for first in starts)
                parts = ((piece.box, (first, last), last - first) for first, last in cuts)
            for box, run, elements in parts:
                yield _Span((_Part(piece.file, at, elements * item, piece.key),), name, box, run, apart)
                at += elements * item

    def _of_group(self, name: str, tensor: TensorEntry, group: Sequence[PieceEntry]) -> Iterator[_Span]:
        """Whole rows of a tensor, a part of each in each piece."""
        item = ITEM_BYTES[tensor.dtype]
        ahead = [self._files.entry(name, tensor, piece).first for piece in group]
        for box in rows((group[0].box[0], *whole(tensor.spec.shape)[1:]), max(1, SPAN_BYTES // item)):
            parts = []
            for index, piece in enumerate(group):
                inside = (box[0], *piece.box[1:])
                parts.append(_Part(piece.file, ahead[index], volume(inside) * item, piece.key, inside))
                ahead[index] += parts[-1].size
            yield _Span(tuple(parts), name, box, None, True)

    def _work(self, span: _Span) -> _Found:
        """In a thread: look at a span."""
        room = self._room("whole", sum(part.size for part in span.parts))
        if len(span.parts) == 1:
            crcs = [self._fetch(span.parts[0], room)]
        else:
            crcs = [self._join(part, span, room) for part in span.parts]
        if span.name is None or any(isinstance(crc, str) for crc in crcs):
            return _Found(crcs)
        tensor = self._manifest.tensors[span.name]
        block = Block(span.name, tensor, span.box, span.run, room)
        gain = block.gain(room, tensor.spec.shape, ITEM_BYTES[tensor.dtype]) if span.scattered else 0
        return _Found(crcs, gain, self._watcher.look(block) if self._watcher is not None else None)

    def _join(self, part: _Part, span: _Span, room: Bytes) -> int | str:
        """Put a part into its place among the rows of a tensor; returns its own CRC."""
        assert span.name is not None
        raw = RAW[ITEM_BYTES[self._manifest.tensors[span.name].dtype]]
        data = self._room("part", part.size)
        crc = self._fetch(part, data)
        place = (slice(None), *(slice(*each) for each in part.box[1:]))
        room.view(raw).reshape(extent(span.box))[place] = data.view(raw).reshape(extent(part.box))
        return crc

    def _room(self, name: str, size: int) -> Bytes:
        """Memory of this thread, used again and again."""
        room: Bytes | None = getattr(self._rooms, name, None)
        if room is None or room.size < size:
            room = np.empty(max(size, SPAN_BYTES), np.uint8)
            setattr(self._rooms, name, room)
        return room[:size]

    def _fetch(self, part: _Part, data: Bytes) -> int | str:
        try:
            self._files.read_into(PieceEntry(part.file, part.key, ()), part.at, data)
        except CheckpointError as error:
            return error.cause
        return crc64nvme(data)

    def _add(self, span: _Span, job: Future[_Found], progress: Progress) -> None:
        """Add what a span gave."""
        found = job.result()
        for part, crc in zip(span.parts, found.crcs, strict=True):
            if isinstance(crc, str):
                self._fail(part.file, crc)
                continue
            at = part.file, part.key
            self._sums.entries[at] = combine(self._sums.entries.get(at, 0), crc, part.size)
            progress.advance(part.size)
        if span.name is not None:
            self._gains[span.name] ^= found.gain
            if self._watcher is not None and found.shown is not None:
                self._watcher.take(span.name, found.shown)

    def _finish(self) -> None:
        """Add up the files, and the tensors of which every part was read."""
        sums = self._sums
        for number in [number for number, readable in self._readable.items() if readable]:
            sums.files[number] = sums.entries.pop((number, ""), 0)
            entries = self._files.header(number).entries if number in self._holding else {}
            for key, entry in sorted(entries.items(), key=lambda each: (each[1].first, each[1].last)):
                crc = sums.entries.setdefault((number, key), 0)
                sums.files[number] = combine(sums.files[number], crc, entry.last - entry.first)
        for name, gain in self._gains.items():
            tensor = self._manifest.tensors[name]
            if not all(self._readable[piece.file] for piece in tensor.pieces):
                continue
            for piece in tensor.pieces:
                if not scattered(tensor, piece) and (size := piece_bytes(tensor, piece)):
                    gain ^= shift(sums.entries[piece.file, piece.key] ^ zeros(size), _after(tensor, piece))
            sums.tensors[name] = closed(gain, tensor.bytes)


def _plain(file: int, first: int, last: int, key: str = "") -> Iterator[_Span]:
    """Bytes that are nothing but bytes."""
    for at in range(first, last, SPAN_BYTES):
        yield _Span((_Part(file, at, min(SPAN_BYTES, last - at), key),))


def scattered(tensor: TensorEntry, piece: PieceEntry) -> bool:
    """Whether a piece's box lies in several stretches of its tensor."""
    return row_dim(tensor.spec.shape, piece.box) != 0


def piece_bytes(tensor: TensorEntry, piece: PieceEntry) -> int:
    """Bytes of a piece."""
    return tensor_bytes(tensor.dtype, piece.shape)


def _after(tensor: TensorEntry, piece: PieceEntry) -> int:
    """The bytes of a tensor behind a piece that lies in it in one stretch."""
    corner = 0
    for (start, _), length in zip(piece.box, tensor.spec.shape, strict=True):
        corner = corner * length + start
    last = volume(piece.box) if piece.run is None else piece.run[1]
    return tensor.bytes - (corner + last) * ITEM_BYTES[tensor.dtype]


def _side_by_side(tensor: TensorEntry) -> Iterator[list[PieceEntry]]:
    """The pieces that hold the same rows of a tensor, where together they hold all of them.

    To put rows together costs a third of finding what each piece of one contributes to the tensor's CRC.
    """
    shape = tensor.spec.shape
    groups: dict[tuple[int, int], list[PieceEntry]] = {}
    for piece in tensor.pieces:
        if piece.run is None and scattered(tensor, piece):
            groups.setdefault(piece.box[0], []).append(piece)
    for (first, last), group in groups.items():
        row = volume(whole(shape[1:]))
        full = sum(volume(piece.box) for piece in group) == (last - first) * row
        if full and row * ITEM_BYTES[tensor.dtype] <= _MOST_ROW:
            yield group

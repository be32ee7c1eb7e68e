"""Boxes of tensors read from the files that hold pieces of them, checked as they are read. No torch."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from neoxkit.checkpoint.checksum import closed, crc64nvme, linear, row_dim, shift
from neoxkit.checkpoint.folder import share
from neoxkit.checkpoint.format import BLOCK_BYTES, ITEM_BYTES, Manifest, PieceEntry, TensorEntry
from neoxkit.checkpoint.raw_io import InputFile, open_input
from neoxkit.checkpoint.safetensors_file import Entry, Header, read_header
from neoxkit.checkpoint.store import Place
from neoxkit.errors import CheckpointError
from neoxkit.spec import Box, blocks, extent, overlap, relative, run_boxes, volume

if TYPE_CHECKING:
    from neoxkit.checkpoint.store_input import StoreFile

_AHEAD = 4 << 20  # a thread fetches this much while the CRC of the part before is taken
_LONG_ROW = 256 << 10  # bytes of a row that is worth a system call of its own
_REMEDY = "fetch the checkpoint again, or choose another"
Bytes = npt.NDArray[np.uint8]
_Raw = npt.NDArray[np.generic]
RAW = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@dataclass(slots=True)
class PieceCheck:
    """The CRC of one piece, gathered from the parts of it that are read."""

    left: int
    crc: int = 0

    def add(self, data: Bytes, after: int) -> None:
        """Take bytes that have `after` bytes of the piece behind them."""
        self.crc ^= shift(linear(data), after)
        self.left -= data.size


Checks = dict[tuple[int, str], PieceCheck]


class PieceFiles:
    """The data files of a checkpoint, opened when first needed."""

    def __init__(self, root: Place, manifest: Manifest) -> None:
        self._root, self._manifest = root, manifest
        self._headers: dict[int, Header] = {}
        self._files: dict[int, InputFile | StoreFile] = {}
        self._threads: ThreadPoolExecutor | None = None
        self._shared: int | None = None

    def path(self, piece: PieceEntry) -> Place:
        """The file that a piece lies in."""
        return self._root / self._manifest.files[piece.file].path

    def close(self) -> None:
        """Close the files; they are opened again when needed."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        if self._shared is not None:
            os.close(self._shared)
            self._shared = None
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None

    def __del__(self) -> None:
        self.close()

    def header(self, number: int) -> Header:
        """The header of a file. Raises CheckpointError when it is damaged."""
        if number not in self._headers:
            self._headers[number] = read_header(self._root / self._manifest.files[number].path)
        return self._headers[number]

    def entry(self, name: str, tensor: TensorEntry, piece: PieceEntry) -> Entry:
        """Where a piece lies in its file. Raises CheckpointError when file and manifest disagree."""
        entry = self.header(piece.file).entries.get(piece.key)
        where = f"{self.path(piece)}: {name}: entry {piece.key!r}"
        if entry is None:
            raise CheckpointError(f"{where} is not in the file", _REMEDY)
        if (entry.dtype, entry.shape) != (tensor.dtype, piece.shape):
            found, said = f"{entry.dtype} {list(entry.shape)}", f"{tensor.dtype} {list(piece.shape)}"
            raise CheckpointError(f"{where} is {found}, but the manifest says {said}", _REMEDY)
        return entry

    def fill(self, name: str, tensor: TensorEntry, want: Box, data: Bytes, checks: Checks | None = None) -> int | None:
        """Read a box into `data`, its bytes. Returns their CRC when it came along for free, else None.

        `checks` gathers the CRCs of the pieces that the box touches.
        """
        item = ITEM_BYTES[tensor.dtype]
        for piece in tensor.pieces:
            entry = self.entry(name, tensor, piece)
            check = None
            if checks is not None:
                check = checks.setdefault((piece.file, piece.key), PieceCheck(entry.last - entry.first))
            at = entry.first
            for stored in run_boxes(piece.box, piece.run) if piece.run else [piece.box]:
                if (common := overlap(stored, want)) is not None:
                    source = _Source(self, piece, at, stored, item, entry.last, check)
                    if common == want and row_dim(extent(stored), relative(common, stored)) == 0:
                        return source.read_all(common, data)
                    source.copy(common, want, data)
                at += volume(stored) * item
        return None

    def read_into(self, piece: PieceEntry, at: int, data: Bytes) -> None:
        """Fill `data` from byte `at` of a piece's file."""
        try:
            whole = self._file(piece).read(data, at)
        except OSError as error:
            raise CheckpointError(f"{self.path(piece)}: {error.strerror}", "check the disk") from error
        if not whole:
            raise CheckpointError(f"{self.path(piece)}: cut short while it was read", _REMEDY)

    def crc_into(self, piece: PieceEntry, at: int, data: Bytes) -> int:
        """Fill `data` as `read_into`, and return its CRC, computed while the next part is being fetched."""
        if data.size <= _AHEAD:
            self.read_into(piece, at, data)
            return crc64nvme(data)
        if self._threads is None:
            self._threads = ThreadPoolExecutor(1, thread_name_prefix="read")
        parts = [data[first : first + _AHEAD] for first in range(0, data.size, _AHEAD)]
        places = range(at, at + data.size, _AHEAD)
        crc = 0
        jobs = [
            self._threads.submit(self.read_into, piece, place, part) for place, part in zip(places, parts, strict=True)
        ]
        for job, part in zip(jobs, parts, strict=True):
            job.result()
            crc = crc64nvme(part, crc)
        return crc

    def _file(self, piece: PieceEntry) -> InputFile | StoreFile:
        if piece.file not in self._files:
            if self._shared is None:
                self._shared = share(self._root)
            try:
                self._files[piece.file] = open_input(self.path(piece))
            except OSError as error:
                raise CheckpointError(f"{self.path(piece)}: {error.strerror}", _REMEDY) from error
        return self._files[piece.file]

    def blame(self, name: str, tensor: TensorEntry) -> str:
        """The files that hold damaged pieces of a tensor, in words, found by reading each piece again."""
        room = np.empty(BLOCK_BYTES, np.uint8)
        bad, unknown = [], []
        for piece in tensor.pieces:
            entry = self.entry(name, tensor, piece)
            crc = 0
            for at in range(entry.first, entry.last, BLOCK_BYTES):
                part = room[: min(BLOCK_BYTES, entry.last - at)]
                self.read_into(piece, at, part)
                crc = crc64nvme(part, crc)
            if piece.crc is None:
                unknown.append(str(self.path(piece)))
            elif piece.crc != crc:
                bad.append(str(self.path(piece)))
        return ", ".join(dict.fromkeys(bad or unknown or [str(self.path(piece)) for piece in tensor.pieces]))


@dataclass(frozen=True, slots=True)
class _Source:
    """A box that is stored row-major, from byte `at` of a piece's file."""

    files: PieceFiles
    piece: PieceEntry
    at: int
    stored: Box
    item: int
    end: int  # where the piece ends in its file
    check: PieceCheck | None

    def read_all(self, common: Box, data: Bytes) -> int:
        """Fill `data` with a box that is contiguous here; returns its CRC."""
        at = self._place(common)
        crc = self.files.crc_into(self.piece, at, data)
        if self.check is not None:
            self.check.crc ^= shift(closed(crc, data.size), self.end - at - data.size)
            self.check.left -= data.size
        return crc

    def copy(self, common: Box, want: Box, data: Bytes) -> None:
        """Read the box `common` into its place in `data`, which holds `want`."""
        target: _Raw = data.view(RAW[self.item]).reshape(extent(want))
        target = target[tuple(slice(*span) for span in relative(common, want))]
        inner = row_dim(extent(self.stored), relative(common, self.stored))
        if inner == row_dim(extent(want), relative(common, want)) == 0:
            first = _offset(want, common) * self.item
            self._fetch(self._place(common), data[first : first + volume(common) * self.item])
            return
        row = volume(common[inner:]) * self.item
        if inner == 0 or row >= _LONG_ROW:
            for place in product(*(range(start, stop) for start, stop in common[:inner])):
                part = (*((index, index + 1) for index in place), *common[inner:])
                for block in blocks(part, BLOCK_BYTES // self.item):
                    self._copy_contiguous(block, common, target)
            return
        self._gather(common, target)

    def _copy_contiguous(self, block: Box, common: Box, target: _Raw) -> None:
        room = np.empty(volume(block) * self.item, np.uint8)
        self._fetch(self._place(block), room)
        inside = tuple(slice(*span) for span in relative(block, common))
        target[inside] = room.view(RAW[self.item]).reshape(extent(block))

    def _gather(self, common: Box, target: _Raw) -> None:
        """Copy short rows out of the rows of the stored box that hold them, some of those at a time."""
        outer = (common[0], *self.stored[1:])
        for block in blocks(outer, BLOCK_BYTES // self.item):
            room = np.empty(volume(block) * self.item, np.uint8)
            self._fetch(self._place(block), room)
            part = overlap(block, common)
            if part is None:
                continue
            there = tuple(slice(*span) for span in relative(part, block))
            here = tuple(slice(*span) for span in relative(part, common))
            target[here] = room.view(RAW[self.item]).reshape(extent(block))[there]

    def _fetch(self, at: int, data: Bytes) -> None:
        self.files.read_into(self.piece, at, data)
        if self.check is not None:
            self.check.add(data, self.end - at - data.size)

    def _place(self, box: Box) -> int:
        """The byte of the file at which a box begins."""
        return self.at + _offset(self.stored, box) * self.item


def _offset(outer: Box, inner: Box) -> int:
    """Elements of `outer`, in row-major order, before the first of `inner`."""
    at = 0
    for (start, stop), (first, _) in zip(outer, inner, strict=True):
        at = at * (stop - start) + first - start
    return at

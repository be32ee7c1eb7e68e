"""A file of tensors being written in blocks, at places known beforehand. No torch."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from neoxkit.checkpoint.checksum import closed, combine, contribution, crc64nvme, row_dim
from neoxkit.checkpoint.coverage import covers
from neoxkit.checkpoint.raw_io import forget, write_at
from neoxkit.checkpoint.safetensors_file import build_header
from neoxkit.checkpoint.store import Place
from neoxkit.errors import CheckpointError
from neoxkit.spec import Box, extent

if TYPE_CHECKING:
    from neoxkit.checkpoint.checksum import Bytes

_FLUSH_EVERY = 128 << 20  # bytes; the disk then works while the next blocks are made


@dataclass(slots=True)
class Slot:
    """Room for one tensor in a file, and what of it is written so far."""

    shape: tuple[int, ...]
    item: int
    first: int
    size: int
    crc: int = 0  # the contributions so far
    boxes: list[Box] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether each element is written once."""
        return bool(self.boxes) and covers(self.shape, self.boxes)


class OutputFile:
    """A safetensors file of planned tensors. `write` fills in boxes of them; `finish` makes it durable."""

    def __init__(
        self,
        path: Place,
        tensors: Mapping[str, tuple[str, tuple[int, ...]]],
        items: Mapping[str, int],
        metadata: Mapping[str, str],
    ) -> None:
        self.path = path
        self._head, header = build_header(tensors, metadata)
        self.size = header.size
        self.slots = {
            key: Slot(entry.shape, items[entry.dtype], entry.first, entry.last - entry.first)
            for key, entry in header.entries.items()
        }
        self._since = 0
        self._flushed: Future[None] | None = None
        self._begin()

    def _begin(self) -> None:
        assert isinstance(self.path, Path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with disk(self.path, self.size):
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                _reserve(self._fd, self.size)
                write_at(self._fd, self._head, 0)
            except OSError:
                self.close()
                raise

    def write(self, key: str, box: Box, data: Bytes, threads: ThreadPoolExecutor, known: int | None = None) -> None:
        """Put a box's bytes in their place. `data` may be changed when this returns.

        `known` is `linear(data)`, where the caller has it already. The checksum is computed while
        another thread hands the bytes to the system.
        """
        slot = self.slots[key]
        pending = threads.submit(self._put, slot, box, data)
        slot.crc ^= contribution(data, slot.shape, box, slot.item, known)
        slot.boxes.append(box)
        pending.result()
        self._since += data.size
        if self._since >= _FLUSH_EVERY and (self._flushed is None or self._flushed.done()):
            self._flush(threads)
            self._since = 0

    def _flush(self, threads: ThreadPoolExecutor) -> None:
        if self._flushed is not None:
            self._flushed.result()
        self._flushed = threads.submit(self._sync)

    def _sync(self) -> None:
        with disk(self.path, self.size):
            os.fsync(self._fd)
            if self.size > _FLUSH_EVERY:
                forget(self._fd)

    def _put(self, slot: Slot, box: Box, data: Bytes) -> None:
        if not data.size:
            return
        with self._naming_errors():
            if (inner := row_dim(slot.shape, box)) == 0:
                self._write_at(data, slot.first + _offset(slot, [start for start, _ in box]))
                return
            rest = [start for start, _ in box[inner:]]
            for place, row in zip(_rows(box, inner), data.reshape(prod(extent(box)[:inner]), -1), strict=True):
                self._write_at(row, slot.first + _offset(slot, [*place, *rest]))

    def _naming_errors(self) -> AbstractContextManager[None]:
        return disk(self.path, self.size)

    def _write_at(self, data: Bytes, at: int) -> None:
        write_at(self._fd, data, at)

    def incomplete(self) -> list[str]:
        """The keys of tensors that are not wholly written, each element once."""
        return [key for key, slot in self.slots.items() if not slot.complete]

    def finish(self, threads: ThreadPoolExecutor) -> None:
        """Put everything on stable storage, and close."""
        self._flush(threads)
        assert self._flushed is not None
        self._flushed.result()
        os.close(self._fd)
        self._fd = -1

    def close(self) -> None:
        """Give up."""
        if self._flushed is not None:
            with suppress(CheckpointError):
                self._flushed.result()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def crcs(self) -> tuple[int, dict[str, int]]:
        """The CRC of the file, and of each tensor in it."""
        whole, each = crc64nvme(self._head), {}
        for key, slot in self.slots.items():
            each[key] = closed(slot.crc, slot.size)
            whole = combine(whole, each[key], slot.size)
        return whole, each


@contextmanager
def disk(path: Place, size: int) -> Iterator[None]:
    """Turn the system's errors into CheckpointErrors that name the file and the bytes it needs."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CheckpointError(
                f"{path}: no space left on the disk; the file needs {size} bytes", "free some, or save elsewhere"
            ) from error
        raise CheckpointError(f"{path}: {error.strerror}", "check the destination") from error


def _rows(box: Box, inner: int) -> Iterator[tuple[int, ...]]:
    yield from product(*(range(start, stop) for start, stop in box[:inner]))


def _offset(slot: Slot, corner: Sequence[int]) -> int:
    at = 0
    for length, start in zip(slot.shape, corner, strict=True):
        at = at * length + start
    return at * slot.item


def _reserve(fd: int, size: int) -> None:
    """Claim the whole file's room at once, so that a full disk is known before the work is done."""
    if size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    os.ftruncate(fd, size)

"""Objects of a store, read: ranges fetched at once, and ahead of what is asked for. No torch."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from neoxkit.checkpoint.store import Place, StorePath
from neoxkit.errors import CheckpointError
from neoxkit.log import note

if TYPE_CHECKING:
    from neoxkit.checkpoint.checksum import Bytes

RANGE = 8 << 20
"""Bytes of one request at most."""

AHEAD = 64 << 20
"""Bytes that are fetched ahead at most, of all objects together."""

_ONE_AHEAD = 48 << 20  # bytes that are fetched ahead at most of one object
_LEAST = 1 << 20  # less is not worth a request of its own
_AT_ONCE = 16  # requests


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="store")


class StoreFile:
    """An object that is read at any place: the twin of InputFile.

    What is read goes on where the last read ended, mostly: then the next ranges are on their way
    before they are asked for, more of them with each read, up to a share of AHEAD.
    """

    _opened: ClassVar[weakref.WeakSet[StoreFile]] = weakref.WeakSet()

    def __init__(self, path: StorePath) -> None:
        self._path, self._size = path, path.stat().st_size
        self._coming: deque[tuple[int, int, Future[bytes]]] = deque()  # first, last and bytes, without a gap
        self._lock = threading.Lock()
        self._next = 0  # where a read is expected
        self._strays = 0  # reads elsewhere, one after the other
        self._window = RANGE  # bytes to have on their way behind it
        self._opened.add(self)

    def read(self, data: Bytes, at: int) -> bool:
        """Fill `data` from byte `at` on; False when the object ends before that. Raises CheckpointError."""
        room = memoryview(data).cast("B")  # type: ignore[arg-type,unused-ignore]  # numpy 1 has no Buffer
        last = at + len(room)
        if last > self._size:
            return False
        if not room:
            return True
        with self._lock:
            taken = self._taken(at, last)
        for first, stop, job in taken:
            got = job.result()
            if len(got) != stop - first:
                return False
            start, end = max(first, at), min(stop, last)
            room[start - at : end - at] = memoryview(got)[start - first : end - first]
        return True

    def close(self) -> None:
        """Forget what was fetched ahead."""
        for _, _, job in self._coming:
            job.cancel()
        self._coming.clear()
        self._opened.discard(self)

    def _taken(self, at: int, last: int) -> list[tuple[int, int, Future[bytes]]]:
        """The ranges that hold these bytes, on their way or there.

        Several threads may share the work, and be a little out of order: what was read last is kept, and
        one read elsewhere changes nothing.
        """
        if self._next and not self._next - 2 * RANGE <= at <= self._next + 2 * RANGE:
            self._strays += 1
            if self._strays == 1:
                return self._ranges(at, last)
            self._coming.clear()
            self._window, self._next = RANGE, at
        self._strays = 0
        if self._coming and at < self._coming[0][0]:
            return self._ranges(at, last)
        self._next = max(self._next, last)
        while self._coming and self._coming[0][1] <= at - 2 * RANGE:
            self._coming.popleft()
        if self._coming and self._coming[-1][1] < at:
            self._coming.clear()
        self._fetch_ahead(at, last)
        return [each for each in self._coming if each[0] < last and at < each[1]]

    def _fetch_ahead(self, at: int, last: int) -> None:
        """Have ranges on their way that hold all up to `last`, and a window after it."""
        begin = self._coming[-1][1] if self._coming else at
        reading = sum(1 for each in list(self._opened) if each._coming) + (not self._coming)
        window = min(self._window, _ONE_AHEAD, AHEAD // max(1, reading))
        self._window = min(2 * self._window, _ONE_AHEAD)
        stop = min(last + (window if window >= _LEAST else 0), self._size)
        if stop - begin >= min(RANGE, window) or begin < last or begin < stop == self._size:  # worth a request
            self._coming.extend(self._ranges(begin, stop))

    def _ranges(self, first: int, last: int) -> list[tuple[int, int, Future[bytes]]]:
        """Requests for bytes, cut into ranges, on their way."""
        cuts = [*range(first, last, RANGE), last]
        return [(start, stop, _threads().submit(self._path.fetch, start, stop)) for start, stop in pairwise(cuts)]


@contextmanager
def on_disk(folder: Place) -> Iterator[Path]:
    """The folder itself, or a temporary copy of one that lies in a store, for programs that read none."""
    if not isinstance(folder, StorePath):
        yield folder
        return
    with TemporaryDirectory(prefix="neoxkit-") as temporary:
        files = [path for path in folder.rglob("*") if path.size() is not None]
        size = sum(path.stat().st_size for path in files)
        note(f"{folder}: {size / 1e6:.1f} MB are copied to {temporary} for now")
        for path in files:
            name = path.relative_to(folder)
            if ".." in name.parts:
                raise CheckpointError(f"{path}: its name leads out of the folder", "do not trust this model")
            target = Path(temporary, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy(path, target)
        yield Path(temporary)


def _copy(path: StorePath, target: Path) -> None:
    """Copy an object to a file."""
    source, size = StoreFile(path), path.stat().st_size
    room = np.empty(RANGE, np.uint8)
    with target.open("wb") as copy:
        for at in range(0, size, RANGE):
            part = room[: min(RANGE, size - at)]
            if not source.read(part, at):
                raise CheckpointError(f"{path}: cut short while it was read", "try again")
            copy.write(part)  # type: ignore[arg-type,unused-ignore]  # numpy 1 has no Buffer
    source.close()

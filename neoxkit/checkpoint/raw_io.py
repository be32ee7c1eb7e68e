"""Bytes read and written at a place of a file, and what the system keeps of them in memory. No torch.

Linux keeps every page of a file that is read or written. To find memory for pages that are used once
costs more than the copying: 1.6 GB were copied and flushed in 3 seconds where pages were let go of on the
way, so that they could be used again, and in 7 to 10 where they were not (in a virtual machine).
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from neoxkit.checkpoint.store import Place, StorePath

if TYPE_CHECKING:
    from neoxkit.checkpoint.checksum import Bytes
    from neoxkit.checkpoint.store_input import StoreFile

CHUNK = 256 << 10
"""Bytes of one call where pages are kept: for more, Linux looks for large runs of free memory (3 to 7 seconds)."""

_STRIDE = 64 << 20  # bytes read before those behind are let go of


def open_input(path: Place, links: bool = False) -> InputFile | StoreFile:
    """A file of a disk, or of a store, that is read at any place. Raises OSError when it cannot be opened."""
    if not isinstance(path, StorePath):
        return InputFile(path, links)
    from neoxkit.checkpoint.store_input import StoreFile

    return StoreFile(path)


class InputFile:
    """A file that is read at any place. What was not in memory before is not kept there for long.

    It is closed when nobody has it any longer, if not before: a source that is refused as it is opened closes none.

    Raises OSError when it cannot be opened (or, unless `links`, is a symbolic link).
    """

    def __init__(self, path: Path, links: bool = False) -> None:
        self._fd = os.open(path, os.O_RDONLY | (0 if links else os.O_NOFOLLOW))
        self._close = weakref.finalize(self, os.close, self._fd)
        self._kept = _in_memory(self._fd)
        self._since = 0

    def read(self, data: Bytes, at: int) -> bool:
        """Fill `data` from byte `at` on; False when the file ends before that. Raises OSError."""
        rest = memoryview(data)  # type: ignore[arg-type,unused-ignore]  # numpy 1 has no Buffer
        self._since += len(rest)
        while rest:
            done = os.preadv(self._fd, [rest], at)
            if not done:
                return False
            rest, at = rest[done:], at + done
        if self._since >= _STRIDE and not self._kept:
            forget(self._fd, at)  # what the system has read ahead, behind `at`, stays
            self._since = 0
        return True

    def close(self) -> None:
        """Close the file."""
        if self._close.alive and not self._kept:
            forget(self._fd)
        self._close()


def _in_memory(fd: int) -> bool:
    """Whether the middle of a file is in the system's memory; also when that cannot be told."""
    size = os.fstat(fd).st_size
    if not size or not hasattr(os, "RWF_NOWAIT"):
        return True
    try:
        return os.preadv(fd, [bytearray(1)], size // 2, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without it


def write_at(fd: int, data: bytes | Bytes, at: int) -> None:
    """Write all of `data` from byte `at` of a file on. Raises OSError."""
    rest = memoryview(data)  # type: ignore[arg-type,unused-ignore]
    while rest:
        done = os.pwrite(fd, rest[:CHUNK], at)
        rest, at = rest[done:], at + done


def forget(fd: int, stop: int = 0) -> None:
    """Let the system use the memory that holds a file's bytes before `stop` (0: all) and is on stable storage."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, stop, os.POSIX_FADV_DONTNEED)

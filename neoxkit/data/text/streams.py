"""The bytes of a source, decompressed as they are read: what is held never depends on what a file makes of itself."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from neoxkit.checkpoint.store import reaching
from neoxkit.data.text.sources import Remote, Source
from neoxkit.errors import DataError

_ALL_WINDOWS = 1 << 31  # what `zstd --long=31` writes; memory is taken as the data needs it


class Stream:
    """Reads a source in order.

    `raw` is how many bytes of the file itself have been read. Raises DataError, naming the file, where
    it is damaged or ends too soon, and CheckpointError where a store fails.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._file = open_raw(source)
        self._held = b""
        self._inner: Any = self._file
        if source.compression is not None:
            try:
                self._inner = _OPENERS[source.compression](self._file)
            except BaseException:
                self._file.close()
                raise

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *about: object) -> None:
        self._file.close()

    @property
    def raw(self) -> int:
        """Bytes of the file that have been read."""
        return self._file.tell()

    def peek(self, size: int) -> bytes:
        """The next bytes, which will be read again: fewer at the end."""
        while len(self._held) < size and (more := self._read(size - len(self._held))):
            self._held += more
        return self._held[:size]

    def read(self, size: int) -> bytes:
        """At most so many bytes; none at the end alone."""
        if self._held:
            found, self._held = self._held[:size], self._held[size:]
            return found
        return self._read(size)

    def skip(self, offset: int) -> None:
        """Pass over the first `offset` bytes: at once where nothing is compressed."""
        if self._inner is self._file and self._file.seekable():
            self._held = b""
            self._file.seek(offset)
            return
        while offset > 0:
            passed = len(self.read(min(offset, 1 << 20)))
            if not passed:
                raise DataError(f"{self.source.where} is shorter than it was", "give --force to begin anew")
            offset -= passed

    def _read(self, size: int) -> bytes:
        with self._told():
            found: bytes = self._inner.read(size)
            return found

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what the libraries raise for damaged data into DataErrors."""
        where, kind = self.source.where, self.source.compression
        try:
            yield
        except EOFError:
            raise DataError(f"{where} is truncated: its {kind} data ends too soon", _AGAIN) from None
        except (zlib.error, lzma.LZMAError) as error:
            raise DataError(f"{where} is damaged, or no {kind} data: {error}", _AGAIN) from None
        except OSError as error:
            if error.errno is not None:
                raise
            raise DataError(f"{where} is damaged, or no {kind} data: {error}", _AGAIN) from None


_OPENERS: dict[str, Callable[[BinaryIO], Any]] = {
    "gzip": lambda file: gzip.GzipFile(fileobj=file),
    "bzip2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
    "zstd": lambda file: _Zstandard(file),
}
_AGAIN = "copy or fetch it again, or leave it out"


def open_raw(source: Source) -> BinaryIO:
    """The file of a source as it is."""
    where = source.where
    if isinstance(where, Path):
        return where.open("rb")
    assert isinstance(where, Remote)
    with reaching(where.url):
        return io.BufferedReader(_Reached(where), 1 << 20)


class _Reached(io.RawIOBase):
    """A remote file whose failures name its URL."""

    def __init__(self, where: Remote) -> None:
        self._where = where
        self._file = where.fs.open(where.key, "rb")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with reaching(self._where.url):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        with reaching(self._where.url):
            found = self._file.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Zstandard:
    """Frames of Zstandard, one after another.

    The library takes a frame that breaks off for one that ends. So a frame of our own is read after the
    last byte of the file: if what it holds does not come out at the end, the frame before it is not whole.
    """

    def __init__(self, file: BinaryIO) -> None:
        import zstandard

        self._library = zstandard
        self._mark = os.urandom(16)
        self._followed = _Followed(file, zstandard.ZstdCompressor().compress(self._mark))
        opened = zstandard.ZstdDecompressor(max_window_size=_ALL_WINDOWS)
        self._reader: Any = opened.stream_reader(self._followed, read_across_frames=True)  # type: ignore[arg-type]
        self._tail = b""

    def read(self, size: int) -> bytes:
        while True:
            try:
                found = self._reader.read(size)
            except self._library.ZstdError as error:
                if self._followed.ended:
                    raise EOFError from None
                raise OSError(str(error)) from None
            if not found:
                if self._tail != self._mark:
                    raise EOFError
                return b""
            data = self._tail + found
            self._tail = data[-len(self._mark) :]
            if len(data) > len(self._mark):
                return data[: -len(self._mark)]


class _Followed:
    """A file, and then some bytes."""

    def __init__(self, file: BinaryIO, after: bytes) -> None:
        self._file, self._after = file, after
        self.ended = False

    def read(self, size: int = -1) -> bytes:
        found = self._file.read(size)
        if not found:
            self.ended = True
            found, self._after = self._after[:size], self._after[size:]
        return found

"""Sequences of one token file copied to the end of another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from neoxkit.data.tokens.indexed import IndexedFile

_TOGETHER = 1 << 16  # sequences
_BYTES = 1 << 24
_FEW = 1 << 10  # sequences that are gathered before they are written


def runs(count: int) -> Iterator[npt.NDArray[np.int64]]:
    """The numbers of all of so many sequences, as `copy` takes them."""
    for first in range(0, count, _TOGETHER):
        yield np.arange(first, min(first + _TOGETHER, count))


def chosen(numbers: npt.NDArray[np.integer[Any]]) -> Iterator[npt.NDArray[np.integer[Any]]]:
    """Some numbers of sequences, as `copy` takes them."""
    for first in range(0, len(numbers), _TOGETHER):
        yield numbers[first : first + _TOGETHER]


def copy(
    file: IndexedFile,
    wanted: Iterable[npt.NDArray[np.integer[Any]]],
    out: BinaryIO,
    dtype: np.dtype[Any],
    advance: Callable[[int], None],
) -> None:
    """Write sequences, given by their numbers, in another dtype if need be. `advance` is told of bytes read.

    Where they follow each other in the file, they are read as one.
    """
    with file.bin.open("rb") as source:
        for numbers in wanted:
            starts = file.pointers[numbers]
            ends = starts + file.sizes[numbers] * np.int64(file.dtype.itemsize)
            if (starts[1:] == ends[:-1]).all():
                _copy_bytes(source, int(starts[0]), int(ends[-1]), file.dtype, out, dtype, advance)
                continue
            for first in range(0, len(numbers), _FEW):
                few = numbers[first : first + _FEW].tolist()
                tokens = np.concatenate([file.read(number) for number in few])
                out.write(tokens.astype(dtype, copy=False).data)
                advance(tokens.nbytes)


def _copy_bytes(
    source: BinaryIO,
    start: int,
    stop: int,
    given: np.dtype[Any],
    out: BinaryIO,
    dtype: np.dtype[Any],
    advance: Callable[[int], None],
) -> None:
    source.seek(start)
    for at in range(start, stop, _BYTES):
        part = source.read(min(_BYTES, stop - at))
        out.write(part if given == dtype else np.frombuffer(part, given).astype(dtype).data)
        advance(len(part))

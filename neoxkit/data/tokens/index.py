"""The .idx of a token file, in both forms that are found: where each sequence and each document lies.

Megatron's, which gpt-neox calls `mmap`, little-endian:

    9 bytes   magic "MMIDIDX\\0\\0"
    u64       version, 1
    u8        dtype code of the .bin
    u64       N, sequences
    u64       D, entries of the document index
    i32[N]    tokens of each sequence
    i64[N]    byte offset of each sequence in the .bin
    i64[D]    the sequence at which each document starts; begins with 0, ends with N
    i8[N]     the mode of each sequence; Megatron's multimodal files alone

The older one of gpt-neox and fairseq, `cached` and `lazy`:

    8 bytes   magic "TNTIDX\\0\\0"
    u64       version 1, dtype code, bytes of an element, N, S (= N), D
    i64[N+1]  the first size of each sequence: 0, 1, 2 ...
    i64[N+1]  offset of each sequence in the .bin, in elements
    i64[S]    tokens of each sequence
    i64[D]    the document index
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from neoxkit.errors import DataError

MAGIC = b"MMIDIDX\0\0"
HEADER = struct.Struct("<9sQBQQ")
CACHED_MAGIC = b"TNTIDX\0\0"
CACHED_HEADER = struct.Struct("<8s6Q")
VERSION = 1

# gpt-neox's codes.
DTYPES: dict[int, np.dtype[Any]] = {
    code: np.dtype(name)
    for code, name in {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f4", 7: "<f8", 8: "<u2"}.items()
}
CODES = {dtype: code for code, dtype in DTYPES.items()}

CHUNK = 1 << 20  # sequences looked at together

Chunks = Callable[[], Iterable[npt.NDArray[Any]]]
"""Gives the parts of a long array, in order, as often as it is asked."""

AGAIN = "the pair does not belong together or is damaged; copy or tokenize it again"


@dataclass(frozen=True)
class Column:
    """An array within a file."""

    path: Path
    dtype: str
    offset: int
    count: int

    def mapped(self) -> npt.NDArray[Any]:
        """The array, memory-mapped and read-only."""
        if not self.count:  # mmap refuses to map nothing
            return np.empty(0, self.dtype)
        # A plain array: memmap's own class makes each look at an element slow.
        return np.asarray(np.memmap(self.path, mode="r", dtype=self.dtype, offset=self.offset, shape=(self.count,)))

    def chunks(self) -> Iterator[npt.NDArray[Any]]:
        """The array in parts of at most CHUNK, read: what is mapped would count as this process's memory."""
        width = np.dtype(self.dtype).itemsize
        for first in range(0, self.count, CHUNK):
            count = min(CHUNK, self.count - first)
            yield np.fromfile(self.path, self.dtype, count, offset=self.offset + first * width)


@dataclass(frozen=True)
class Index:
    """What an .idx says: `sizes` i32 [N] in tokens, `pointers` i64 [N] in bytes, `documents` i64 [D] as it stands.

    `dtypes` are what the code may mean: Megatron-core gives 6 and 7 the other way round, and nothing in the file
    says which library wrote it. `form` is "megatron" or "cached".
    """

    form: str
    dtypes: tuple[np.dtype[Any], ...]
    sizes: npt.NDArray[np.int32]
    pointers: npt.NDArray[np.int64]
    documents: npt.NDArray[np.int64]
    parts: Callable[[], Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]]]
    """Sizes and pointers in parts of at most CHUNK."""
    document_parts: Callable[[], Iterator[npt.NDArray[np.int64]]]


def read_index(path: Path) -> Index:
    """The index in a file. Raises DataError when it is none, of another version, truncated or too long."""
    actual = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(max(HEADER.size, CACHED_HEADER.size))
    if head.startswith(CACHED_MAGIC):
        return _read_cached(path, head, actual)
    if not head.startswith(MAGIC):
        raise DataError(f"{path} is not a token index: it does not begin with MMIDIDX", "give the prefix of a pair")
    _, version, code, sequences, entries = _header(HEADER, path, head)
    _known(path, version, code)
    modes_at = HEADER.size + 12 * sequences + 8 * entries
    if actual == modes_at + sequences:
        for modes in Column(path, "i1", modes_at, sequences).chunks():
            if modes.any():
                raise DataError(
                    f"{path} has sequences of several modes, such as images among text", "give text tokens alone"
                )
    else:
        _expect(path, actual, modes_at, sequences, entries)
    sizes = Column(path, "<i4", HEADER.size, sequences)
    pointers = Column(path, "<i8", HEADER.size + 4 * sequences, sequences)
    documents = Column(path, "<i8", HEADER.size + 12 * sequences, entries)
    return Index(
        "megatron",
        (DTYPES[code], DTYPES[13 - code]) if code in (6, 7) else (DTYPES[code],),
        sizes.mapped(),
        pointers.mapped(),
        documents.mapped(),
        lambda: zip(sizes.chunks(), pointers.chunks(), strict=True),
        documents.chunks,
    )


def _read_cached(path: Path, head: bytes, actual: int) -> Index:
    """Sizes and pointers come into memory, 12 bytes a sequence: they are stored in other units."""
    _, version, code, width, sequences, count, entries = _header(CACHED_HEADER, path, head)
    _known(path, version, code)
    dtype = DTYPES[code]
    if dtype.kind == "f":  # whose codes meant other widths over the years; here the width is told
        dtype = {4: DTYPES[6], 8: DTYPES[7]}.get(width, dtype)
    if dtype.itemsize != width:
        raise DataError(f"{path} says that {dtype.name} takes {width} bytes", AGAIN)
    at = CACHED_HEADER.size
    _expect(path, actual, at + 16 * (sequences + 1) + 8 * (count + entries), sequences, entries)
    firsts = Column(path, "<i8", at, sequences + 1)
    offsets = Column(path, "<i8", at + 8 * (sequences + 1), sequences)
    lengths = Column(path, "<i8", at + 16 * (sequences + 1), count)
    documents = Column(path, "<i8", at + 16 * (sequences + 1) + 8 * count, entries)
    if count != sequences or not _counts_up(firsts.chunks()):
        raise DataError(f"{path} has arrays of several dimensions", "give the prefix of a token file")
    sizes, pointers = np.empty(sequences, "<i4"), np.empty(sequences, "<i8")
    for first, size, offset in zip(range(0, sequences, CHUNK), lengths.chunks(), offsets.chunks(), strict=True):
        if size.min() < 0 or size.max() >= 1 << 31 or offset.max() >= 1 << 59:
            raise DataError(f"{path}: a sequence has a negative size, or 2^31 tokens or more", AGAIN)
        sizes[first : first + CHUNK], pointers[first : first + CHUNK] = size, offset * width

    def parts() -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]]:
        for first in range(0, sequences, CHUNK):
            yield sizes[first : first + CHUNK], pointers[first : first + CHUNK]

    return Index("cached", (dtype,), sizes, pointers, documents.mapped(), parts, documents.chunks)


def _header(form: struct.Struct, path: Path, head: bytes) -> tuple[Any, ...]:
    if len(head) < form.size:
        raise DataError(f"{path} is truncated: {len(head)} bytes, not even a header", "tokenize the text again")
    return form.unpack(head[: form.size])


def _known(path: Path, version: int, code: int) -> None:
    if version != VERSION:
        raise DataError(f"{path} has version {version} of the format", f"only version {VERSION} can be read")
    if code not in DTYPES:
        raise DataError(f"{path} has dtype code {code}", f"known are {', '.join(map(str, DTYPES))}")


def _expect(path: Path, actual: int, expected: int, sequences: int, entries: int) -> None:
    if actual != expected:
        how = "truncated" if actual < expected else "too long"
        raise DataError(
            f"{path} is {how}: {actual} bytes where its {sequences} sequences and {entries} document entries "
            f"take {expected}",
            "copy it again, or tokenize the text again",
        )


def _counts_up(parts: Iterable[npt.NDArray[Any]]) -> bool:
    """Whether the parts together are 0, 1, 2 ..."""
    first = 0
    for part in parts:
        if part[0] != first or part[-1] != first + len(part) - 1 or (np.diff(part) != 1).any():
            return False
        first += len(part)
    return True


@dataclass(frozen=True)
class Checked:
    """What is known of a pair after all of its index was looked at."""

    dtype: np.dtype[Any]
    tokens: int
    told: bool
    """Whether the document index covers the sequences: gpt-neox's merge leaves [0] there."""
    alone: bool
    """Whether each sequence is a document of its own."""


def check(index: Index, idx: Path, bin_path: Path) -> Checked:
    """Raise DataError unless every sequence lies inside the .bin, the last one ends with it, and documents ascend."""
    actual, tokens = bin_path.stat().st_size, 0
    ends = dict.fromkeys(index.dtypes, 0)
    for sizes, starts in index.parts():
        if sizes.min() < 0 or starts.min() < 0 or starts.max() > actual:
            raise DataError(
                f"{idx}: a sequence has a negative size or lies outside {bin_path.name} of {actual} bytes", AGAIN
            )
        tokens += int(sizes.sum(dtype=np.int64))
        for dtype, end in ends.items():
            ends[dtype] = max(end, int((starts + sizes * np.int64(dtype.itemsize)).max()))
    fitting = [dtype for dtype, end in ends.items() if end == actual]
    if not fitting:
        end = ends[index.dtypes[0]]
        how = "truncated" if actual < end else "too long"
        raise DataError(f"{bin_path} is {how}: {actual} bytes where {idx.name} accounts for {end}", AGAIN)
    told, alone = _check_documents(index, idx)
    return Checked(fitting[0], tokens, told, alone)


def _check_documents(index: Index, idx: Path) -> tuple[bool, bool]:
    """Whether the document index covers the sequences, and whether each of them is a document."""
    count, last = len(index.sizes), 0
    for part in index.document_parts():
        if part[0] < last or part[-1] > count or (np.diff(part) < 0).any():
            raise DataError(f"{idx}: its document index does not run from 0 to {count}", AGAIN)
        last = int(part[-1])
    documents = index.documents
    if len(documents) and documents[0] != 0:
        raise DataError(f"{idx}: its document index does not run from 0 to {count}", AGAIN)
    told = len(documents) > 0 and last == count
    return told, not told or (len(documents) == count + 1 and _counts_up(index.document_parts()))


def write_index(file: BinaryIO, dtype: np.dtype[Any], sizes: Chunks, documents: Chunks | None = None) -> None:
    """Write an .idx in Megatron's form, of sequences that lie end to end in the .bin.

    `documents` gives the document index; None: each sequence is a document. Memory for a part of each is enough.
    """
    count = sum(len(part) for part in sizes())
    entries = count + 1 if documents is None else sum(len(part) for part in documents())
    file.write(HEADER.pack(MAGIC, VERSION, CODES[dtype], count, entries))
    for part in sizes():
        file.write(part.astype("<i4", copy=False).tobytes())
    before = 0
    for part in sizes():
        ends = np.cumsum(part, dtype="<i8") * dtype.itemsize + before
        file.write((ends - part.astype("<i8") * dtype.itemsize).tobytes())
        before = int(ends[-1]) if len(ends) else before
    for part in _counting(count + 1) if documents is None else documents():
        file.write(part.astype("<i8", copy=False).tobytes())


def _counting(stop: int) -> Iterator[npt.NDArray[np.int64]]:
    for first in range(0, stop, CHUNK):
        yield np.arange(first, min(first + CHUNK, stop), dtype=np.int64)


def pieces(array: npt.NDArray[Any]) -> Chunks:
    """An array in parts of at most CHUNK."""
    return lambda: (array[first : first + CHUNK] for first in range(0, len(array), CHUNK))

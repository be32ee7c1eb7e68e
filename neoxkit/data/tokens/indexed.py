"""Token files in the Megatron format: PREFIX.bin holds the tokens, PREFIX.idx says where each sequence lies.

`.bin` is the concatenated sequences, little-endian, without a header. `.idx`, little-endian too:

    9 bytes   magic "MMIDIDX\\0\\0"
    u64       version, 1
    u8        dtype code of the .bin
    u64       N, sequences
    u64       D, entries of the document index
    i32[N]    tokens of each sequence
    i64[N]    byte offset of each sequence in the .bin
    i64[D]    the sequence at which each document starts; begins with 0, ends with N

One document is one sequence in what neoxkit and gpt-neox's `preprocess_data.py` write.
"""

from __future__ import annotations

import struct
from array import array
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from neoxkit.data.tokens.stage import Stage
from neoxkit.errors import DataError

MAGIC = b"MMIDIDX\0\0"
LEGACY_MAGIC = b"TNTIDX\0\0"
HEADER = struct.Struct("<9sQBQQ")
VERSION = 1

# gpt-neox's codes. Newer Megatron-core swaps 6 and 7, and no file says which library wrote it; tokens are
# never floats, so it matters for float side data alone.
DTYPES: dict[int, np.dtype[Any]] = {
    code: np.dtype(name)
    for code, name in {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f4", 7: "<f8", 8: "<u2"}.items()
}
CODES = {dtype: code for code, dtype in DTYPES.items()}

_CHUNK = 1 << 20  # sequences validated at a time


def dtype_for(vocab: int | None) -> np.dtype[Any]:
    """The dtype that gpt-neox gives tokens: u16 below 65500 entries, i32 otherwise or when not known."""
    return np.dtype("<u2") if vocab is not None and vocab < 65500 else np.dtype("<i4")


def pair(prefix: str | Path) -> tuple[Path, Path]:
    """The .bin and .idx of a prefix; either of the two files may be given in its place."""
    path = Path(prefix)
    if path.suffix in (".bin", ".idx"):
        path = path.with_suffix("")
    return path.with_name(path.name + ".bin"), path.with_name(path.name + ".idx")


class IndexedFile:
    """The sequences of a .bin/.idx pair, memory-mapped.

    `sizes` i32 [N] in tokens, `pointers` i64 [N] in bytes, `documents` i64 [D].

    Raises DataError when a file is missing, of another format, truncated, or the two do not belong together.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.bin, self.idx = pair(prefix)
        for file, what in ((self.idx, "index"), (self.bin, "token file")):
            if not file.is_file():
                raise DataError(
                    f"{file}: no such {what}", "write the pair with `neoxkit data tokenize`, or mend the prefix"
                )
        sequences, entries = self._read_header()
        at = HEADER.size
        self.sizes = self._column("<i4", at, sequences)
        self.pointers = self._column("<i8", at + 4 * sequences, sequences)
        self.documents = self._column("<i8", at + 12 * sequences, entries)
        self._check()
        empty = self.bin.stat().st_size == 0  # mmap refuses empty files
        self._tokens: npt.NDArray[np.uint8] = (
            np.empty(0, np.uint8) if empty else np.memmap(self.bin, mode="r", dtype=np.uint8)
        )

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def tokens(self) -> int:
        """Tokens in all."""
        return int(self.sizes.sum(dtype=np.int64))

    def __getitem__(self, sequence: int) -> npt.NDArray[Any]:
        return self.read(sequence)

    def read(self, sequence: int, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Tokens start:stop of a sequence, in the file's dtype: a read-only view of the map."""
        if not 0 <= sequence < len(self):
            raise IndexError(f"sequence {sequence} of {len(self)}")
        size = int(self.sizes[sequence])
        stop = size if stop is None else stop
        assert 0 <= start <= stop <= size, (start, stop, size)
        at = int(self.pointers[sequence])
        width = self.dtype.itemsize
        view: npt.NDArray[Any] = self._tokens[at + start * width : at + stop * width].view(self.dtype)
        return view

    def _read_header(self) -> tuple[int, int]:
        actual = self.idx.stat().st_size
        with self.idx.open("rb") as file:
            head = file.read(HEADER.size)
        if head.startswith(LEGACY_MAGIC):
            raise DataError(f"{self.idx} is of gpt-neox's legacy 'cached' format", "tokenize the text again")
        if not head.startswith(MAGIC):
            raise DataError(
                f"{self.idx} is not a token index: it does not begin with MMIDIDX", "give the prefix of a pair"
            )
        if len(head) < HEADER.size:
            raise DataError(f"{self.idx} is truncated: {actual} bytes, not even a header", "tokenize the text again")
        _, version, code, sequences, entries = HEADER.unpack(head)
        if version != VERSION:
            raise DataError(f"{self.idx} has version {version} of the format", f"only version {VERSION} can be read")
        if code not in DTYPES:
            raise DataError(f"{self.idx} has dtype code {code}", f"known are {', '.join(map(str, DTYPES))}")
        self.dtype = DTYPES[code]
        expected = HEADER.size + 12 * sequences + 8 * entries
        if actual != expected:
            how = "truncated" if actual < expected else "too long"
            raise DataError(
                f"{self.idx} is {how}: {actual} bytes where its {sequences} sequences and {entries} document entries "
                f"take {expected}",
                "copy it again, or tokenize the text again",
            )
        return sequences, entries

    def _column(self, dtype: str, offset: int, count: int) -> npt.NDArray[Any]:
        if not count:
            return np.empty(0, dtype)
        return np.memmap(self.idx, mode="r", dtype=dtype, offset=offset, shape=(count,))

    def _check(self) -> None:
        """Raise DataError unless every sequence lies inside the .bin and the last one ends with it."""
        actual, end = self.bin.stat().st_size, 0
        for first in range(0, len(self.sizes), _CHUNK):
            sizes = np.asarray(self.sizes[first : first + _CHUNK], np.int64)
            starts = np.asarray(self.pointers[first : first + _CHUNK])
            if sizes.min() < 0 or starts.min() < 0 or starts.max() > actual:
                raise DataError(
                    f"{self.idx}: a sequence has a negative size or lies outside {self.bin.name} of {actual} bytes",
                    _AGAIN,
                )
            end = max(end, int((starts + sizes * self.dtype.itemsize).max()))
        if end != actual:
            how = "truncated" if actual < end else "too long"
            raise DataError(f"{self.bin} is {how}: {actual} bytes where {self.idx.name} accounts for {end}", _AGAIN)
        # gpt-neox's merge of datasets leaves [0] here, and packing does not read it.
        starts = self.documents
        if len(starts) and (starts[0] != 0 or starts[-1] > len(self) or (np.diff(starts) < 0).any()):
            raise DataError(f"{self.idx}: its document index does not run from 0 to {len(self)}", _AGAIN)


_AGAIN = "the pair does not belong together or is damaged; copy or tokenize it again"


class IndexedWriter:
    """Writes a .bin/.idx pair, a document at a time; both appear at `commit`, whole.

    `vocab` decides the dtype and bounds the ids. With `stage` given, its owner commits.

    Raises DataError when the pair exists and `force` is not given, when the folder does not, when an
    id is not below `vocab`, or a document has 2^31 tokens or more.
    """

    def __init__(
        self, prefix: str | Path, vocab: int | None = None, *, force: bool = False, stage: Stage | None = None
    ) -> None:
        bin_path, idx_path = pair(prefix)
        self._own = None if stage else Stage((bin_path, idx_path), force)
        stage = stage or self._own
        assert stage is not None
        self._bin_aside, self._idx_aside = stage.path(bin_path), stage.path(idx_path)
        self._name = bin_path
        self._file: BinaryIO = self._bin_aside.open("xb")
        self._sizes = array("i")
        self.vocab = vocab
        self.dtype = dtype_for(vocab)
        self.tokens = 0

    def __enter__(self) -> IndexedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._file.close()
        if self._own:
            self._own.abort()

    def __len__(self) -> int:
        return len(self._sizes)

    def add(self, ids: npt.ArrayLike) -> None:
        """Append one document: a sequence of ids, which may be empty."""
        given = np.asarray(ids, dtype=np.int64)
        limit = self.vocab if self.vocab is not None else 1 << 31
        if given.size and (given.min() < 0 or given.max() >= limit):
            wrong = int(given.max() if given.max() >= limit else given.min())
            raise DataError(
                f"{self._name}: document {len(self)} has token id {wrong}, outside 0 to {limit - 1}", _TOKENIZER
            )
        if given.size >= 1 << 31:
            raise DataError(f"{self._name}: document {len(self)} has {given.size} tokens, 2^31 or more", "cut it")
        self._file.write(given.astype(self.dtype).tobytes())
        self._sizes.append(given.size)
        self.tokens += given.size

    def close(self) -> None:
        """Write the index, aside."""
        self._file.close()
        sizes = np.asarray(self._sizes, "<i4")
        ends = np.cumsum(sizes, dtype="<i8") * self.dtype.itemsize
        with self._idx_aside.open("xb") as file:
            file.write(HEADER.pack(MAGIC, VERSION, CODES[self.dtype], len(sizes), len(sizes) + 1))
            file.write(sizes.tobytes())
            file.write((ends - sizes.astype("<i8") * self.dtype.itemsize).tobytes())
            file.write(np.arange(len(sizes) + 1, dtype="<i8").tobytes())

    def commit(self) -> None:
        """Write the index and make both files visible."""
        assert self._own is not None, "the stage's owner commits"
        self.close()
        self._own.commit()


_TOKENIZER = "give the vocabulary of the tokenizer that made them"

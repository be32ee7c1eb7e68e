"""Token files: PREFIX.bin holds the tokens, PREFIX.idx says where each sequence and each document lies.

`.bin` is the sequences, little-endian, without a header; what `.idx` holds is told in `index`. In what neoxkit and
gpt-neox's `preprocess_data.py` write a document is one sequence; Megatron's builder may give it several.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from neoxkit.data.tokens.index import CODES, check, pieces, read_index, write_index
from neoxkit.data.tokens.stage import Stage
from neoxkit.errors import DataError


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
    """The sequences of a .bin/.idx pair, memory-mapped, of Megatron's form or gpt-neox's `cached` one.

    `sizes` i32 [N] in tokens, `pointers` i64 [N] in bytes, `tokens` in all, `form` "megatron" or "cached". Of floats,
    whose codes mean different widths to different writers, the length of the .bin tells the width.

    Raises DataError when a file is missing, of another format, truncated, or the two do not belong together.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.bin, self.idx = pair(prefix)
        for file, what in ((self.idx, "index"), (self.bin, "token file")):
            if file.is_file():
                continue
            if Path(prefix).is_file() and Path(prefix).suffix not in (".bin", ".idx"):
                raise DataError(
                    f"{prefix} is not a token file", f"make one of it: `neoxkit data tokenize {prefix} -o PREFIX`"
                )
            raise DataError(
                f"{file}: no such {what}", "write the pair with `neoxkit data tokenize`, or mend the prefix"
            )
        index = read_index(self.idx)
        self.form, self.sizes, self.pointers = index.form, index.sizes, index.pointers
        found = check(index, self.idx, self.bin)
        self.dtype, self.tokens, self.alone = found.dtype, found.tokens, found.alone
        self._documents = index.documents if found.told else None
        empty = self.bin.stat().st_size == 0  # mmap refuses empty files
        self._tokens: npt.NDArray[np.uint8] = (
            np.empty(0, np.uint8) if empty else np.asarray(np.memmap(self.bin, mode="r", dtype=np.uint8))
        )

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def documents(self) -> npt.NDArray[np.int64]:
        """The sequence at which each document starts, and after them N: i64 [documents + 1].

        Where the index says nothing of documents (gpt-neox's merge of datasets forgets them), each sequence is one.
        """
        return np.arange(len(self) + 1, dtype=np.int64) if self._documents is None else self._documents

    @property
    def document_count(self) -> int:
        """Documents in all."""
        return len(self) if self._documents is None else len(self._documents) - 1

    def document_sizes(self) -> npt.NDArray[np.integer[Any]]:
        """The tokens of each document: [documents]."""
        if self.alone:
            return self.sizes
        ends = np.zeros(len(self) + 1, np.int64)
        np.cumsum(self.sizes, out=ends[1:])
        return np.diff(ends[self.documents])

    def __getitem__(self, sequence: int) -> npt.NDArray[Any]:
        return self.read(sequence)

    def read(self, sequence: int, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Tokens start:stop of a sequence, in the file's dtype: a read-only view of the map."""
        if not 0 <= sequence < len(self.sizes):
            raise IndexError(f"sequence {sequence} of {len(self)}")
        size = int(self.sizes[sequence])
        stop = size if stop is None else stop
        assert 0 <= start <= stop <= size, (start, stop, size)
        at = int(self.pointers[sequence])
        width = self.dtype.itemsize
        view: npt.NDArray[Any] = self._tokens[at + start * width : at + stop * width].view(self.dtype)
        return view


class IndexedWriter:
    """Writes a .bin/.idx pair, a document at a time; both appear at `commit`, whole.

    `vocab` decides the dtype and bounds the ids. With `dtype` the file is a column beside tokens, and may hold any
    finite number that the dtype can. With `stage` given, its owner commits.

    Raises DataError when the pair exists and `force` is not given, when the folder does not, when a number is out
    of bounds, or a sequence has 2^31 tokens or more.
    """

    def __init__(
        self,
        prefix: str | Path,
        vocab: int | None = None,
        *,
        dtype: npt.DTypeLike | None = None,
        force: bool = False,
        stage: Stage | None = None,
    ) -> None:
        assert vocab is None or dtype is None, "give vocab or dtype"
        bin_path, idx_path = pair(prefix)
        self._own = None if stage else Stage((bin_path, idx_path), force)
        stage = stage or self._own
        assert stage is not None
        self._bin_aside, self._idx_aside = stage.path(bin_path), stage.path(idx_path)
        self._name = bin_path
        self._file: BinaryIO = self._bin_aside.open("xb")
        self._sizes = array("i")
        self._documents: array[int] | None = None
        self.vocab = vocab
        self.dtype = dtype_for(vocab) if dtype is None else np.dtype(dtype).newbyteorder("<")
        assert self.dtype in CODES, self.dtype
        self._column = dtype is not None
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
        """Documents so far."""
        return len(self._sizes) if self._documents is None else len(self._documents) - 1

    def add(self, ids: npt.ArrayLike, lengths: Sequence[int] | None = None) -> None:
        """Append one document: numbers, which may be none; `lengths` cuts it into several sequences."""
        given = self._bounded(ids)
        parts = [given.size] if lengths is None else lengths
        assert sum(parts) == given.size, (parts, given.size)
        if max(parts, default=0) >= 1 << 31:
            raise DataError(f"{self._name}: document {len(self)} has {given.size} tokens, 2^31 or more", "cut it")
        if len(parts) != 1 and self._documents is None:
            self._documents = array("q", range(len(self._sizes) + 1))
        self._file.write(given.astype(self.dtype).tobytes())
        self._sizes.extend(parts)
        if self._documents is not None:
            self._documents.append(len(self._sizes))
        self.tokens += given.size

    def _bounded(self, ids: npt.ArrayLike) -> npt.NDArray[Any]:
        """The numbers of a document. Raises DataError when one is out of bounds."""
        if self.dtype.kind == "f":
            with np.errstate(over="ignore"):  # to infinity, which is told below
                numbers = np.asarray(ids, self.dtype)
            if not np.isfinite(numbers).all():
                raise DataError(f"{self._name}: document {len(self)} has a number that is not finite", "mend it")
            return numbers
        given = np.asarray(ids, dtype=np.int64)
        if self._column:
            lowest, highest = np.iinfo(self.dtype).min, np.iinfo(self.dtype).max
        else:
            lowest, highest = 0, (self.vocab if self.vocab is not None else 1 << 31) - 1
        if given.size and (given.min() < lowest or given.max() > highest):
            wrong = int(given.max() if given.max() > highest else given.min())
            raise DataError(
                f"{self._name}: document {len(self)} has token id {wrong}, outside {lowest} to {highest}", _TOKENIZER
            )
        return given

    def close(self) -> None:
        """Write the index, aside."""
        self._file.close()
        documents = None if self._documents is None else pieces(np.frombuffer(self._documents, np.int64))
        with self._idx_aside.open("xb") as file:
            write_index(file, self.dtype, pieces(np.frombuffer(self._sizes, np.int32)), documents)

    def commit(self) -> None:
        """Write the index and make both files visible."""
        assert self._own is not None, "the stage's owner commits"
        self.close()
        self._own.commit()


_TOKENIZER = "give the vocabulary of the tokenizer that made them"

"""Blocks into tokens: what each worker does. No torch, and nothing of the machine that the text lies on."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from neoxkit.data.prepare.windows import WINDOW, windows
from neoxkit.data.text.documents import Document, Parser, Reject, held_out
from neoxkit.data.text.pieces import Piece
from neoxkit.errors import DataError

BATCH = 1 << 18  # characters given to the tokenizer at a time: what it makes of them stays in the processor's cache


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How text becomes tokens.

    `tokenizer` is the content of a tokenizer.json, `literal` as of a Tokenizer, `bos` and `eod` are put before and
    after each document where they are not None, `dtype` is that of the file, and `holdout` the share that goes to the
    other side.
    """

    tokenizer: bytes
    parser: Parser
    eod: int | None
    bos: int | None
    dtype: str
    holdout: float
    literal: bool = False

    def begin(self) -> Callable[[Sequence[Piece], int | None], Encoded]:
        """What turns pieces into tokens, of so many usable rows."""
        return Encoder(self).encode


@dataclass
class Output:
    """What a block adds to one pair of files: its tokens as bytes, and of each document its size and its hash."""

    tokens: bytes = b""
    sizes: array[int] = field(default_factory=lambda: array("i"))
    digests: list[bytes] = field(default_factory=list)
    bytes: int = 0
    files: list[str] = field(default_factory=list)


@dataclass
class Encoded:
    """What a block gave: an output for each side and key, keys within sides; `rows` of it were usable."""

    rows: int
    outputs: list[Output]
    rejects: list[Reject]


class Encoder:
    """Turns pieces into tokens. Only one thread may use it."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._tokenizer = tokenizers.Tokenizer.from_buffer(recipe.tokenizer)
        # Some files carry the truncation and padding of the run that saved them, which would cut text silently.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = recipe.literal
        self._dtype = np.dtype(recipe.dtype)
        self._bos, self._eod = (
            None if token is None else np.array([token], self._dtype) for token in (recipe.bos, recipe.eod)
        )

    def encode(self, pieces: Sequence[Piece], limit: int | None = None) -> Encoded:
        """The tokens of the first `limit` usable rows, or of all, and what was rejected before the last of them.

        Raises DataError for a document of 2^31 tokens or more.
        """
        rows: list[Document] = []
        rejects: list[Reject] = []
        for item in self._recipe.parser.documents(pieces):
            if len(rows) == limit:
                break
            if isinstance(item, Reject):
                rejects.append(item)
            else:
                rows.append(item)
        outputs = self._outputs(rows)
        return Encoded(len(rows), outputs, rejects)

    def _outputs(self, rows: Sequence[Document]) -> list[Output]:
        keys = len(self._recipe.parser.keys)
        sides = 2 if self._recipe.holdout else 1
        outputs = [Output() for _ in range(sides * keys)]
        parts: list[list[npt.NDArray[Any]]] = [[] for _ in outputs]
        encoded = self._ids([text for row in rows for text in row.texts])
        for row in rows:
            side = int(sides > 1 and held_out(row.identity, self._recipe.holdout))
            for key, content in enumerate(row.contents):
                output, into = outputs[side * keys + key], parts[side * keys + key]
                output.sizes.append(self._append(into, next(encoded), row))
                output.digests.append(hashlib.sha256(content).digest())
                output.bytes += len(content)
                if row.file is not None:
                    output.files.append(row.file)
        for output, into in zip(outputs, parts, strict=True):
            output.tokens = b"".join(part.tobytes() for part in into)
        return outputs

    def _append(self, into: list[npt.NDArray[Any]], ids: npt.NDArray[Any], row: Document) -> int:
        size = len(ids) + (self._bos is not None) + (self._eod is not None)
        if size >= 1 << 31:
            name = row.file or repr(row.texts[0][:40])
            raise DataError(f"document {name} has {size} tokens, 2^31 or more", "cut it, or lower --max-document")
        into.extend(part for part in (self._bos, ids, self._eod) if part is not None)
        return size

    def _ids(self, texts: list[str]) -> Iterator[npt.NDArray[Any]]:
        """The ids of each text: of short ones together, of long ones in windows."""
        short = [text for text in texts if len(text) <= 2 * WINDOW]
        found = (self._array(each.ids) for batch in _batches(short) for each in self._batch(batch))
        for text in texts:
            yield next(found) if len(text) <= 2 * WINDOW else self._array(self._long(text))

    def _array(self, ids: list[int]) -> npt.NDArray[Any]:
        """Ids as the file has them: at once, for as Python's numbers they take 20 times the room."""
        return np.fromiter(ids, self._dtype, len(ids))  # in half the time of array, being told how many there are

    def _batch(self, texts: list[str]) -> list[tokenizers.Encoding]:
        found: list[tokenizers.Encoding] = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return found

    def _long(self, text: str) -> list[int]:
        ids: list[int] = []
        for window in windows(text, self._one):
            ids.extend(self._one(window))
        return ids

    def _one(self, text: str) -> list[int]:
        found: list[int] = self._batch([text])[0].ids
        return found


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """Runs of texts of at least BATCH characters together, but for the last."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch

"""What to tokenize, and how; and the files that come of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neoxkit.data.prepare.encode import Output
from neoxkit.data.text.sources import Dataset, Selection, Source
from neoxkit.data.tokenizer.train import SMALLEST
from neoxkit.data.tokens.indexed import pair
from neoxkit.data.tokens.sidecar import path_of
from neoxkit.errors import DataError

LONGEST = 1 << 30
"""The most bytes of a line or document where nobody says: beyond it, it is taken for a fault of the file."""


def listed(sources: Sequence[Source]) -> str:
    """A hash of which files these are, how large and how old."""
    lines = "".join(f"{source.where}\0{source.bytes}\0{source.stamp}\n" for source in sources)
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to tokenize, and how.

    Either `tokenizer` is a tokenizer's file or folder, or `vocab` the entries of one to train, on
    about `train_bytes` of the training text. `holdout` is the share of groups to hold out. `eod`
    names the token that ends a document (None: the tokenizer's eos).
    """

    inputs: tuple[str | Path, ...] = ()
    datasets: tuple[Dataset, ...] = ()
    prefix: Path
    tokenizer: Path | None = None
    vocab: int | None = None
    train_bytes: int = 64 << 20
    holdout: float = 0.0
    selection: Selection
    eod: str | None = None
    append_eod: bool = True
    prepend_bos: bool = False
    ftfy: bool = False
    max_documents: int | None = None
    max_document: int = LONGEST
    workers: int | None = None
    strict: bool = False
    force: bool = False
    rejects: Path | None = None

    def validate(self) -> None:
        """Raise DataError for what contradicts itself or makes no sense."""
        if not self.inputs and not self.datasets:
            raise DataError("nothing to tokenize", "name files, folders or URLs, or a --dataset")
        if (self.tokenizer is None) == (self.vocab is None):
            raise DataError("one tokenizer is needed, to use or to train", "give --tokenizer or --train-tokenizer")
        if self.vocab is not None and self.vocab < SMALLEST:
            raise DataError(f"a vocabulary of {self.vocab} entries is too small", f"give at least {SMALLEST}")
        if not 0 <= self.holdout < 1:
            raise DataError(f"holdout {self.holdout} is not a share of at least 0 and below 1", "give 0.03, say")
        if self.train_bytes < 1:
            raise DataError(f"train-bytes is {self.train_bytes}", "give at least 1")
        if self.prefix.name in ("", "..") or self.prefix.suffix in (".bin", ".idx") or self.prefix.is_dir():
            raise DataError(f'"{self.prefix}" is no prefix of file names', "give one such as data/python")
        if self.eod is not None and not self.append_eod:
            raise DataError("--eod names a token that --no-append-eod leaves out", "give one of the two")
        keys = self.selection.keys
        if len(set(keys)) < len(keys):
            raise DataError("a --key is given twice", "give each once")
        if len(keys) > 1 and (wrong := [key for key in keys if not key or "/" in key or "\0" in key]):
            raise DataError(f'key "{wrong[0]}" cannot be part of a file name', "give it alone")
        for folder in {self.prefix.parent, *([self.rejects.parent] if self.rejects else [])}:
            if not folder.is_dir():
                raise DataError(f"{folder}: no such folder, to write {self.prefix.name} in", "make it first")

    @property
    def trained(self) -> Path:
        """The folder of the tokenizer that is trained."""
        return self.beside("-tokenizer")

    def beside(self, ending: str) -> Path:
        """The prefix, and more."""
        return self.prefix.with_name(self.prefix.name + ending)

    def parts(self) -> list[Part]:
        """The pairs of files: keys within sides."""
        keys = self.selection.keys
        sides = ("train", "heldout") if self.holdout else ("all",)
        return [
            Part(side, key, self.beside((f"-{key}" if len(keys) > 1 else "") + (f"-{side}" if side != "all" else "")))
            for side in sides
            for key in keys
        ]

    def identity(self, sources: Sequence[Source], tokenizer: str | None) -> dict[str, Any]:
        """All that the tokens depend on, by what a person calls it."""
        return {
            "format": 1,
            "inputs": listed(sources),
            "--tokenizer": tokenizer,
            "--train-tokenizer": self.vocab,
            "--train-bytes": None if self.vocab is None else self.train_bytes,
            "--holdout": self.holdout,
            "--key": list(self.selection.keys),
            "--eod": self.eod,
            "--append-eod": self.append_eod,
            "--prepend-bos": self.prepend_bos,
            "--ftfy": self.ftfy,
            "--max-documents": self.max_documents,
            "--max-document": self.max_document,
        }


@dataclass
class Part:
    """One pair of files while it is written, and its counts. `name` is its side: all, train or heldout."""

    name: str
    key: str
    prefix: Path
    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    chain: Chain = field(default_factory=lambda: Chain())

    @property
    def list(self) -> Path:
        """The list of the files that lie wholly on this side."""
        return self.prefix.with_name(self.prefix.name + ".files.txt")

    def targets(self) -> tuple[Path, ...]:
        """What is written, the file that readers open first last."""
        return (*pair(self.prefix), self.list, path_of(self.prefix))

    def count(self, output: Output, width: int) -> None:
        """Add what a block gave; a token takes `width` bytes."""
        self.documents += len(output.sizes)
        self.tokens += len(output.tokens) // width
        self.bytes += output.bytes
        self.chain.add(output.digests)

    def state(self) -> dict[str, Any]:
        """The counts, for a journal."""
        return {"documents": self.documents, "tokens": self.tokens, "bytes": self.bytes, "chain": self.chain.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the counts of a journal."""
        self.documents, self.tokens, self.bytes = state["documents"], state["tokens"], state["bytes"]
        self.chain = Chain(state["chain"])


class Chain:
    """A hash of the hashes of documents in order, which can be written down at any point and gone on with.

    sha256(last || 64 hashes) is made for each 64 documents, and at the end for those that are left.
    """

    _LINK = 64

    def __init__(self, state: str = "00" * 32) -> None:
        held = bytes.fromhex(state)
        self._last, self._held = held[:32], held[32:]

    def add(self, digests: Sequence[bytes]) -> None:
        """Go on with the sha256 of each document."""
        self._held += b"".join(digests)
        size = 32 * self._LINK
        whole = len(self._held) // size * size
        for start in range(0, whole, size):
            self._last = hashlib.sha256(self._last + self._held[start : start + size]).digest()
        self._held = self._held[whole:]

    def state(self) -> str:
        """All of it, to be gone on with."""
        return (self._last + self._held).hex()

    def hexdigest(self) -> str:
        """The hash of all documents so far."""
        return hashlib.sha256(self._last + self._held).hexdigest()

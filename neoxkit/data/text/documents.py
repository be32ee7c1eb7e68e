"""Pieces of files into documents, what in them is none, and which documents are held out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from neoxkit.data.text.pieces import Fault, Lines, Piece, Whole

TOO_LONG = "too long"
NO_KEY = "no key"
NOTHING_LEARNED = "nothing to learn"
"""Kinds of faults for which there is a remedy."""

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Document:
    """A row's texts, one for each key, and each as UTF-8; of a file of text, one, its `group` and its `file`."""

    texts: tuple[str, ...]
    contents: tuple[bytes, ...]
    group: str | None = None
    file: str | None = None

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of all the texts."""
        return sum(map(len, self.contents))

    @property
    def identity(self) -> str:
        """What decides on which side of a split it falls: its file's group, or the text itself.

        So a repeated line falls on one side.
        """
        return self.group if self.group is not None else hashlib.sha256(b"\0".join(self.contents)).hexdigest()


@dataclass(frozen=True, slots=True)
class Reject:
    """A document that cannot be used: where it is, of what kind the fault is, and what exactly."""

    where: str
    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}" + (f" ({self.detail})" if self.detail else "")


class UnusableError(Exception):
    """A fault of a document: its kind, and what exactly."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail


@dataclass(frozen=True, slots=True)
class Parser:
    """How pieces become documents: the keys of a row that have text, and the most bytes of a line or document.

    With `ftfy` each text is mended by that library.
    """

    keys: tuple[str, ...]
    longest: int
    ftfy: bool = False

    def documents(self, pieces: Iterable[Piece]) -> Iterator[Document | Reject]:
        """The documents of pieces in order, and what in them is none."""
        for piece in pieces:
            if isinstance(piece, Fault):
                yield Reject(piece.where, piece.kind, piece.detail)
            elif isinstance(piece, Lines):
                for number, line in enumerate(split_lines(piece.data), start=piece.first):
                    if line.strip() or len(line) > self.longest:  # a blank line, the last as a rule, is no document
                        yield self._made(f"{piece.where}:{number}", line)
            elif isinstance(piece, Whole):
                yield self._whole(piece)
            else:
                for number, row in enumerate(piece.rows, start=piece.first):
                    yield self._made(f"{piece.where}, row {number}", row)

    def _made(self, where: str, row: Any) -> Document | Reject:
        try:
            if isinstance(row, bytes):
                row = parsed(row, self.longest)
            texts = tuple(self._text(row, key) for key in self.keys)
            return Document(texts, tuple(map(_utf8, texts)))
        except UnusableError as fault:
            return Reject(where, fault.kind, fault.detail)

    def _whole(self, piece: Whole) -> Document | Reject:
        try:
            text = self._mended(decoded(piece.data.removeprefix(_BOM)))
            return Document((text,), (_utf8(text),), piece.group, piece.where)
        except UnusableError as fault:
            line = ""
            if isinstance(fault.__cause__, UnicodeDecodeError):
                line = f":{piece.data.count(10, 0, fault.__cause__.start) + 1}"
            return Reject(piece.where + line, fault.kind, fault.detail)

    def _text(self, row: Any, key: str) -> str:
        if not isinstance(row, dict) or key not in row:
            raise UnusableError(f'{NO_KEY} "{key}"')
        text = row[key]
        if isinstance(text, bytes):
            text = decoded(text)
        if not isinstance(text, str):
            raise UnusableError(f'"{key}" is not a string', type(text).__name__)
        if len(text) > self.longest:
            raise too_long(self.longest)
        return self._mended(text)

    def _mended(self, text: str) -> str:
        if self.ftfy:
            import ftfy

            text = ftfy.fix_text(text)
        if not text:
            raise UnusableError("empty")
        return text


def too_long(longest: int) -> UnusableError:
    """The fault of a line or document of more bytes than are allowed."""
    return UnusableError(TOO_LONG, f"more than {longest:,} bytes")


def parsed(line: bytes, longest: int) -> Any:
    """The value of a line of JSON. Raises UnusableError when it is none, or longer than that."""
    if len(line) > longest:
        raise too_long(longest)
    try:
        return json.loads(decoded(line))
    except RecursionError:
        raise UnusableError("too deep", "JSON within JSON") from None
    except ValueError as error:
        raise UnusableError("broken JSON", str(error)) from None


def split_lines(data: bytes) -> Iterator[bytes]:
    """Lines as files have them, which end with a line feed alone."""
    start = 0
    while start < len(data):
        end = data.find(b"\n", start) + 1 or len(data)
        yield data[start:end]
        start = end


def decoded(content: bytes) -> str:
    """Text of UTF-8. Raises UnusableError when it is none."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnusableError("not UTF-8", error.reason) from error


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise UnusableError("not Unicode", "half of a surrogate pair") from None


def held_out(identity: str, share: float) -> bool:
    """Whether a document of this identity is among the `share` (0 to 1) that is held out.

    By a hash of the identity alone, so adding documents moves none of the others.
    """
    digest = hashlib.sha256(identity.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2.0**64


def thinned(found: Iterable[Document], share: float) -> Iterator[Document]:
    """About `share` (0 to 1) of the bytes, in whole documents spread evenly; always the first one."""
    seen = taken = 0
    for document in found:
        if taken <= seen * share:
            taken += document.bytes
            yield document
        seen += document.bytes

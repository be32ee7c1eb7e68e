"""A sample for people: its text, document by document, and which of it is learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from neoxkit import log
from neoxkit.data.rows.rows import PADDING

LEARNED, READ = "+", " "


@dataclass(frozen=True)
class Stretch:
    """Tokens that stand together: all of one document, or of PADDING, all learned or none.

    `first` is the place of the first.
    """

    document: int
    learned: bool
    first: int
    ids: tuple[int, ...]


def stretches(ids: Sequence[int], learned: Sequence[bool], documents: Sequence[int]) -> list[Stretch]:
    """The stretches of tokens of which each is learned or not, and of a document of some number."""
    found, at = [], 0
    for (document, known), group in groupby(zip(documents, learned, strict=True)):
        size = len(list(group))
        found.append(Stretch(document, known, at, tuple(ids[at : at + size])))
        at += size
    return found


def lines(found: Sequence[Stretch], decode: Callable[[Sequence[int]], str] | None) -> Iterator[str]:
    """A line for each line of text, "+" before what is learned; a rule between documents. Ids where nobody decodes."""
    before = None
    for stretch in found:
        if before is not None and stretch.document != before:
            yield "  " + "-" * 40
        before = stretch.document
        if stretch.document == PADDING:
            yield f"  ({log.counted(len(stretch.ids), 'token')} of padding)"
            continue
        mark = LEARNED if stretch.learned else READ
        text = " ".join(map(str, stretch.ids)) if decode is None else decode(stretch.ids)
        for line in text.split("\n"):
            yield f"{mark} {_visible(line)}"


def _visible(line: str) -> str:
    """A line whose control characters are spelled, so that no terminal obeys them."""
    return "".join(letter if letter.isprintable() or letter == "\t" else ascii(letter)[1:-1] for letter in line)

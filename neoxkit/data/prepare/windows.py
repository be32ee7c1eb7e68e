"""Long texts into ids in windows: a tokenizer takes some 130 times the memory of what it is given at once.

A text is cut only where the tokens on both sides are shown not to depend on each other: around the cut,
the ids of the left part and those of the right part are the ids of both together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TypeAlias

WINDOW = 2 << 20  # characters
_CONTEXT = 8 << 10  # characters on each side of a cut by which it is tried
_TRIES = 8
_EDGE = re.compile(r"(?<=\S)(?=\s\S)|(?<=\S)(?=\n)")

Encode: TypeAlias = Callable[[str], list[int]]


def windows(text: str, encode: Encode, size: int | None = None) -> Iterator[str]:
    """Parts of a text, of about `size` characters, whose ids one after another are those of the text.

    Where no cut can be shown to be safe, as in a text without white space, a part is longer than that.
    """
    size = size or WINDOW
    begun, wanted = 0, size
    while wanted < len(text):
        cut = _cut(text, begun, wanted, encode)
        if cut is not None:
            end, after = cut
            yield text[begun:end]
            begun, wanted = after, after
        wanted += size
    yield text[begun:]


def _cut(text: str, begun: int, near: int, encode: Encode) -> tuple[int, int] | None:
    """Where the left part ends and the right one begins: a space may fall between, which a tokenizer puts back."""
    low, high = max(begun, near - _CONTEXT), min(len(text), near + _CONTEXT)
    seam = text[low:high]
    whole = None
    middle = (high - low) // 2
    edges = [found.start() for found in _EDGE.finditer(seam, middle, middle + _CONTEXT // 2)][:_TRIES]
    for edge in edges:
        whole = whole or encode(seam)
        left = encode(seam[:edge])
        if whole[: len(left)] != left:
            continue
        for after in (edge, edge + 1) if seam[edge] == " " else (edge,):
            if left + encode(seam[after:]) == whole:
                return low + edge, low + after
    return None

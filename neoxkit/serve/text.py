"""Token ids of one growing text, turned into pieces of text that are safe to show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence


def deltas(tokens: Iterable[int], decode: Callable[[Sequence[int]], str], before: Sequence[int] = ()) -> Iterator[str]:
    """The text that each token adds after the ids `before`; joined, it is the text of all tokens.

    A character may be spread over several tokens, and a token's text may depend on its neighbours
    (a leading space). So the whole is decoded each time, and an unfinished character at its end,
    which decodes to U+FFFD, is held back until it is whole or the text ends.
    """
    ids = list(before)
    shown = decode(ids) if ids else ""
    text = shown
    for token in tokens:
        ids.append(token)
        text = decode(ids)
        if len(text) > len(shown) and not text.endswith("�"):
            yield text[len(shown) :]
            shown = text
    if len(text) > len(shown):
        yield text[len(shown) :]

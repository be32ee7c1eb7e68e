"""`neoxkit data chat`: conversations into token files, with labels for what is learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neoxkit.data.prepare.columns import Output
from neoxkit.data.prepare.conversations import Passage, conversation_of
from neoxkit.data.prepare.examples import Recipe, Wanted
from neoxkit.data.prepare.supervised import Report, Request, sources, write
from neoxkit.data.text.documents import NOTHING_LEARNED, UnusableError


def chat(request: Request, recipe: Recipe) -> Report:
    """Write PREFIX and PREFIX-labels: a document for each row that `recipe` can use.

    Raises DataError and ConfigError as `write` and `Maker` do.
    """
    return write(request, sources(request), recipe, [Output(request.prefix, scored=False)])


def chat_row(value: Any, key: str | None = None, mask_before: str | None = None) -> Wanted:
    """What a row becomes: its conversation; or with `mask_before` its text, learned after the first place of that.

    Raises UnusableError when it is neither.
    """
    if mask_before is None:
        return Wanted([conversation_of(value, key)])
    key = "text" if key is None else key
    if not isinstance(value, Mapping) or key not in value:
        raise UnusableError(f'no key "{key}"')
    text = value[key]
    if not isinstance(text, str):
        raise UnusableError(f'"{key}" is not a string', type(text).__name__)
    asked, found, answer = text.partition(mask_before)
    if not found:
        raise UnusableError(f'no "{mask_before}" in it')
    if not answer:
        raise UnusableError(NOTHING_LEARNED, f'the text ends with "{mask_before}"')
    return Wanted([Passage(asked + found, answer)])

"""`neoxkit data pairs`: preferences into token files: pairs, single answers that are liked or not, and scores."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from neoxkit.data.prepare.columns import Output
from neoxkit.data.prepare.conversations import (
    Message,
    Passage,
    completed,
    conversation_of,
    messages_of,
)
from neoxkit.data.prepare.examples import Recipe, Wanted
from neoxkit.data.prepare.supervised import Report, Request, all_rows, sources, write
from neoxkit.data.text.documents import UnusableError
from neoxkit.data.text.rows import Row
from neoxkit.data.text.sources import Source
from neoxkit.data.tokens.columns import column_path
from neoxkit.errors import DataError

CHOSEN, REJECTED = "chosen", "rejected"
LABEL = "label"
SCORES = ("score", "reward")
"""Where a row has its score, unless it is said."""

_ANSWER = "\n\nAssistant:"
_MARGINS = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"))


def pairs(request: Request, recipe: Callable[[Callable[[Any], Wanted]], Recipe], score_key: str | None) -> Report:
    """Write what the first row is of: all others must be of the same kind.

    Pairs are PREFIX-chosen and PREFIX-rejected, each with labels, and scores if the pairs have them. Answers that
    are liked or not, and scores, are PREFIX with labels and scores. `recipe` is given what reads a row.

    Raises DataError when no row is of a kind that is known, and otherwise as `write` and `Maker` do.
    """
    files = sources(request)
    parse, names, scored = _kind(files, score_key)
    prefixes = [column_path(request.prefix, name) for name in names] or [request.prefix]
    return write(request, files, recipe(parse), [Output(prefix, scored) for prefix in prefixes])


def _kind(files: Sequence[Source], score_key: str | None) -> tuple[Callable[[Any], Wanted], tuple[str, ...], bool]:
    """What reads the rows, the names of the files, and whether they have scores, by the first row that tells."""
    for each in itertools.islice(all_rows(files), 1000):
        row = each.value if isinstance(each, Row) else None
        if not isinstance(row, Mapping):
            continue
        if CHOSEN in row and REJECTED in row:
            margins = next((keys for keys in _MARGINS if all(key in row for key in keys)), None)
            return partial(pair_row, margins=margins), (CHOSEN, REJECTED), margins is not None
        if score_key is None and isinstance(row.get(LABEL), bool):
            return labelled_row, (), True
        key = score_key or next((key for key in SCORES if key in row), None)
        if key is not None and key in row:
            return partial(scored_row, key=key), (), True
    score = f'"{score_key}"' if score_key else f"{LABEL} that is true or false, {' or '.join(SCORES)}"
    raise DataError(
        f"{files[0].where}: no row is a preference: none has {CHOSEN} and {REJECTED}, or {score}",
        "say with --score-key where scores are, or give rows of one of the shapes in docs/chat-data.md",
    )


def pair_row(row: Any, margins: tuple[str, str] | None = None) -> Wanted:
    """A pair: what was chosen and what was rejected, of which what both begin with is not learned.

    With `margins`, keys of the row, each has a score.

    Raises UnusableError when it is none.
    """
    sides = [_value(row, name) for name in (CHOSEN, REJECTED)]
    for name, side in zip((CHOSEN, REJECTED), sides, strict=True):
        if not side or (isinstance(side, str) and not side.strip()):
            raise UnusableError(f"empty {name}")
    if sides[0] == sides[1]:
        raise UnusableError("identical pair")
    if isinstance(sides[0], Mapping) and isinstance(sides[1], Mapping):
        sides = [[side] for side in sides]
    if isinstance(sides[0], str) != isinstance(sides[1], str):
        raise UnusableError("mixed pair", "one side is a text, the other is not")
    prompt = row.get("prompt")
    if isinstance(sides[0], str):
        prompt, sides = _texts(prompt, *sides)
    else:
        prompt, sides = _messages(prompt, *sides)
    texts = [completed(prompt, side, row) for side in sides]
    return Wanted(texts, [_number(row, key) for key in margins] if margins else ())


def labelled_row(row: Any) -> Wanted:
    """An answer that is liked, with score 1, or not, with -1. Raises UnusableError when the row is none."""
    label = _value(row, LABEL)
    if not isinstance(label, bool):
        raise UnusableError('"label" is neither true nor false', type(label).__name__)
    return Wanted([conversation_of(row)], [1.0 if label else -1.0])


def scored_row(row: Any, key: str) -> Wanted:
    """A conversation, or a text, with a score. Raises UnusableError when the row is none."""
    score = _number(row, key)
    text = row.get("text")
    if isinstance(text, str):
        if not text:
            raise UnusableError("empty")
        return Wanted([Passage("", text)], [score])
    return Wanted([conversation_of(row)], [score])


def _texts(prompt: Any, chosen: str, rejected: str) -> tuple[Any, list[Any]]:
    """The prompt of two texts: as given, or what both begin with.

    That ends with the "Assistant:" of Anthropic's files where they are of these, and otherwise before a space or
    a new line, so that no word is cut.
    """
    if prompt is not None:
        repeated = isinstance(prompt, str) and prompt and chosen.startswith(prompt) and rejected.startswith(prompt)
        return prompt, [side[len(prompt) :] if repeated else side for side in (chosen, rejected)]
    alike = _shared(chosen, rejected)
    at = chosen.rfind(_ANSWER, 0, alike) if chosen.startswith("\n\nHuman:") else -1
    if at >= 0:
        cut = at + len(_ANSWER)
    else:
        breaks = [found.start() for found in re.finditer(r"\s+", chosen[:alike])]
        cut = breaks[-1] if breaks else 0
    sides = [chosen[cut:], rejected[cut:]]
    for name, side in zip((CHOSEN, REJECTED), sides, strict=True):
        if not side.strip():
            raise UnusableError(f"empty {name}", "all of it is what the other begins with")
    return chosen[:cut], sides


def _messages(prompt: Any, chosen: Any, rejected: Any) -> tuple[Any, list[Any]]:
    """The prompt of two lists of messages: what both begin with, where they have it themselves; else as given."""
    sides = [messages_of(chosen, f'"{CHOSEN}"'), messages_of(rejected, f'"{REJECTED}"')]
    alike = _shared(*sides)
    asked: list[Message] = []
    if isinstance(prompt, list):
        asked = messages_of(prompt, '"prompt"')
        if _shared(asked, sides[0]) == _shared(asked, sides[1]) == len(asked):
            sides = [side[len(asked) :] for side in sides]
    elif alike or prompt is None:
        asked, sides = sides[0][:alike], [side[alike:] for side in sides]
    elif isinstance(prompt, str):
        asked = [{"role": "user", "content": prompt}]
    else:
        raise UnusableError("no prompt", f'"prompt" is of type {type(prompt).__name__}')
    for name, side in zip((CHOSEN, REJECTED), sides, strict=True):
        if not side:
            raise UnusableError(f"empty {name}", "all of it is what the other begins with")
    return asked or None, [*sides]


def _shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items two sequences begin with alike."""
    return sum(1 for _ in itertools.takewhile(lambda both: both[0] == both[1], zip(one, other, strict=False)))


def _value(row: Any, key: str) -> Any:
    if not isinstance(row, Mapping) or row.get(key) is None:
        raise UnusableError(f'no key "{key}"')
    return row[key]


def _number(row: Any, key: str) -> float:
    value = _value(row, key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UnusableError(f'"{key}" is not a number', type(value).__name__)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not abs(number) < 3.4e38:  # of float32
        raise UnusableError(f'"{key}" is not a number', str(number))
    return number

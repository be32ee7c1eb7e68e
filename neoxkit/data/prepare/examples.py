"""Conversations and passages into ids, and which of them are learned."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from neoxkit.data.prepare.conversations import Conversation, Passage
from neoxkit.data.prepare.spans import Learning, Writing
from neoxkit.data.text.documents import NOTHING_LEARNED, TOO_LONG, Reject, UnusableError
from neoxkit.data.text.rows import Row
from neoxkit.data.tokenizer import Spans
from neoxkit.data.tokenizer.kinds import open_tokenizer
from neoxkit.data.tokenizer.template import ChatTemplate
from neoxkit.errors import DataError

Overlong = Literal["skip", "cut"]


@dataclass(frozen=True, slots=True)
class Example:
    """One document: `ids` int64 [T], `learned` bool [T], and the UTF-8 bytes of its text.

    `cut` says that there were more tokens.
    """

    ids: npt.NDArray[np.int64]
    learned: npt.NDArray[np.bool_]
    bytes: int
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a row becomes: a text for each file of tokens, and for each the score, if there are scores."""

    texts: Sequence[Conversation | Passage]
    scores: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Made:
    """The examples of a row, one for each file of tokens, and their scores."""

    examples: Sequence[Example]
    scores: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How rows become examples; small, so that it can be sent to other processes.

    `parse` makes of a row's value what is wanted, or raises UnusableError. What has more than `max_tokens` tokens
    is skipped or cut.
    """

    parse: Callable[[Any], Wanted]
    tokenizer: Path
    template: Path | None = None
    learning: Learning = field(default_factory=Learning)
    eod: str | None = None
    max_tokens: int | None = None
    overlong: Overlong = "skip"


class Maker:
    """Makes examples by a recipe.

    Raises DataError and ConfigError when the tokenizer or the template is none.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.tokenizer = open_tokenizer(recipe.tokenizer)
        folder = self.tokenizer.path.parent
        given = recipe.template
        self._template = ChatTemplate.of(folder) if given is None else ChatTemplate.read(given, folder)
        self._parsing = self.tokenizer.parsing()  # a template writes special tokens as text
        self._writing = Writing(self._template, self.tokenizer.special) if self._template else None
        self.eod = self.tokenizer.eod(recipe.eod)

    @property
    def template_fingerprint(self) -> str:
        """ "sha256:..." of the template's text; "" without one."""
        return "" if self._template is None else "sha256:" + hashlib.sha256(self._template.text.encode()).hexdigest()

    def make(self, rows: Sequence[Row]) -> list[Made | Reject]:
        """Each row as examples, or as a reject, in order.

        Raises DataError for a conversation without a chat template to write it.
        """
        found = [self._prepared(row) for row in rows]
        texts = [text for each in found if isinstance(each, _Ready) for text in each.texts]
        examples = iter(self._encoded(texts))
        made: list[Made | Reject] = []
        for row, each in zip(rows, found, strict=True):
            if isinstance(each, Reject):
                made.append(each)
                continue
            mine = [next(examples) for _ in each.texts]
            fault = next(filter(None, map(self._fault, mine)), None)
            made.append(row.reject(*fault) if fault else Made([*map(self._fitted, mine)], each.scores))
        return made

    def _prepared(self, row: Row) -> _Ready | Reject:
        try:
            wanted = self._recipe.parse(row.value)
            return _Ready([self._text(each) for each in wanted.texts], wanted.scores)
        except UnusableError as error:
            return row.reject(error.kind, error.detail)
        except RecursionError:
            return row.reject("broken JSON", "lists in lists without end")

    def _text(self, given: Conversation | Passage) -> _Text:
        if isinstance(given, Passage):
            text = given.prompt + given.completion
            found = _Text(text, [(len(given.prompt), len(text))], True)
        elif self._writing is None:
            raise DataError(
                f"{self.tokenizer.path.parent} has no chat template",
                "give one with --chat-template, or name a tokenizer that has one",
            )
        else:
            found = _Text(*self._writing.learned(given, self._recipe.learning), False)
        try:
            found.text.encode()
        except UnicodeEncodeError:
            raise UnusableError("not Unicode", "half of a surrogate pair") from None
        return found

    def _encoded(self, texts: Sequence[_Text]) -> list[Example]:
        """The tokens of texts. A passage has what the tokenizer puts around it, such as bos, and ends with the eod."""
        encoded: dict[int, tuple[list[int], Spans]] = {}
        for passage in (False, True):
            which = [at for at, text in enumerate(texts) if text.passage is passage]
            tokenizer = self.tokenizer if passage else self._parsing
            found = tokenizer.encode_spans([texts[at].text for at in which], special=passage)
            encoded.update(zip(which, found, strict=True))
        return [self._example(text, *encoded[at]) for at, text in enumerate(texts)]

    def _example(self, text: _Text, ids: list[int], spans: Spans) -> Example:
        learned = touched(spans, text.learned, len(text.text))
        if text.passage:
            if ids and ids[-1] == self.eod:
                learned[-1] = True
            else:
                ids, learned = [*ids, self.eod], np.append(learned, True)
        return Example(np.asarray(ids, np.int64), learned, len(text.text.encode()))

    def _fault(self, example: Example) -> tuple[str, str] | None:
        """Why an example is of no use."""
        limit, length = self._recipe.max_tokens, len(example.ids)
        if limit is not None and length > limit and self._recipe.overlong == "skip":
            return TOO_LONG, f"{length} tokens"
        if not example.learned[:limit].any():
            within = f" among its first {limit} of {length} tokens" if limit is not None and length > limit else ""
            return NOTHING_LEARNED, f"no token{within}"
        return None

    def _fitted(self, example: Example) -> Example:
        limit = self._recipe.max_tokens
        if limit is None or len(example.ids) <= limit:
            return example
        return Example(example.ids[:limit], example.learned[:limit], example.bytes, cut=True)


@dataclass(frozen=True, slots=True)
class _Text:
    text: str
    learned: Spans
    passage: bool


@dataclass(frozen=True, slots=True)
class _Ready:
    texts: Sequence[_Text]
    scores: Sequence[float]


def touched(tokens: Spans, spans: Spans, length: int) -> npt.NDArray[np.bool_]:
    """Which tokens have a character of the spans of a text of so many characters: bool [T].

    A token that lies across a border counts, as in transformers: it cannot be predicted in part. What no token
    says that it stands for is the next one's: byte-level tokenizers pass over white space when they say where
    their tokens are, so that one of white space alone is nowhere.
    """
    inside = np.zeros(length + 1, np.int64)
    for start, end in spans:
        inside[start + 1 : end + 1] = 1
    until = inside.cumsum()
    borders = np.asarray(tokens, np.int64).reshape(-1, 2)
    ends = borders[:, 1]
    before = np.maximum.accumulate(np.concatenate([[0], ends[:-1]])) if len(ends) else ends
    found: npt.NDArray[np.bool_] = until[ends] > until[np.minimum(borders[:, 0], before)]
    return found

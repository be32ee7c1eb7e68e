"""Token ids of one growing text, turned into pieces of text that are safe to show."""

from __future__ import annotations

from collections.abc import Sequence

from neoxkit.data.tokenizer import Tokenizer
from neoxkit.errors import ConfigError

_UNFINISHED = "\ufffd"
"""What bytes become that are no character; those at the end of a text may be the beginning of one."""

_CONTEXT = 8
"""At least so many tokens are decoded with those after them. A byte-level text decodes alike behind any four of its
tokens, for a character has at most four bytes; to others it matters only which token is the first."""


class TextStream:
    """The text of an answer that grows token by token, in pieces that are safe to show.

    Joined, they are what the answer adds to the text of the ids `before` it, cut where a text of `stop` is first
    complete (of several that end at once, the longest counts): before it, or with `keep_stop` behind it. `stopped` is
    that text, None until it is found. Special tokens are left out unless `special`.

    A piece is held back while it may be the beginning of a stop text, and while bytes may become another character
    with those that follow; what is no character in the end is U+FFFD. Each token costs the same, however long the
    text is.

    The first `min_tokens` tokens complete none that counts. Raises ConfigError for an empty stop text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        before: Sequence[int] = (),
        stop: Sequence[str] = (),
        keep_stop: bool = False,
        special: bool = False,
        min_tokens: int = 0,
    ) -> None:
        if any(not text for text in stop):
            raise ConfigError("an empty stop text would end every answer", "leave it out")
        self.stopped: str | None = None
        self._tokenizer, self._special, self._keep_stop = tokenizer, special, keep_stop
        self._searches = [_Search(text) for text in dict.fromkeys(stop)]
        self._held = ""  # may be the beginning of a stop text
        self._spared = min_tokens  # tokens to come before one may end the answer
        self._ids = self._tail(before)
        self._passed = self._decode(self._ids)  # what of their text was passed on

    def add(self, token: int) -> str:
        """The text that can be shown now that the answer has one token more."""
        self._spared -= 1
        if self.stopped is not None or not self._tokenizer.shows(token, self._special):
            return ""
        self._ids.append(token)
        if token in self._tokenizer.single_bytes:
            return ""
        text = self._decode(self._ids)
        piece = self._cut(self._fresh(text.removesuffix(_UNFINISHED)))
        if len(self._ids) > 2 * _CONTEXT:
            pending = len(text) - len(self._passed)
            self._ids = self._tail(self._ids)
            text = self._decode(self._ids)
            self._passed = text[: len(text) - pending]
        return piece

    def finish(self) -> str:
        """The text that was held back, now that no more tokens come."""
        if self.stopped is not None:
            return ""
        piece = self._cut(self._fresh(self._decode(self._ids)))
        rest, self._held = self._held, ""
        return piece + rest

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, special=self._special)

    def _tail(self, ids: Sequence[int]) -> list[int]:
        """Of the ids that are shown, the last, behind which others have the text that they have behind all."""
        found: list[int] = []
        for token in reversed(ids):
            if self._tokenizer.shows(token, self._special):
                found.append(token)
                # A row of single bytes is not divided, and what has no text may not count as a beginning.
                divided = token in self._tokenizer.single_bytes
                if len(found) >= _CONTEXT and not divided and self._decode(found[::-1]):
                    break
        return found[::-1]

    def _fresh(self, text: str) -> str:
        """What `text`, of all ids at hand, has more than was passed on."""
        if self._passed.startswith(text):
            return ""
        # The last character before the answer may be another one now: that one belongs to the answer.
        common = 0
        while common < len(self._passed) and self._passed[common] == text[common : common + 1]:
            common += 1
        self._passed = text
        return text[common:]

    def _cut(self, piece: str) -> str:
        """What can be shown of the text that was held back and a piece that follows it."""
        if not self._searches:
            return piece
        text = self._held + piece
        for end, character in enumerate(piece, start=len(self._held) + 1):
            found = [search.text for search in self._searches if search.ends_with(character)]
            if found and self._spared < 0:
                self.stopped = max(found, key=len)
                self._held = ""
                return text[: end if self._keep_stop else end - len(self.stopped)]
        shown = len(text) - max(search.matched for search in self._searches)
        self._held = text[shown:]
        return text[:shown]


class _Search:
    """The search for `text` in another that comes character by character, by Knuth, Morris and Pratt.

    `matched` says how many of its characters are the last of the other: as many as may be the beginning of it.
    """

    def __init__(self, text: str) -> None:
        self.text, self.matched = text, 0
        self._borders = [0, 0]  # of the first n characters: how many of the first are the last too, not counting all
        for character in text[1:]:
            self._borders.append(self._extended(self._borders[-1], character))

    def ends_with(self, character: str) -> bool:
        """Whether the text is complete with this character."""
        self.matched = self._extended(self.matched, character)
        if self.matched < len(self.text):
            return False
        self.matched = self._borders[-1]
        return True

    def _extended(self, matched: int, character: str) -> int:
        while matched and self.text[matched] != character:
            matched = self._borders[matched]
        return matched + (self.text[matched] == character)

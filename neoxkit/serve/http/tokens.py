"""What each token is as text and as bytes, alone: what log-probabilities are told with."""

from __future__ import annotations

import codecs
import json
import re
from typing import Any

from neoxkit.data.tokenizer import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")

_KNOWN = frozenset({"ByteLevel", "ByteFallback", "Fuse", "Replace", "Strip", "Metaspace"})
"""Decoders by which a token is the same bytes wherever it stands, but at the beginning of a text."""


class TokenTexts:
    """The bytes of a tokenizer's tokens.

    Those of the tokens of a text make its bytes, but for special tokens, which a text may be shown without, and for
    the space before its first word, which some tokenizers drop (`strips`).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        tree = json.loads(tokenizer.path.read_bytes())
        decoder = tree.get("decoder") or {}
        steps: list[dict[str, Any]] = [decoder, *decoder.get("decoders", [])]
        kinds = {step["type"] for step in steps if "type" in step} - {"Sequence"}
        self._tokenizer = tokenizer
        self._pieces = _pieces(tree["model"])
        self._added = {each["id"]: each["content"] for each in tree.get("added_tokens", [])}
        self._special = {each["id"] for each in tree.get("added_tokens", []) if each.get("special")}
        self._plain = bool(kinds) and kinds <= _KNOWN
        self._characters = _characters() if "ByteLevel" in kinds else {}
        self._fallback = "ByteFallback" in kinds
        self._spaces = [found for step in steps if (found := _space(step))]
        self.strips = any(_strips(step) for step in steps)

    def special(self, token: int) -> bool:
        """Whether it is a special token."""
        return token in self._special

    def data(self, token: int) -> bytes:
        """Its bytes; none for an id that the tokenizer does not know."""
        if token in self._added:
            return str(self._added[token]).encode()
        piece = self._pieces.get(token)
        if piece is None:
            return b""
        if not self._plain:
            return self._tokenizer.decode([token], special=True).encode()
        if self._characters:
            return b"".join(self._characters.get(each, each.encode()) for each in piece)
        if self._fallback and (byte := _BYTE.fullmatch(piece)):
            return bytes([int(byte[1], 16)])
        for mark in self._spaces:
            piece = piece.replace(mark, " ")
        return piece.encode()

    def text(self, token: int) -> str:
        """Its text; bytes that are no character are spelled as OpenAI's API does: "bytes:\\xe2\\x82"."""
        data = self.data(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class Offsets:
    """At which character of a text each of its tokens begins; a character of several tokens is counted at its end."""

    def __init__(self, texts: TokenTexts, special: bool) -> None:
        self._texts, self._shown = texts, special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at = 0
        self._stripping = False

    def begin(self, prompt: bool) -> None:
        """The next token is the first of the text, or with no `prompt` shown before it, of the answer to one."""
        self._stripping = prompt and self._texts.strips

    def next(self, token: int) -> int:
        """Where the next token begins."""
        found = self._at
        if self._shown or not self._texts.special(token):
            data = self._texts.data(token)
            if self._stripping:
                data = data.removeprefix(b" ")
                self._stripping = False
            self._at += len(self._decoder.decode(data))
        return found


def _pieces(model: dict[str, Any]) -> dict[int, str]:
    """The vocabulary by id: it is an object, or with Unigram a list of pieces with their scores."""
    vocab = model.get("vocab", {})
    if isinstance(vocab, dict):
        return {number: piece for piece, number in vocab.items()}
    return {number: piece for number, (piece, _) in enumerate(vocab)}


def _characters() -> dict[str, bytes]:
    """The character that GPT-2's byte-level alphabet has for each byte: its own if it can be seen, or one above 255."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    found = {chr(byte): bytes([byte]) for byte in visible}
    return found | {chr(256 + index): bytes([byte]) for index, byte in enumerate(hidden)}


def _space(step: dict[str, Any]) -> str | None:
    """The mark that a decoder's step makes a space of."""
    if step.get("type") == "Metaspace":
        return str(step.get("replacement", "\u2581"))
    if step.get("type") == "Replace" and step.get("content") == " ":
        found = step.get("pattern", {}).get("String")
        return found if isinstance(found, str) else None
    return None


def _strips(step: dict[str, Any]) -> bool:
    """Whether a decoder's step drops the space before a text's first word."""
    if step.get("type") == "Metaspace":
        return bool(step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never") != "never")
    return step.get("type") == "Strip" and step.get("content") == " " and step.get("start", 0) > 0

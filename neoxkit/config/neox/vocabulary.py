"""How many tokens a tokenizer of gpt-neox has, counted in its file without loading it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from neoxkit.errors import ConfigError

EOD = "<|endoftext|>"
BYTES = 512
"""Tokens of the CharLevelTokenizer."""


class Vocabulary(NamedTuple):
    """Tokens, and the id of the one that ends a document, if there is one."""

    size: int
    eod: int | None


def read_vocabulary(kind: str, path: str | None) -> Vocabulary | None:
    """The vocabulary of a tokenizer of this type; None when its file is not here, or it has none.

    Raises ConfigError when the file is there and is not of the type.
    """
    if kind == "charleveltokenizer":
        return Vocabulary(BYTES, 0)
    if path is None or kind == "tiktokentokenizer":
        return None
    file = Path(path)
    if kind == "hfgpt2tokenizer" and file.is_dir():
        file = file / "tokenizer.json" if (file / "tokenizer.json").is_file() else file / "vocab.json"
    if not file.is_file():
        return None
    try:
        if kind == "spmtokenizer":
            return Vocabulary(_pieces(file.read_bytes()), None)
        tokens = _tokens(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, IndexError, RecursionError) as error:
        raise ConfigError(f"vocab_file {file}: not the file of a {kind} ({error!r:.80})", "check it") from None
    if kind == "hfgpt2tokenizer":
        tokens.setdefault("<|padding|>", -1)  # gpt-neox adds it
    return Vocabulary(len(tokens), tokens.get(EOD))


def _tokens(content: Any) -> dict[str, int | None]:
    """Ids by token, of a tokenizer.json or a vocab.json."""
    if not isinstance(content, dict):
        raise ValueError("no mapping")
    inner = content.get("model")
    if not isinstance(inner, dict):
        return {str(token): number for token, number in content.items()}
    vocab = inner.get("vocab")
    if isinstance(vocab, list):  # Unigram: pairs of a token and its score
        vocab = {str(each[0]): number for number, each in enumerate(vocab)}
    if not isinstance(vocab, dict):
        raise ValueError("it has no vocabulary")
    added = {str(each["content"]): each.get("id") for each in content.get("added_tokens") or () if "content" in each}
    return {**vocab, **added}


def _pieces(data: bytes) -> int:
    """Pieces of a sentencepiece model: the messages of field 1 at the top of its protocol buffer."""
    at = count = 0
    while at < len(data):
        tag, at = _varint(data, at)
        if tag & 7 == 0:
            _, at = _varint(data, at)
        elif tag & 7 == 1:
            at += 8
        elif tag & 7 == 2:
            length, at = _varint(data, at)
            at += length
        elif tag & 7 == 5:
            at += 4
        else:
            raise ValueError("no protocol buffer")
        count += tag >> 3 == 1
    if at != len(data) or not count:
        raise ValueError("no sentencepiece model")
    return count


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at

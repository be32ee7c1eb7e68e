"""How many tokens a tokenizer of gpt-neox has, counted in its file without loading it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from neoxkit.config.neox.protobuf import fields
from neoxkit.errors import ConfigError

EOD = "<|endoftext|>"
BYTES = 512
"""Tokens of the CharLevelTokenizer."""

TIKTOKEN = {
    "gpt2": (50_257, 50_256),
    "r50k_base": (50_257, 50_256),
    "p50k_base": (50_281, 50_256),
    "p50k_edit": (50_284, 50_256),
    "cl100k_base": (100_277, 100_257),
    "o200k_base": (200_019, 199_999),
}
"""Tiktoken's encodings: n_vocab and eot_token of each."""

_TRAINER, _EOS = 2, 42
"""The fields of sentencepiece_model.proto that hold the trainer's settings, and in them eos_id."""


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
    if kind == "tiktokentokenizer":
        return Vocabulary(*TIKTOKEN[path]) if path in TIKTOKEN else None
    if path is None:
        return None
    file = Path(path)
    if kind == "hfgpt2tokenizer" and file.is_dir():
        file = file / "tokenizer.json" if (file / "tokenizer.json").is_file() else file / "vocab.json"
    if not file.is_file():
        return None
    try:
        if kind == "spmtokenizer":
            return _pieces(file.read_bytes())
        tokens = _tokens(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, IndexError, RecursionError) as error:
        raise ConfigError(f"vocab_file {file}: not the file of a {kind} ({error!r:.80})", "check it") from None
    if kind == "hfgpt2tokenizer":
        tokens.setdefault("<|padding|>", -1)  # gpt-neox adds it
    return Vocabulary(len(tokens), tokens.get(EOD))


def spelled(kind: str, path: str | None, merges: str | None) -> str | None:
    """What `data.tokenizer` calls the tokenizer of vocab_file and merge_file; None where a file is not here."""
    if kind == "charleveltokenizer":
        return "bytes"
    if kind == "tiktokentokenizer":
        return path if path in TIKTOKEN else None
    if path is None or not Path(path).exists():
        return None
    if kind == "gpt2bpetokenizer":
        return f"{path},{merges}" if merges is not None and Path(merges).is_file() else None
    return path


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


def _pieces(data: bytes) -> Vocabulary:
    """The pieces of a sentencepiece model, the messages of field 1 at the top of its protocol buffer, and its eos."""
    found = list(fields(data))
    count = sum(number == 1 for number, _ in found)
    if not count:
        raise ValueError("no sentencepiece model")
    eos = 2  # where the trainer says nothing
    for number, content in found:
        if number == _TRAINER and isinstance(content, bytes):
            eos = next((value for key, value in fields(content) if key == _EOS and isinstance(value, int)), eos)
    return Vocabulary(count, eos if eos < count else None)  # -1, none, is the greatest of all numbers as it is written

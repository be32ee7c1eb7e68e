"""Tokenizers and corpora for the tests of `neoxkit data tokenize`, and how they run it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from click.testing import CliRunner, Result

from neoxkit.cli.data import command
from neoxkit.data.tokenizer.train import train_bpe
from neoxkit.errors import NeoxkitError

WORDS = (
    "def",
    "return",
    "self",
    "x1",
    "tokens",
    "caf\u00e9",
    "\u6587\u5b57",
    "...",
    "(a,",
    "b)",
    "\U0001f600",
    "import",
)


def text(random: Random, words: int) -> str:
    """Words, single and double spaces, lines and indentation."""
    return "".join(random.choice(WORDS) + random.choice((" ", " ", " ", "  ", "\n", "\n\n    ")) for _ in range(words))


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows with texts of 1 to 60 words."""
    random = Random(seed)
    return [{"text": text(random, random.randint(1, 60)), "n": k} for k in range(count)]


def bpe(folder: Path, vocab: int = 500) -> Path:
    """A byte-level BPE with GPT-2's split."""
    train_bpe([row["text"] for row in rows(200, seed=1)], vocab, folder)
    return folder


def jsonl(path: Path, found: list[Any]) -> Path:
    """A line each: bytes as they are, anything else as JSON."""
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in found))
    return path


def run(*arguments: object) -> Result:
    """Run `neoxkit data tokenize`."""
    return CliRunner().invoke(command, ["tokenize", *map(str, arguments)])


def fine(*arguments: object) -> Result:
    """Run it; it must succeed."""
    result = run(*arguments)
    assert result.exception is None, result.exception
    return result


def refused(*arguments: object) -> str:
    """Run it; what it says when it refuses."""
    result = run(*arguments)
    assert isinstance(result.exception, NeoxkitError), (result.exception, result.output)
    return str(result.exception)


def made(prefix: Path) -> dict[str, bytes]:
    """The bytes of what was made, by the end of the name; of the sidecar all but what was asked for."""
    start = len(prefix.name)
    found = {path.name[start:]: path.read_bytes() for path in prefix.parent.glob(prefix.name + "*") if path.is_file()}
    for name in [name for name in found if name.endswith(".json")]:
        sidecar = json.loads(found[name])
        del sidecar["options"]["inputs"]
        found[name] = json.dumps(sidecar).encode()
    return found


def sentencepiece_model(lines: Iterable[str], kind: str, **options: Any) -> bytes:
    """A SentencePiece model of some text."""
    sentencepiece = pytest.importorskip("sentencepiece")
    into = io.BytesIO()
    given = {"normalization_rule_name": "identity", "minloglevel": 2, "vocab_size": 400, **options}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("".join(lines).split("\n")),
        model_writer=into,
        model_type=kind,
        hard_vocab_limit=False,
        **given,
    )
    return into.getvalue()

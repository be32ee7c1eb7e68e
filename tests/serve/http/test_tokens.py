"""Tokens as text and bytes, alone: of byte-level tokenizers, of those with a byte fallback, and of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from neoxkit.data.tokenizer import Tokenizer
from neoxkit.data.tokenizer.train import train_bpe
from neoxkit.serve.http.tokens import Offsets, TokenTexts

TEXT = "Hello world, some tokens: é € 😀 naïve\n\n  end"


def saved(inner: tokenizers.Tokenizer, folder: Path) -> Tokenizer:
    folder.mkdir(exist_ok=True)
    inner.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("words") / "bpe"
    train_bpe(["Hello world, some tokens"] * 3, 270, folder)
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def fallback(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """As Llama 2's: pieces with a mark for a space, and bytes for what has no piece."""
    names = ["<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "H", "e", "l", "o", "▁H", "el", "lo"]
    merges: list[Any] = [("▁", "H"), ("e", "l"), ("l", "o")]
    inner = tokenizers.Tokenizer(
        models.BPE({name: number for number, name in enumerate(names)}, merges, byte_fallback=True, fuse_unk=True)
    )
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.add_special_tokens(["<s>"])
    return saved(inner, tmp_path_factory.mktemp("words"))


@pytest.mark.parametrize("kind", ["byte_level", "fallback"])
def test_the_bytes_of_tokens_make_the_text(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    texts = TokenTexts(tokenizer)
    ids = tokenizer.encode(TEXT)
    data = b"".join(texts.data(token) for token in ids)
    assert data.removeprefix(b" " if texts.strips else b"").decode() == TEXT == tokenizer.decode(ids)
    assert texts.strips == (kind == "fallback")


@pytest.mark.parametrize("kind", ["byte_level", "fallback"])
def test_offsets_are_where_tokens_begin(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    texts = TokenTexts(tokenizer)
    offsets = Offsets(texts, special=False)
    offsets.begin(prompt=True)
    ids = [0, *tokenizer.encode(TEXT)]  # 0 is special, and not shown
    found = [offsets.next(token) for token in ids]
    assert found[:2] == [0, 0]
    for count in range(2, len(ids)):
        before = tokenizer.decode(ids[1:count])
        if not before.endswith("�"):
            assert found[count] == len(before)
    assert found == sorted(found)


def test_bytes_that_are_no_character_are_spelled(byte_level: Tokenizer) -> None:
    texts = TokenTexts(byte_level)
    first, second, third = byte_level.encode("€")
    assert [texts.text(token) for token in (first, second, third)] == ["bytes:\\xe2", "bytes:\\x82", "bytes:\\xac"]
    assert texts.text(byte_level.encode(" world")[0]).startswith(" ")


def test_special_tokens_and_ids_that_are_none(byte_level: Tokenizer) -> None:
    texts = TokenTexts(byte_level)
    assert (texts.text(0), texts.special(0)) == ("<|endoftext|>", True)
    assert (texts.text(10**6), texts.data(10**6), texts.special(10**6)) == ("", b"", False)


def test_added_tokens_are_as_they_are_written(byte_level: Tokenizer, tmp_path: Path) -> None:
    tree = json.loads(byte_level.path.read_bytes())
    added = {"id": 270, "content": "Ġé", "special": False, "single_word": False}
    tree["added_tokens"].append({**added, "lstrip": False, "rstrip": False, "normalized": False})
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    assert TokenTexts(Tokenizer(tmp_path)).text(270) == "Ġé"


def test_other_tokenizers_decode_a_token_alone(tmp_path: Path) -> None:
    inner = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[UNK]"], show_progress=False)
    inner.train_from_iterator(["some words are here"] * 5, trainer)
    tokenizer = saved(inner, tmp_path)
    texts = TokenTexts(tokenizer)
    for token in tokenizer.encode("some words"):
        assert texts.text(token) == tokenizer.decode([token])


def test_a_vocabulary_with_scores(tmp_path: Path) -> None:
    inner = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("▁a", -1.0), ("b", -2.0)], unk_id=0))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    texts = TokenTexts(saved(inner, tmp_path))
    assert [texts.text(token) for token in (1, 2)] == [" a", "b"]
    assert texts.strips

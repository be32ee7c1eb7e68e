"""Long texts in windows: the ids of the whole, with the memory of a part."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizing import bpe, rows, text

from neoxkit.data.prepare import windows as module
from neoxkit.data.prepare.encode import Encoder, Recipe
from neoxkit.data.prepare.windows import windows
from neoxkit.data.text.documents import Parser
from neoxkit.data.text.pieces import Whole

TEXTS = [row["text"] for row in rows(300, 7)]


def llama(prepend: bool) -> tokenizers.Tokenizer:
    """BPE over whole texts, as tokenizers converted from SentencePiece have it: spaces are letters, no split."""
    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    special = ["<unk>", *(f"<0x{number:02X}>" for number in range(256))]
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False))
    spaces = [normalizers.Replace(" ", "\u2581")]
    made.normalizer = normalizers.Sequence([*([normalizers.Prepend("\u2581")] if prepend else []), *spaces])
    made.pre_tokenizer = None
    made.decoder = decoders.Metaspace()
    return made


def neox(folder: Path) -> tokenizers.Tokenizer:
    """GPT-NeoX's kind: GPT-2's split, NFC, and added tokens of spaces."""
    made = tokenizers.Tokenizer.from_file(str(bpe(folder / "tokenizer") / "tokenizer.json"))
    made.normalizer = normalizers.NFC()
    made.add_tokens([tokenizers.AddedToken(" " * count, normalized=False) for count in range(2, 25)])
    return made


def split(pattern: str) -> tokenizers.Tokenizer:
    """Llama 3's kind: a pattern of its own."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    return made


LLAMA_3 = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tokenizers.Tokenizer]:
    return {
        "gpt2": tokenizers.Tokenizer.from_file(str(bpe(tmp_path_factory.mktemp("a") / "t") / "tokenizer.json")),
        "neox": neox(tmp_path_factory.mktemp("b")),
        "llama": llama(True),
        "mistral": llama(False),
        "llama3": split(LLAMA_3),
    }


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CONTEXT", 200)


def agree(tokenizer: tokenizers.Tokenizer, whole: str, size: int = 1000) -> int:
    """The number of windows, whose ids must be those of the whole."""

    def encode(part: str) -> list[int]:
        found: list[int] = tokenizer.encode(part, add_special_tokens=False).ids
        return found

    parts = list(windows(whole, encode, size))
    assert [number for part in parts for number in encode(part)] == encode(whole)
    return len(parts)


@pytest.mark.parametrize("kind", ["gpt2", "neox", "llama", "mistral", "llama3"])
def test_windows_give_the_ids_of_the_whole(kinds: dict[str, tokenizers.Tokenizer], kind: str) -> None:
    random = Random(kind)
    for _ in range(10):
        whole = text(random, 2500)
        found = agree(kinds[kind], whole)
        assert found > len(whole) / 1500, "it was cut"


ALPHABET = st.sampled_from(
    [" ", " ", "\n", "\t", "a", "b", "ab", "def", "\u0301", "\u00a0", "\u6587", "'s", "12", "<|endoftext|>"]
)


@settings(max_examples=60)
@given(st.data())
def test_windows_of_odd_texts(kinds: dict[str, tokenizers.Tokenizer], data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(kinds)))
    parts = data.draw(st.lists(ALPHABET, min_size=5, max_size=60))
    random = Random(data.draw(st.integers(0, 1 << 30)))
    agree(kinds[kind], "".join(random.choice(parts) for _ in range(1500)), 300)


@pytest.mark.parametrize("whole", ["a" * 5000, " " * 5000, "\n" * 5000, "\u6587" * 3000, "ab  " * 1500])
@pytest.mark.parametrize("kind", ["gpt2", "neox", "llama", "llama3"])
def test_texts_that_cannot_be_cut_are_taken_whole(
    kinds: dict[str, tokenizers.Tokenizer], kind: str, whole: str
) -> None:
    agree(kinds[kind], whole)


def test_long_documents_are_encoded_in_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (bpe(tmp_path / "t") / "tokenizer.json").read_bytes()
    monkeypatch.setattr("neoxkit.data.prepare.encode.WINDOW", 500)
    monkeypatch.setattr(module, "WINDOW", 500)
    recipe = Recipe(tokenizer=content, parser=Parser(("text",), 1 << 20), eod=0, bos=None, dtype="<u2", holdout=0.0)
    encoder, given = Encoder(recipe), []
    original = encoder._one
    monkeypatch.setattr(encoder, "_one", lambda part: given.append(len(part)) or original(part))
    whole = text(Random(1), 4000)
    found = encoder.encode([Whole("x", "x", whole.encode())])
    judge = tokenizers.Tokenizer.from_buffer(content)
    assert found.outputs[0].sizes[0] == len(judge.encode(whole).ids) + 1
    assert max(given) < 1500 < len(whole)

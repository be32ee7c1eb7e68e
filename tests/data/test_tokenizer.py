"""Tokenizers: judged by the tokenizers library and by transformers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, processors

from neoxkit.data.tokenizer import NAMES, Tokenizer
from neoxkit.data.tokenizer.train import train_bpe
from neoxkit.errors import DataError

TEXTS = [f"def add_{k}(left, right):\n    return left + right + {k}\n" for k in range(200)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bpe") / "tokenizer"
    train_bpe(TEXTS, 400, folder)
    return folder


def test_a_trained_tokenizer_has_the_special_tokens_first(folder: Path) -> None:
    tokenizer = Tokenizer(folder)
    assert (tokenizer.id("<|endoftext|>"), tokenizer.id("<|padding|>")) == (0, 1)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.eod()) == (0, 0, 1, 0)
    assert 258 < tokenizer.vocab <= 400
    assert len(tokenizer.encode(TEXTS[0])) < len(TEXTS[0]) / 2


def test_training_is_deterministic_and_blind_to_order(folder: Path, tmp_path: Path) -> None:
    train_bpe(reversed(TEXTS), 400, tmp_path / "again")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()
    }


@given(text=st.text())
def test_every_text_comes_back(folder: Path, text: str) -> None:
    tokenizer = Tokenizer(folder)
    assert tokenizer.decode(tokenizer.encode(text), special=True) == text


@pytest.mark.parametrize("model_type", [None, "gpt_neox", "llama", "mistral"])
def test_transformers_reads_the_same_tokenizer(folder: Path, tmp_path: Path, model_type: str | None) -> None:
    """Beside a model of each family too: transformers 5 rebuilds some classes, and would normalise the text."""
    transformers = pytest.importorskip("transformers")
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "def  e\u0301 (x) : \n\t return 'n\u0303 .' , don 't !<|endoftext|>next \u00e9"
    ids = Tokenizer(folder).encode(text)
    assert theirs(text)["input_ids"] == ids
    assert theirs.decode(ids) == text
    assert (theirs.eos_token_id, theirs.pad_token_id, len(theirs)) == (0, 1, Tokenizer(folder).vocab)


def test_a_batch_equals_its_texts(folder: Path) -> None:
    tokenizer = Tokenizer(folder / "tokenizer.json")
    assert tokenizer.encode_batch(TEXTS[:5]) == [tokenizer.encode(text) for text in TEXTS[:5]]
    assert tokenizer.encode_batch([]) == []


def test_the_fingerprint_is_of_the_file(folder: Path) -> None:
    content = (folder / "tokenizer.json").read_bytes()
    assert Tokenizer(folder).fingerprint == "sha256:" + hashlib.sha256(content).hexdigest()


def test_every_file_of_a_tokenizer_is_carried(folder: Path, tmp_path: Path) -> None:
    made = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert Tokenizer(folder).contents() == made
    assert set(made) == {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    for name, content in {**dict.fromkeys(NAMES, b"more"), **made, "README.md": b"no"}.items():
        (tmp_path / name).write_bytes(content)
    assert Tokenizer(tmp_path).contents() == {**dict.fromkeys(NAMES, b"more"), **made}


def test_a_tokenizer_of_another_name_is_carried_under_its_own(folder: Path, tmp_path: Path) -> None:
    content = (folder / "tokenizer.json").read_bytes()
    (tmp_path / "bpe.json").write_bytes(content)
    (tmp_path / "tokenizer.json").write_bytes(b"another")
    assert Tokenizer(tmp_path / "bpe.json").contents() == {"tokenizer.json": content}


def words(path: Path) -> tokenizers.Tokenizer:
    """A tokenizer of five words, with holes in its ids, that puts <s> first and was saved with truncation on."""
    made = tokenizers.Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2, "b": 3, "c": 9}, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made.enable_truncation(2)
    made.enable_padding(length=4)
    made.save(str(path))
    return made


def test_the_file_of_someone_else(tmp_path: Path) -> None:
    words(tmp_path / "tokenizer.json")
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "b", "bos_token": "<s>"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "</s>"}, "pad_token": None}))
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.vocab == 10
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (0, 1, None)
    assert tokenizer.eod("c") == 9
    assert tokenizer.encode("a b c a") == [2, 3, 9, 2]
    assert tokenizer.encode("a b c a", special=True) == [0, 2, 3, 9, 2]
    assert tokenizer.encode_batch(["a b c a", "b"]) == [[2, 3, 9, 2], [3]]


def test_a_document_needs_an_end(tmp_path: Path) -> None:
    words(tmp_path / "tokenizer.json")
    with pytest.raises(DataError, match="no token that ends a document; name it with --eod"):
        Tokenizer(tmp_path).eod()
    with pytest.raises(DataError, match='no token "<end>"'):
        Tokenizer(tmp_path).eod("<end>")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("other.json", b"{}", "no tokenizer.json"),
        ("tokenizer.json", b"\x80\x00", "is not a tokenizer"),
        ("tokenizer.json", b"{", "is not a tokenizer"),
        ("tokenizer.json", b"[]", 'it has no "model"'),
        ("tokenizer.json", b'{"hidden_size": 8}', 'it has no "model"'),
        ("tokenizer.json", b'{"version": "1.0", "model": {"type": "Unheard", "vocab": {}}}', "is not a tokenizer"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says):
        Tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("config", "says"), [("{", "is not JSON"), ("[]", "not a JSON object"), ('{"eos_token": "x"}', 'no token "x"')]
)
def test_a_wrong_file_beside_it_is_refused(tmp_path: Path, config: str, says: str) -> None:
    words(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(DataError, match=says):
        Tokenizer(tmp_path)


def test_a_vocabulary_below_the_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="257 entries is too small; give at least 258"):
        train_bpe(TEXTS, 257, tmp_path / "t")
    assert not (tmp_path / "t").exists()

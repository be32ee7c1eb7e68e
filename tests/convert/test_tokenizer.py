"""The tokenizer's and the generation settings' files travel with the model, and are checked against it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import Tiny, save

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.config.model import ModelConfig, SpecialTokens
from neoxkit.convert.open import open_foreign
from neoxkit.convert.tokenizer import check_vocabulary, exported_files, stop_ids
from neoxkit.convert.transfer import export_model, import_model, reshard
from neoxkit.data.tokenizer import NAMES, Tokenizer
from neoxkit.data.tokenizer.train import train_bpe
from neoxkit.errors import CheckpointError, ConversionError, DataError
from neoxkit.families import by_name
from neoxkit.mesh import Mesh

LLAMA = by_name("llama")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 290 tokens with a tokenizer of no more, and every other file that may lie beside."""
    here = tmp_path_factory.mktemp("tokenizer")
    train_bpe([f"def f{n}(x): return x + {n}\n" for n in range(50)], 290, here / "hf")
    save(Tiny("llama", "text", {"vocab_size": 290, "num_hidden_layers": 1}).model(), here / "hf")
    for name in NAMES:
        if not (here / "hf" / name).exists():
            (here / "hf" / name).write_bytes(f"\xff {name}".encode("latin-1"))
    (here / "hf" / "generation_config.json").write_text('{"eos_token_id": [2, 7], "temperature":   0.5}')
    (here / "hf" / "README.md").write_text("not carried")
    return here / "hf"


def config(**tokens: Any) -> ModelConfig:
    tree = {"family": "llama", "depth": 1, "width": 8, "vocab": 300, "context": 8, "mixer": {"heads": 2}}
    return ModelConfig.model_validate({**tree, "tokens": tokens})


def test_files_travel_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    import_model(open_foreign(folder), tmp_path / "a", Mesh())
    reshard(Checkpoint.open(tmp_path / "a"), tmp_path / "b", Mesh(tp=2))
    export_model(Checkpoint.open(tmp_path / "b"), tmp_path / "hf", LLAMA)
    for name in NAMES:
        data = (folder / name).read_bytes()
        assert (tmp_path / "b/tokenizer" / name).read_bytes() == data
        assert (tmp_path / "hf" / name).read_bytes() == data
    assert "not carried" not in (tmp_path / "hf/README.md").read_text()
    assert Tokenizer(tmp_path / "hf").fingerprint == Tokenizer(folder).fingerprint


def test_a_model_may_go_without(folder: Path, tmp_path: Path) -> None:
    import_model(open_foreign(folder), tmp_path / "a", Mesh(), tokenizer=False)
    checkpoint = Checkpoint.open(tmp_path / "a")
    assert checkpoint.tokenizer is None
    export_model(checkpoint, tmp_path / "hf", LLAMA)
    names = {path.name for path in (tmp_path / "hf").iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors", "neoxkit.json", "README.md"}


def test_a_tokenizer_of_another_model(folder: Path, tmp_path: Path) -> None:
    vocab = Tokenizer(folder).vocab
    small = Tiny("llama", "small", {"vocab_size": vocab - 1, "num_hidden_layers": 1})
    save(small.model(), tmp_path / "hf")
    (tmp_path / "hf/tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    with pytest.raises(ConversionError, match=f"has ids up to {vocab - 1}, the model {vocab - 1} rows"):
        import_model(open_foreign(tmp_path / "hf"), tmp_path / "a", Mesh())
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    import_model(open_foreign(tmp_path / "hf"), tmp_path / "a", Mesh(), tokenizer=False)


def test_rows_that_no_token_uses_are_kept(folder: Path) -> None:
    """Pythia has 50304 rows and 50277 tokens: conversion loses nothing."""
    check_vocabulary(folder, config())


def test_a_damaged_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(DataError, match="is not a tokenizer"):
        check_vocabulary(tmp_path, config())


@pytest.mark.parametrize(
    ("named", "ids"), [(None, {3}), (9, {3, 9}), ([9, 11], {3, 9, 11}), ([], {3})], ids=["null", "one", "two", "none"]
)
def test_ids_that_end_a_text(tmp_path: Path, named: Any, ids: set[int]) -> None:
    assert stop_ids(None, config(eos=[3])) == {3}
    assert stop_ids(tmp_path, config(eos=[3])) == {3}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))
    assert stop_ids(tmp_path, config(eos=[3])) == ids


@pytest.mark.parametrize("text", ["", "[]", '{"eos_token_id": "</s>"}', '{"eos_token_id": true}', "\xff"])
def test_generation_settings_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        stop_ids(tmp_path, config())


def test_generation_settings_are_made_where_there_are_none() -> None:
    tokens = SpecialTokens(bos=1, eos=(2, 5), pad=None)
    made = json.loads(exported_files(None, config(**tokens.model_dump()), LLAMA)["generation_config.json"])
    assert (made["bos_token_id"], made["eos_token_id"], made["pad_token_id"]) == (1, [2, 5], None)


RECENT = {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers", "eos_token": "<|endoftext|>"}


def exported(folder: Path, about: dict[str, Any] | None, **files: str) -> dict[str, Any]:
    """tokenizer_config.json after an export."""
    (folder / "tokenizer.json").write_text("{}")
    if about is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(about))
    if files:
        (folder / "chat_template.jinja").write_text(files["template"])
    found: dict[str, Any] = json.loads(exported_files(folder, config(), LLAMA)["tokenizer_config.json"])
    return found


def test_a_class_that_transformers_4_does_not_know(tmp_path: Path) -> None:
    assert exported(tmp_path, RECENT) == {**RECENT, "tokenizer_class": "PreTrainedTokenizerFast"}


def test_what_else_transformers_4_cannot_read(tmp_path: Path) -> None:
    found = exported(tmp_path, {**RECENT, "extra_special_tokens": ["<a>", "<b>"]}, template="{{ caf\u00e9 }}")
    assert found["additional_special_tokens"] == ["<a>", "<b>"]
    assert "extra_special_tokens" not in found
    assert found["chat_template"] == "{{ caf\u00e9 }}"
    kept = exported(tmp_path, {**RECENT, "extra_special_tokens": {"image_token": "<i>"}, "chat_template": "own"})
    assert kept["extra_special_tokens"] == {"image_token": "<i>"}
    assert kept["chat_template"] == "own"


def test_a_classic_class_stays(tmp_path: Path) -> None:
    """transformers 5 would rebuild another class's tokenizer by that class's rules, NFC among them."""
    for name in ("GPTNeoXTokenizerFast", "GPTNeoXTokenizer", "PreTrainedTokenizerFast", "LlamaTokenizer"):
        about = {"tokenizer_class": name, "odd": [1]}
        (tmp_path / "tokenizer_config.json").write_text(" " + json.dumps(about))
        (tmp_path / "tokenizer.json").write_text("{}")
        data = exported_files(tmp_path, config(), LLAMA)["tokenizer_config.json"]
        assert data == (tmp_path / "tokenizer_config.json").read_bytes()


def test_a_tokenizer_without_its_settings(tmp_path: Path) -> None:
    assert exported(tmp_path, None) == {"tokenizer_class": "PreTrainedTokenizerFast"}

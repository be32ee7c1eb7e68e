"""What inspect shows, from indexes alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path

import pytest
import torch
from meta_reference import meta_tensors, write_meta
from neox_checkpoints import unpack
from tiny import TINY, Tiny
from torch import Tensor

from neoxkit.config.model import ModelConfig
from neoxkit.convert.describe import describe, lines, size
from neoxkit.convert.open import open_any
from neoxkit.data.tokenizer import Tokenizer
from neoxkit.errors import CheckpointError, ConversionError
from neoxkit.mesh import Mesh

Save = Callable[..., Path]
KEYS = {
    "path", "kind", "run", "family", "model", "parameters", "bytes", "created", "writer", "step", "samples", "tokens",
    "mesh", "lineage", "components", "trainer", "tokenizer", "config", "files", "tensors",
}  # fmt: skip


def test_a_checkpoint(save: Save, tensors: Mapping[str, Tensor], config: ModelConfig, tokenizer: Path) -> None:
    folder = save(mesh=Mesh(tp=2, pp=3))
    about = describe(folder)
    weights = {name: value for name, value in tensors.items() if name.startswith("model/")}
    total = sum(value.numel() for value in weights.values())
    vocabulary = 2 * config.vocab * config.width
    assert set(about) == KEYS
    assert about["parameters"] == {"total": total, "non_embedding": total - vocabulary}
    assert about["bytes"] == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert len(about["files"]) == sum(path.is_file() for path in folder.rglob("*"))
    assert (about["step"], about["samples"], about["tokens"]) == (7, 28, 448)
    assert about["mesh"] == {"tp": 2, "pp": 3}
    assert about["lineage"] == [{"event": "train", "from_step": 0, "to_step": 7}]
    assert about["trainer"] is True
    assert about["run"] is None
    assert about["config"] == config.model_dump(mode="json")
    assert about["components"]["model"] == {
        "tensors": len(weights), "elements": total, "bytes": 2 * total, "dtypes": {"BF16": total},
    }  # fmt: skip
    assert set(about["components"]) == {"model", "optimizer/master", "optimizer/exp_avg", "optimizer/exp_avg_sq"}
    assert about["tokenizer"]["vocab"] == Tokenizer(tokenizer).vocab == 270
    assert about["tokenizer"]["special"] == ["<|endoftext|>", "<|padding|>"]
    assert (about["tokenizer"]["eos"], about["tokenizer"]["pad"]) == ("<|endoftext|>", "<|padding|>")
    assert json.loads(json.dumps(about)) == about


def test_tensors_by_pattern(save: Save) -> None:
    about = describe(save(mesh=Mesh(tp=2)))
    tensors = {each["pattern"]: each for each in about["tensors"]}
    assert tensors["model/layers.{0..2}.attn.q.weight"] == {
        "pattern": "model/layers.{0..2}.attn.q.weight",
        "count": 3,
        "shape": [16, 16],
        "dtype": "BF16",
        "splits": [[0, "tp", 4, False]],
        "pieces": 2,
    }
    assert sum(each["count"] for each in about["tensors"]) == sum(c["tensors"] for c in about["components"].values())
    said = list(lines(about, tensors=True))
    assert "model/layers.{0..2}.attn.q.weight [16, 16] BF16 x3, split dim 0 over tp in heads of 4, in 2 pieces" in said
    assert "optimizer/exp_avg/layers.{0..2}.norm1.weight [16] F32 x3" in said


def test_layers_that_differ_are_told_apart(save: Save, tensors: Mapping[str, Tensor]) -> None:
    name = "model/layers.1.norm1.weight"
    about = describe(save(values={**tensors, name: tensors[name].float()}))
    patterns = [each["pattern"] for each in about["tensors"]]
    patterns = [each for each in patterns if each.startswith("model/") and each.endswith("norm1.weight")]
    assert patterns == ["model/layers.{0,2}.norm1.weight", name]


def test_a_run(save: Save, tmp_path: Path) -> None:
    save("step-00000002")
    folder = save()
    (tmp_path / ".step-00000009.0a1b2c.partial").mkdir()
    about = describe(tmp_path)
    assert about["path"] == str(folder)
    assert about["run"] == {
        "path": str(tmp_path),
        "checkpoints": ["step-00000002", "step-00000007"],
        "unfinished": [".step-00000009.0a1b2c.partial"],
    }
    assert any("2 checkpoints, this is the newest" in line for line in lines(about))


@pytest.mark.parametrize("tiny_model", TINY, ids=str)
def test_a_hugging_face_folder(tiny_model: Tiny, tmp_path: Path) -> None:
    model = tiny_model.model()
    model.save_pretrained(tmp_path)
    about = describe(tmp_path)
    assert set(about) == KEYS
    assert about["parameters"]["total"] == model.num_parameters()
    outside = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    outside.add(id(model.get_output_embeddings().weight))
    rest = sum(p.numel() for p in model.parameters() if id(p) not in outside)
    assert about["parameters"]["non_embedding"] == rest
    assert about["kind"] == "huggingface"
    assert about["model"] is about["step"] is about["tokenizer"] is None
    said = "\n".join(lines(about, tensors=True))
    assert f"family       {tiny_model.family}" in said
    assert "model/layers.{0..2}." in said


@pytest.mark.parametrize(
    ("name", "family"), [("neox_tp1pp0", "gpt_neox"), ("neox_tp2pp1", "gpt_neox"), ("llama_gqa_tp1pp1", "llama")]
)
def test_a_gpt_neox_checkpoint(
    name: str, family: str, tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without pipeline stages the weights lie in one pickle with all else: its index alone is read."""
    monkeypatch.setattr("neoxkit.convert.pickles.storage.Files._read", None)
    folder = unpack(tmp_path) / name
    about = describe(folder)
    assert set(about) == KEYS
    assert about["kind"] == "gpt-neox"
    assert about["family"] == family
    assert about["path"].startswith(str(folder))
    held = ("model", "created", "writer", "step", "samples", "tokens", "mesh", "lineage", "run", "tokenizer")
    assert all(about[key] is None for key in held)
    source = open_any(folder)
    total = sum(prod(source.spec(each).shape) for each in source.names())
    assert about["parameters"]["total"] == total
    assert about["components"]["model"]["bytes"] == 4 * total
    assert {file["path"] for file in about["files"]} >= {path.name for path in source.folder.glob("*.pt")}
    assert sum(each["count"] for each in about["tensors"]) == len(source.names())
    said = "\n".join(lines(about, tensors=True))
    assert "kind         gpt-neox checkpoint" in said
    shutil.copy(tokenizer / "tokenizer.json", source.folder)
    known = describe(folder)["tokenizer"]
    assert known is not None
    assert known["vocab"] == 270


def test_metas_and_mistrals_files(tmp_path: Path) -> None:
    sizes = {"vocab_size": 96, "intermediate_size": 128, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}
    model = Tiny("llama", "meta", sizes).model()
    params = {"dim": 48, "n_layers": 3, "n_heads": 6, "n_kv_heads": 2, "norm_eps": 1e-5, "vocab_size": 96}
    write_meta(tmp_path / "meta", meta_tensors(model), {**params, "multiple_of": 8})
    rest = {"hidden_dim": 128, "head_dim": 8, "sliding_window": 5}
    write_meta(tmp_path / "mistral", meta_tensors(model), {**params, **rest})
    for kind in ("meta", "mistral"):
        about = describe(tmp_path / kind)
        assert set(about) == KEYS
        assert (about["kind"], about["path"]) == (kind, str(tmp_path / kind))
        assert about["parameters"]["total"] == model.num_parameters()
        assert {file["path"] for file in about["files"]} == {"params.json", "consolidated.00.pth"}
        assert about["model"] is about["step"] is about["tokenizer"] is None
    assert describe(tmp_path / "meta", {"context": "77"})["config"]["context"] == 77


def test_what_was_assumed_is_for_foreign_models(save: Save) -> None:
    with pytest.raises(ConversionError, match="leaves nothing open"):
        describe(save(), {"context": "77"})


@pytest.mark.parametrize("text", ["{", "[]", '{"family": "llama"}'])
def test_a_configuration_that_is_none(save: Save, text: str) -> None:
    folder = save()
    config = folder / "config.json"
    config.write_text(text + " " * (config.stat().st_size - len(text)))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        describe(folder)


def test_sizes() -> None:
    assert [size(count) for count in (0, 999, 1000, 1_550_000, 5 * 10**9, 3 * 10**12)] == [
        "0 bytes", "999 bytes", "1.0 kB", "1.6 MB", "5.0 GB", "3.0 TB",
    ]  # fmt: skip

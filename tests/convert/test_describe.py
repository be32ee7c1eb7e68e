"""What inspect shows, from indexes alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from tiny import TINY, Tiny
from torch import Tensor

from neoxkit.config.model import ModelConfig
from neoxkit.convert.describe import describe, lines, size
from neoxkit.data.tokenizer import Tokenizer
from neoxkit.errors import CheckpointError
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

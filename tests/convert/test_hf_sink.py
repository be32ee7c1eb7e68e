"""A Hugging Face folder is written whole or not at all, in files of the size asked for, with what belongs to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny as tinies
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.config.model import ModelConfig
from neoxkit.convert.hf_sink import HuggingFaceSink
from neoxkit.convert.open import open_foreign
from neoxkit.convert.transfer import export_model, export_sizes, import_model
from neoxkit.errors import CheckpointError, ConversionError
from neoxkit.families import by_name
from neoxkit.mesh import Mesh
from neoxkit.spec import Box, rows, whole

NEOX = by_name("gpt_neox")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A GPT-NeoX model, cut in six."""
    here = tmp_path_factory.mktemp("sink")
    tinies.save(tinies.tiny("gpt_neox-rotary").model(), here / "hf")
    import_model(open_foreign(here / "hf"), here / "checkpoint", Mesh(tp=2, pp=3))
    return Checkpoint.open(here / "checkpoint")


@pytest.mark.parametrize("most", [1, 5_000, 60_000, 10**9])
def test_files_of_the_size_asked_for(checkpoint: Checkpoint, tmp_path: Path, most: int) -> None:
    export_model(checkpoint, tmp_path / "hf", NEOX, most=most)
    planned = export_sizes(checkpoint, NEOX, None, most)
    files = {path.name: load_file(path) for path in (tmp_path / "hf").glob("*.safetensors")}
    assert {name: sum(t.nbytes for t in tensors.values()) for name, tensors in files.items()} == planned
    assert all(size <= most or len(files[name]) == 1 for name, size in planned.items())
    for name in files:
        with safe_open(tmp_path / "hf" / name, "pt") as file:
            assert file.metadata() == {"format": "pt"}
    index = tmp_path / "hf" / "model.safetensors.index.json"
    if len(files) == 1:
        assert list(files) == ["model.safetensors"]
        assert not index.exists()
        return
    about = json.loads(index.read_text())
    assert about["weight_map"] == {key: name for name, tensors in files.items() for key in tensors}
    everything = [tensor for tensors in files.values() for tensor in tensors.values()]
    assert about["metadata"]["total_size"] == sum(tensor.nbytes for tensor in everything)
    assert about["metadata"]["total_parameters"] == sum(tensor.numel() for tensor in everything)
    assert sorted(files) == [f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)]


def test_the_configuration_speaks_to_both(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Rotary settings and dtype as transformers 4 and as 5 spells them."""
    export_model(checkpoint, tmp_path / "hf", NEOX, "BF16")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["rotary_pct"], config["rotary_emb_base"], config["rope_scaling"]) == (1.0, 50000.0, None)
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 50000.0, "partial_rotary_factor": 1.0}
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    assert config["architectures"] == ["GPTNeoXForCausalLM"]
    origin = json.loads((tmp_path / "hf" / "neoxkit.json").read_text())
    assert origin["model"] == checkpoint.fingerprint
    assert [event["event"] for event in origin["lineage"]] == ["import"]


def test_blocks_in_any_order(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Rows of fused tensors, last ones first, the parts of a rule mixed."""
    export_model(checkpoint, tmp_path / "wanted", NEOX)
    with HuggingFaceSink(tmp_path / "hf", NEOX, checkpoint, {}, 10**9) as sink:
        blocks: list[tuple[str, Box]] = []
        for name in sink.names():
            blocks += [(name, box) for box in rows(whole(checkpoint.spec(name).shape), 500)]
        for name, box in reversed(blocks):
            sink.write(name, box, checkpoint.read(name, box))
        sink.commit()
    assert (tmp_path / "hf/model.safetensors").read_bytes() == (tmp_path / "wanted/model.safetensors").read_bytes()


class Broken(Checkpoint):
    """A checkpoint whose disk fails after some tensors."""

    def stream(self, name: str, want: Box | None = None, most_bytes: int = 1) -> Iterator[tuple[Box, Tensor]]:
        if name.endswith("layers.2.mlp.up.weight"):
            raise CheckpointError("the disk is gone", "get another")
        yield from super().stream(name, want)


@pytest.mark.parametrize("before", [False, True])
def test_what_fails_leaves_nothing_behind(checkpoint: Checkpoint, tmp_path: Path, before: bool) -> None:
    """And what was there stays as it was."""
    if before:
        export_model(checkpoint, tmp_path / "hf", NEOX)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="the disk is gone"):
        export_model(Broken(checkpoint.path, checkpoint.manifest), tmp_path / "hf", NEOX, force=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files
    assert [path.name for path in tmp_path.iterdir()] == ["hf"] * before


def test_a_destination_that_exists(checkpoint: Checkpoint, tmp_path: Path) -> None:
    export_model(checkpoint, tmp_path / "hf", NEOX)
    with pytest.raises(CheckpointError, match="exists"):
        export_model(checkpoint, tmp_path / "hf", NEOX)
    export_model(checkpoint, tmp_path / "hf", NEOX, "BF16", most=20_000, force=True)
    assert not (tmp_path / "hf/model.safetensors").exists()
    assert open_foreign(tmp_path / "hf").dtype("model/embed.weight") == "BF16"


@pytest.mark.parametrize("kind", ["checkpoint", "documents", "file"])
def test_force_replaces_models_only(checkpoint: Checkpoint, tmp_path: Path, kind: str) -> None:
    there = tmp_path / "there"
    if kind == "file":
        there.write_text("precious")
    else:
        there.mkdir()
        (there / "config.json").write_text("{}") if kind == "checkpoint" else None
        (there / ("manifest.json" if kind == "checkpoint" else "thesis.tex")).write_text("precious")
    why = "is not a folder" if kind == "file" else "is no Hugging Face model"
    with pytest.raises(CheckpointError, match=f"exists and {why}; choose another destination"):
        export_model(checkpoint, there, NEOX, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_model_that_does_not_fit(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ConversionError) as raised:
        export_model(checkpoint, tmp_path / "hf", by_name("llama"))
    for reason in (
        "residual: parallel, Llama has sequential",
        "norm: layernorm, Llama has rmsnorm",
        "gate in the MLP: none",
    ):
        assert reason in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_parts_of_one_tensor_in_different_dtypes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A checkpoint may hold q in bf16 and k in fp32; a fused tensor cannot."""

    class Mixed(Checkpoint):
        def dtype(self, name: str) -> str:
            return "BF16" if name.endswith("attn.q.weight") else super().dtype(name)

    mixed = Mixed(checkpoint.path, checkpoint.manifest)
    with pytest.raises(ConversionError, match=r"attn\.q\.weight and .* are BF16 and F32; choose one with --dtype"):
        export_model(mixed, tmp_path / "hf", NEOX)
    assert list(tmp_path.iterdir()) == []


def test_mixed_dtypes_of_whole_tensors_are_kept(tmp_path: Path) -> None:
    """bf16 matrices and fp32 norms, as some models have them."""
    tinies.save(tinies.tiny("llama-gqa").model(), tmp_path / "hf")
    tensors = load_file(tmp_path / "hf/model.safetensors")
    mixed = {key: value if "norm" in key else value.to(torch.bfloat16) for key, value in tensors.items()}
    save_file(mixed, tmp_path / "hf/model.safetensors")
    import_model(open_foreign(tmp_path / "hf"), tmp_path / "a", Mesh(tp=2))
    export_model(Checkpoint.open(tmp_path / "a"), tmp_path / "out", by_name("llama"))
    found = load_file(tmp_path / "out/model.safetensors")
    assert {key: value.dtype for key, value in found.items()} == {key: value.dtype for key, value in mixed.items()}
    assert all(torch.equal(found[key], mixed[key]) for key in mixed)
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"


def test_another_family_that_fits(tmp_path: Path) -> None:
    """A Mistral without a window is a Llama."""
    tinies.save(tinies.tiny("mistral-whole").model(), tmp_path / "hf")
    import_model(open_foreign(tmp_path / "hf"), tmp_path / "a", Mesh())
    export_model(Checkpoint.open(tmp_path / "a"), tmp_path / "llama", by_name("llama"))
    source = open_foreign(tmp_path / "llama")
    assert source.family.name == "llama"
    wanted: ModelConfig = open_foreign(tmp_path / "hf").config
    assert source.config == wanted.model_copy(update={"family": "llama"})

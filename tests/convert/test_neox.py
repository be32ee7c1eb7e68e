"""gpt-neox checkpoints give gpt-neox's own logits, whatever their generation, parallelism and file format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from neox_checkpoints import (
    ORACLES,
    STEP,
    Layers,
    first_names,
    llama_names,
    logits_error,
    per_head,
    read_layers,
    sequential,
    settings,
    unpack,
    write,
)

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.convert.compare import compare
from neoxkit.convert.describe import describe
from neoxkit.convert.neox.source import NeoxSource
from neoxkit.convert.open import is_foreign, is_hugging_face, open_any
from neoxkit.convert.transfer import import_model
from neoxkit.errors import CheckpointError, ConfigError, ConversionError
from neoxkit.mesh import Mesh

EXACT = 5e-6  # of logits up to 4: the order of additions


@pytest.fixture(scope="module")
def oracles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the checkpoints that gpt-neox wrote."""
    return unpack(tmp_path_factory.mktemp("oracles"))


@pytest.mark.parametrize("name", ORACLES)
def test_logits_of_gpt_neox(name: str, oracles: Path) -> None:
    """Every checkpoint that it wrote."""
    assert logits_error(open_any(oracles / name), oracles / name) < EXACT


@pytest.mark.parametrize("name", ["neox_tp2pp1", "llama_gqa_tp1pp1"])
def test_import_and_cut(name: str, oracles: Path, tmp_path: Path) -> None:
    """The imported checkpoint has the same tensors, cut for another mesh, and names where they came from."""
    source = NeoxSource(oracles / name)
    import_model(source, tmp_path / "out", Mesh(tp=2, pp=2))
    ours = Checkpoint.open(tmp_path / "out")
    assert compare(ours, source, values=True).same
    assert logits_error(ours, oracles / name) < EXACT
    assert ours.manifest.lineage[0]["format"] == "gpt-neox"
    assert ours.manifest.lineage[0].get("assumed") == ("gqa-layout=grouped" if "gqa" in name else None)


def test_opens_by_looking(oracles: Path) -> None:
    """Both the folder with `latest` and the step's own are recognised, and are no Hugging Face model."""
    for path in (oracles / "neox_tp1pp0", oracles / "neox_tp1pp0" / STEP):
        assert is_foreign(path)
        assert not is_hugging_face(path)
        assert describe(path)["kind"] == "gpt-neox"
    assert not is_foreign(oracles)


@pytest.mark.parametrize(
    ("name", "family"), [("neox_tp2pp1", "gpt_neox"), ("llama_mha_tp2pp1", "llama"), ("llama_gqa_tp1pp1", "llama")]
)
def test_family(name: str, family: str, oracles: Path) -> None:
    """The first family that can spell the model."""
    assert open_any(oracles / name).config.family == family


def test_padded_vocabulary_is_kept(oracles: Path) -> None:
    """All rows, also those that pad it."""
    assert open_any(oracles / "neox_tp2pp1").config.vocab == 512


GENERATIONS: list[tuple[str, Callable[[Layers], Layers], dict[str, Any]]] = [
    ("neox_tp2pp1", first_names, {}),
    ("seqres_tp2pp1", first_names, {}),
    ("llama_mha_tp2pp1", llama_names, {"mlp_type": "llama", "activation": "silu"}),
    ("llama_gqa_tp1pp1", lambda layers: per_head(llama_names(layers)), {"mlp_type": "llama", "activation": "silu"}),
]


@pytest.mark.parametrize(("name", "rename", "changes"), GENERATIONS)
def test_older_names(
    name: str, rename: Callable[[Layers], Layers], changes: dict[str, Any], oracles: Path, tmp_path: Path
) -> None:
    """The two generations of names before give the same logits."""
    made = write(tmp_path / "x", rename(read_layers(oracles / name)), settings(oracles / name, **changes))
    assert logits_error(NeoxSource(made), oracles / name) < EXACT


@pytest.mark.parametrize("name", ["neox_tp2pp1", "learned_tied_tp1pp1"])
def test_without_pipeline(name: str, oracles: Path, tmp_path: Path) -> None:
    """The same tensors in the files of ranks."""
    layers = read_layers(oracles / name)
    ranks = [sequential(layers, rank) for rank in range(1 + max(rank for _, rank in layers))]
    made = write(tmp_path / "x", {}, settings(oracles / name, pipe_parallel_size=0), ranks)
    assert logits_error(NeoxSource(made), oracles / name) < EXACT


def test_files_before_torch_1_6(oracles: Path, tmp_path: Path) -> None:
    """Pickles that are no zip archives."""

    def save(value: Any, path: Path) -> None:
        torch.save(value, path, _use_new_zipfile_serialization=False)

    oracle = oracles / "neox_tp2pp1"
    layers = read_layers(oracle)
    made = write(tmp_path / "x", {}, settings(oracle), [sequential(layers, rank) for rank in range(2)], save)
    assert logits_error(NeoxSource(made), oracle) < EXACT


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype, oracles: Path, tmp_path: Path) -> None:
    """Bits are only moved; a summed bias is rounded once."""
    oracle = oracles / "neox_tp2pp1"
    layers = read_layers(oracle)
    half = {at: {name: tensor.to(dtype) for name, tensor in tensors.items()} for at, tensors in layers.items()}
    source, wide = NeoxSource(write(tmp_path / "x", half, settings(oracle))), NeoxSource(oracle)
    for name in source.names():
        value = source.read(name)
        assert value.dtype == dtype
        if name.endswith(("attn.o.bias", "mlp.down.bias")):
            torch.testing.assert_close(value, wide.read(name).to(dtype))
        else:
            assert torch.equal(value, wide.read(name).to(dtype)), name


def test_parts_are_the_whole(oracles: Path) -> None:
    """Any box of a tensor is that part of it."""
    for name in ("llama_gqa_tp1pp1", "neox_tp2pp1"):
        source = NeoxSource(oracles / name)
        for tensor in source.names():
            value = source.read(tensor)
            box = tuple((size // 3, size - size // 4) for size in value.shape)
            assert torch.equal(source.read(tensor, box), value[tuple(slice(*span) for span in box)])
            assert torch.equal(torch.cat([part for _, part in source.stream(tensor)]), value)


def test_layout_of_queries_must_be_known(oracles: Path, tmp_path: Path) -> None:
    """Without evidence the two layouts of 2024 are not guessed; what is given is used, and noted."""
    oracle = oracles / "llama_gqa_tp1pp1"
    layers = read_layers(oracle)
    made = write(tmp_path / "x", layers, settings(oracle))
    with pytest.raises(ConversionError, match=r"2 key/value heads of 4.*--assume gqa-layout=grouped"):
        NeoxSource(made)
    source = NeoxSource(made, assume={"gqa-layout": "grouped"})
    assert logits_error(source, oracle) < EXACT
    assert source.lineage["assumed"] == "gqa-layout=grouped"
    old = write(tmp_path / "y", per_head(layers), settings(oracle))
    assert logits_error(NeoxSource(old, assume={"gqa-layout": "per-head"}), oracle) < EXACT
    assert logits_error(NeoxSource(old, assume={"gqa-layout": "grouped"}), oracle) > 0.01
    with pytest.raises(ConfigError, match=r"gqa-layout=grouped|per-head"):
        NeoxSource(old, assume={"gqa-layout": "guess"})


def test_evidence_is_told(oracles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was assumed, and why."""
    NeoxSource(oracles / "llama_gqa_tp1pp1")
    assert "assumed gqa-layout=grouped: DeepSpeed 0.19.8" in capsys.readouterr().err


def test_row_biases(oracles: Path) -> None:
    """With gpt_j_residual each rank adds its own, else one is the bias: the logits above are of both."""
    layers = read_layers(oracles / "neox_tp2pp1")
    parts = [layers[2, rank]["attention.dense.bias"] for rank in range(2)]
    bias = "model/layers.0.attn.o.bias"
    assert torch.equal(NeoxSource(oracles / "neox_tp2pp1").read(bias), parts[0] + parts[1])
    copied = NeoxSource(oracles / "neox_tp2pp1", assume={"row-bias": "copy"})
    assert torch.equal(copied.read(bias), parts[0])
    assert copied.lineage["assumed"] == "row-bias=copy"


def test_ranks_that_drifted_apart(oracles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A norm that differs between ranks is told by name and by how much, once; its mean is taken."""
    oracle = oracles / "neox_tp2pp1"
    layers = read_layers(oracle)
    layers[3, 1]["input_layernorm.weight"] += torch.linspace(0, 0.25, 64)
    source = NeoxSource(write(tmp_path / "x", layers, settings(oracle)))
    values = {name: source.read(name) for name in source.names()}
    source.read("model/layers.1.norm1.weight")
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert "'input_layernorm.weight' of layer 3" in told[0]
    assert "differs by up to 0.25" in told[0]
    mean = (layers[3, 0]["input_layernorm.weight"] + layers[3, 1]["input_layernorm.weight"]) / 2
    torch.testing.assert_close(values["model/layers.1.norm1.weight"], mean)


def test_given_settings_go_before(oracles: Path, tmp_path: Path) -> None:
    """Those of --config, in their order, over those inside; hyphens and underscores are alike."""
    for number, text in enumerate(("rotary-pct: 0.5\nlayernorm_epsilon: 1e-3", "rotary_pct: 1.0")):
        (tmp_path / f"{number}.yml").write_text(text)
    config = NeoxSource(oracles / "neox_tp1pp0", [tmp_path / "0.yml", tmp_path / "1.yml"]).config
    assert config.position.fraction == 1.0  # type: ignore[union-attr]
    assert config.norm.eps == 1e-3


def test_several_checkpoints(oracles: Path, tmp_path: Path) -> None:
    """Without `latest` one has to be named."""
    oracle = oracles / "neox_tp2pp1"
    for name in ("global_step1", "global_step2"):
        write(tmp_path / name, read_layers(oracle), settings(oracle))
    with pytest.raises(CheckpointError, match=r"2 gpt-neox checkpoints.*global_step1"):
        NeoxSource(tmp_path)
    (tmp_path / "latest").write_text("global_step2")
    assert NeoxSource(tmp_path).folder.name == "global_step2"
    (tmp_path / "latest").write_text("../neox_tp2pp1")
    with pytest.raises(CheckpointError, match="2 gpt-neox checkpoints"):
        NeoxSource(tmp_path)

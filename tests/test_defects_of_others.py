"""Silent errors that others are known to make, and neoxkit does not; docs/defects.md says where each is tested."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from neox_checkpoints import ORACLES, read_layers, sequential, settings, unpack, write
from safetensors.torch import load_file
from tiny import Tiny

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.convert.neox.source import NeoxSource
from neoxkit.convert.open import open_any, open_foreign
from neoxkit.convert.transfer import choose_family, export_model, import_model
from neoxkit.errors import ConversionError, NeoxkitError
from neoxkit.families import by_name
from neoxkit.mesh import Mesh

EXACT = 5e-6
PAGE = Path(__file__).parents[1] / "docs" / "defects.md"


@pytest.fixture(scope="module")
def oracles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the checkpoints that gpt-neox wrote."""
    return unpack(tmp_path_factory.mktemp("oracles"))


def exported(source: Path, here: Path, family: str = "auto", mesh: Mesh | None = None) -> tuple[Path, dict[str, Any]]:
    """A checkpoint of gpt-neox as a Hugging Face model, by way of ours; and its config.json."""
    import_model(open_foreign(source), here / "checkpoint", mesh or Mesh())
    with Checkpoint.open(here / "checkpoint") as checkpoint:
        export_model(checkpoint, here / "hf", choose_family(checkpoint, family))
    return here / "hf", json.loads((here / "hf" / "config.json").read_bytes())


def logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """What transformers computes; every tensor of the model must be in the files, and no other."""
    from transformers import AutoModelForCausalLM

    model, about = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not about["missing_keys"]
    assert not about["unexpected_keys"]
    with torch.no_grad():
        found: torch.Tensor = model.eval()(ids).logits
    return found


@pytest.mark.parametrize("name", ORACLES)
def test_a_converted_model_computes_what_it_computed_before(name: str, oracles: Path, tmp_path: Path) -> None:
    """The rows of q, k and v come out in another order, and biases doubled, though names and shapes are right.

    gpt-neox's converter to Llama takes interleaved heads for blocks, and sums biases that ranks hold alike.
    Only the logits of the program that wrote the weights show it.
    """
    folder, config = exported(oracles / name, tmp_path, mesh=Mesh(tp=2))
    ids, wanted = (torch.from_numpy(np.load(oracles / name / f"{part}.npy")) for part in ("input_ids", "ref_logits"))
    assert (logits(folder, ids) - wanted).abs().max() < EXACT
    held = load_file(folder / "model.safetensors")
    up = next(value for key, value in held.items() if key.endswith(("up_proj.weight", "h_to_4h.weight", "c_fc.weight")))
    assert (config["n_inner"] or 256) == up.shape[1] if "n_inner" in config else config["intermediate_size"] == len(up)


def test_fused_gelu_is_not_the_exact_one(oracles: Path, tmp_path: Path) -> None:
    """A model trained with the fused gelu, which is an approximation by tanh, is exported with the exact function."""
    oracle = oracles / "neox_tp1pp0"
    layers = read_layers(oracles / "neox_tp2pp1")
    made = write(tmp_path / "x", layers, settings(oracle, bias_gelu_fusion=True, pipe_parallel_size=1))
    _, config = exported(made, tmp_path)
    from transformers.activations import ACT2FN

    x = torch.linspace(-4, 4, 101)
    approximated = torch.nn.functional.gelu(x, approximate="tanh")
    assert (ACT2FN[config["hidden_act"]](x) - approximated).abs().max() < 1e-6
    assert (torch.nn.functional.gelu(x) - approximated).abs().max() > 1e-4


def test_learned_positions_are_not_dropped(oracles: Path, tmp_path: Path) -> None:
    """A model with learned positions is exported as one with rotary positions, and its positions are left out."""
    import_model(open_any(oracles / "learned_tied_tp1pp1"), tmp_path / "a", Mesh())  # type: ignore[arg-type]
    with Checkpoint.open(tmp_path / "a") as checkpoint:
        assert "model/position.weight" in checkpoint.names()
        with pytest.raises(ConversionError, match="position: learned, GPT-NeoX has rotary"):
            export_model(checkpoint, tmp_path / "hf", by_name("gpt_neox"))
    assert not (tmp_path / "hf").exists()


def test_epsilon_and_window_are_gpt_neoxs_own(oracles: Path, tmp_path: Path) -> None:
    """What the settings leave out gets a default of another program: 1e-6 for 1e-8, a window of 4096 for none."""
    oracle = oracles / "llama_gqa_tp1pp1"
    made = write(tmp_path / "x", read_layers(oracle), settings(oracle, rms_norm_epsilon=...))
    import_model(NeoxSource(made, assume={"gqa-layout": "grouped"}), tmp_path / "a", Mesh())
    with Checkpoint.open(tmp_path / "a") as checkpoint:
        assert (checkpoint.config.norm.eps, checkpoint.config.mixer.window) == (1e-8, None)
        export_model(checkpoint, tmp_path / "hf", by_name("mistral"))
    config = json.loads((tmp_path / "hf" / "config.json").read_bytes())
    assert (config["rms_norm_eps"], config["sliding_window"]) == (1e-8, None)


@pytest.mark.parametrize("options", [{"attention_bias": True}, {"mlp_bias": True}])
def test_biases_are_not_dropped(options: dict[str, bool], tmp_path: Path) -> None:
    """A model with biases is exported as a family that has none, and they are left out."""
    Tiny("llama", "x", options).model().save_pretrained(tmp_path / "original")
    import_model(open_foreign(tmp_path / "original"), tmp_path / "a", Mesh())
    with Checkpoint.open(tmp_path / "a") as checkpoint:
        with pytest.raises(ConversionError, match=r"bias of .*: one, Mistral has none"):
            export_model(checkpoint, tmp_path / "hf", by_name("mistral"))
        export_model(checkpoint, tmp_path / "hf", by_name("llama"))
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("original", "hf"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_model_of_one_layer(oracles: Path, tmp_path: Path) -> None:
    """The names of the MLP are looked for in the second layer, which a model of one has not."""
    oracle = oracles / "neox_tp2pp1"
    layers = {at: tensors for at, tensors in read_layers(oracle).items() if at[0] in (0, 2)}
    ends = sorted({at[0] for at in read_layers(oracle)})[-2:]
    for (layer, rank), tensors in read_layers(oracle).items():
        if layer in ends:
            layers[layer - 2, rank] = tensors
    source = open_foreign(write(tmp_path / "x", layers, settings(oracle, num_layers=1)))
    assert source.config.depth == 1
    assert all(source.read(name).isfinite().all() for name in source.names())


@pytest.mark.parametrize("pipeline", [True, False])
def test_the_kind_of_files_is_looked_at(pipeline: bool, oracles: Path, tmp_path: Path) -> None:
    """Which files a checkpoint consists of is taken from a setting, whose default is another than the trainer's."""
    oracle = oracles / "neox_tp2pp1"
    layers = read_layers(oracle)
    given = settings(oracle, pipe_parallel_size=...)
    ranks = [] if pipeline else [sequential(layers, rank) for rank in range(2)]
    made = write(tmp_path / "x", layers if pipeline else {}, given, ranks)
    assert open_foreign(made).config.depth == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_keeps_its_precision(dtype: torch.dtype, oracles: Path, tmp_path: Path) -> None:
    """bf16 weights are saved in fp32, twice as large, since a setting for fp16 is not there."""
    oracle = oracles / "llama_mha_tp2pp1"
    half = {at: {name: value.to(dtype) for name, value in held.items()} for at, held in read_layers(oracle).items()}
    folder, config = exported(write(tmp_path / "x", half, settings(oracle)), tmp_path)
    assert {value.dtype for value in load_file(folder / "model.safetensors").values()} == {dtype}
    assert config["torch_dtype"] == config["dtype"] == str(dtype).removeprefix("torch.")


def test_the_vocabulary_does_not_depend_on_the_cut(oracles: Path, tmp_path: Path) -> None:
    """A vocabulary is padded to what the number of devices divides, so that a model recut has another shape."""
    source = open_foreign(oracles / "neox_tp1pp0")
    for tp in (1, 2, 4):
        import_model(source, tmp_path / str(tp), Mesh(tp=tp))
    opened = [Checkpoint.open(tmp_path / str(tp)) for tp in (1, 2, 4)]
    assert len({each.fingerprint for each in opened}) == 1
    assert {each.spec("model/embed.weight").shape for each in opened} == {(512, 64)}


@pytest.mark.parametrize("wrong", ["nothing", "a folder of text", "a run without a checkpoint"])
def test_a_wrong_folder_is_an_error(wrong: str, tmp_path: Path) -> None:
    """A folder without a checkpoint is a warning, after which random weights are trained, or measured."""
    folder = tmp_path / "x"
    if wrong != "nothing":
        folder.mkdir()
        (folder / "notes.txt").write_text("x")
    if wrong == "a run without a checkpoint":
        (folder / "latest").write_text("global_step1")
        (folder / "global_step1").mkdir()
    for act in (open_any, Checkpoint.open):
        with pytest.raises(
            NeoxkitError, match=r"no such file or folder|not a (neoxkit )?checkpoint|no config.json|not a neoxkit one"
        ):
            act(folder)


def named_in(page: str) -> list[tuple[str, str]]:
    """The file and the function of each test that the page names."""
    return re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)


def test_every_test_that_the_page_names_exists() -> None:
    """And every test of this file, but for this one, is in it."""
    root, page = PAGE.parents[1], PAGE.read_text()
    named = named_in(page)
    assert len(named) > 40
    functions: dict[str, set[str]] = {}
    for file, name in named:
        if file not in functions:
            tree = ast.parse((root / file).read_text())
            functions[file] = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name in functions[file], f"{file}::{name}"
    here = f"tests/{Path(__file__).name}"
    own = {name for name in functions[here] if name.startswith("test_")} - {
        "test_every_test_that_the_page_names_exists"
    }
    assert own == {name for file, name in named if file == here}
    rows = [line for line in page.splitlines() if line.startswith("| ") and "---" not in line]
    assert all(named_in(row) or row.startswith("| Defect") for row in rows)

"""Checkpoints with everything in them: weights, masters and moments, trainer state, tokenizer, two files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from neox_checkpoints import unpack
from neox_states import State, read_state
from torch import Tensor

from neoxkit.checkpoint.dtypes import name_of
from neoxkit.checkpoint.plan import cut
from neoxkit.checkpoint.writer import Writer
from neoxkit.config.model import ModelConfig
from neoxkit.data.tokenizer.train import train_bpe
from neoxkit.mesh import Mesh
from neoxkit.nn.decoder import specs
from neoxkit.spec import TensorSpec

VOCAB = 270
STEP, SAMPLES, TOKENS = 7, 28, 448
COMPONENTS = ("model/", "optimizer/master/", "optimizer/exp_avg/", "optimizer/exp_avg_sq/")

Save = Callable[..., Path]


@pytest.fixture(scope="session")
def config() -> ModelConfig:
    """A tiny decoder whose embedding has just enough rows for its tokenizer."""
    given = {"family": "gpt_neox", "depth": 3, "width": 16, "vocab": VOCAB, "context": 32, "mixer": {"heads": 4}}
    return ModelConfig.model_validate({**given, "tokens": {"eos": [0]}})


@pytest.fixture(scope="session")
def tensors(config: ModelConfig) -> dict[str, Tensor]:
    """The values of a sound checkpoint: bf16 weights, the fp32 masters that they are rounded from, moments."""
    seed = torch.Generator().manual_seed(5)
    found: dict[str, Tensor] = {}
    for component in COMPONENTS:
        for name, spec in specs(config).items():
            value = torch.randn(spec.shape, generator=seed)
            if component == "model/":
                found["optimizer/master/" + name] = value
                found["model/" + name] = value.bfloat16()
            else:
                found.setdefault(component + name, value)
    return found


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tokenizer with VOCAB entries."""
    folder = tmp_path_factory.mktemp("tokenizer") / "bpe"
    train_bpe(
        ["the quick brown fox jumps over the lazy dog, the lazy dog sleeps and the fox laughs"] * 4, VOCAB, folder
    )
    return folder


@pytest.fixture
def trainer(config: ModelConfig) -> dict[str, Any]:
    """What the plain engine saves beside its tensors, in short."""
    groups = [{"weight_decay": 0.1, "names": list(specs(config))}]
    optimizer = {"kind": "adamw", "steps": STEP, "groups": groups}
    return {"step": STEP, "samples": SAMPLES, "tokens": TOKENS, "optimizer": optimizer}


@pytest.fixture
def save(
    tmp_path: Path, config: ModelConfig, tensors: Mapping[str, Tensor], tokenizer: Path, trainer: dict[str, Any]
) -> Save:
    """Writes the tensors as a checkpoint, with sound checksums of whatever they are, and returns its folder."""

    def saved(
        name: str = "step-00000007",
        values: Mapping[str, Tensor] = tensors,
        mesh: Mesh | None = None,
        **options: Any,
    ) -> Path:
        known = specs(config)
        mesh = mesh or Mesh(tp=2)
        shapes = {
            each: known[short] if (short := each.rpartition("/")[2]) in known and known[short].shape == value.shape
            else TensorSpec(short, tuple(value.shape))
            for each, value in values.items()
        }  # fmt: skip
        parts = cut(shapes, {each: name_of(value.dtype) for each, value in values.items()}, mesh)
        about: dict[str, Any] = {
            "config": config,
            "mesh": {"tp": mesh.tp, "pp": mesh.pp},
            "step": STEP,
            "samples": SAMPLES,
            "tokens": TOKENS,
            "lineage": [{"event": "train", "from_step": 0, "to_step": STEP}],
            "tokenizer": {path.name: path.read_bytes() for path in tokenizer.iterdir()},
            "trainer": trainer,
            **options,
        }
        with Writer(tmp_path / name, parts, **about) as writer:
            for part in parts:
                writer.write(part.name, part.box, values[part.name][tuple(slice(*span) for span in part.box)], part.run)
            writer.commit()
        return tmp_path / name

    return saved


@pytest.fixture(scope="session")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint that gpt-neox wrote, and went on from."""
    return unpack(tmp_path_factory.mktemp("oracles")) / "neox_tp1pp0"


@pytest.fixture(scope="session")
def state(oracle: Path) -> State:
    """Its masters and moments."""
    return read_state(oracle)

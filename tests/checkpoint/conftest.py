"""A small model's tensors, and checkpoints of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from neoxkit.checkpoint import dtypes
from neoxkit.checkpoint.writer import Part, Writer, cut
from neoxkit.config.model import ModelConfig
from neoxkit.mesh import Mesh
from neoxkit.spec import Axis, Role, Split, TensorSpec

DEPTH = 4
ROWS, COLUMNS = Split(0, Axis.TP, 4), Split(1, Axis.TP, 4)
SHAPES: dict[str, tuple[tuple[int, ...], tuple[Split, ...], Role]] = {
    "embed.weight": ((50, 16), (Split(0, Axis.TP, ragged=True),), Role.EMBED),
    **{
        f"layers.{layer}.{part}": about
        for layer in range(DEPTH)
        for part, about in {
            "norm1.weight": ((16,), (), Role.NORM),
            "attn.q.weight": ((16, 16), (ROWS,), Role.MATRIX),
            "attn.k.weight": ((8, 16), (ROWS,), Role.MATRIX),
            "attn.o.weight": ((16, 16), (COLUMNS,), Role.OUTPUT),
            "mlp.up.weight": ((3, 32, 16), (COLUMNS,), Role.MATRIX),
        }.items()
    },
    "head.weight": ((50, 16), (Split(0, Axis.TP, ragged=True),), Role.HEAD),
}
SPECS = {f"model/{name}": TensorSpec(name, *about) for name, about in SHAPES.items()}

Tensors = Mapping[str, torch.Tensor]
Save = Callable[..., Path]


@pytest.fixture
def config() -> ModelConfig:
    """What the network of the tensors computes, about."""
    given = {"family": "llama", "depth": DEPTH, "width": 16, "vocab": 50, "context": 32, "mixer": {"heads": 4}}
    return ModelConfig.model_validate(given)


@pytest.fixture
def specs() -> dict[str, TensorSpec]:
    """The model's tensors: rows, columns, stacked, ragged, unsplit."""
    return dict(SPECS)


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    """Their values, in bf16."""
    seed = torch.Generator().manual_seed(0)
    return {name: torch.randn(spec.shape, generator=seed).bfloat16() for name, spec in SPECS.items()}


@pytest.fixture
def save(tmp_path: Path, config: ModelConfig, tensors: Tensors) -> Save:
    """Writes the tensors (or others) as a checkpoint for a mesh (or as parts say), and returns its folder."""

    def saved(
        name: str = "checkpoint",
        mesh: Mesh | None = None,
        values: Tensors = tensors,
        parts: list[Part] | None = None,
        **options: Any,
    ) -> Path:
        mesh = mesh or Mesh()
        known = {name: SPECS.get(name, TensorSpec(name[6:], tuple(value.shape))) for name, value in values.items()}
        dtype = {name: dtypes.name_of(value.dtype) for name, value in values.items()}
        parts = cut(known, dtype, mesh) if parts is None else parts
        folder = tmp_path / name
        with Writer(folder, parts, config=config, mesh={"tp": mesh.tp, "pp": mesh.pp}, **options) as writer:
            for part in parts:
                value = values[part.name][tuple(slice(*span) for span in part.box)]
                if part.run is not None:
                    value = value.reshape(-1)[slice(*part.run)]
                writer.write(part.name, part.box, value, part.run)
            writer.commit()
        return folder

    return saved

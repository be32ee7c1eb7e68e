"""Linear layers and embeddings that declare their logical tensors where they create parameters.

A running model may fuse what a checkpoint keeps apart: one parameter is then several logical
tensors stacked on dimension 0, and `held` lists them. Nothing else in neoxkit states a shape.

Shapes: B batch, T tokens, width, out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neoxkit.spec import Axis, Box, Role, Split, TensorSpec, whole


class Held(NamedTuple):
    """A logical tensor, or this process's box of it, and the rows of the parameter where it lies."""

    spec: TensorSpec
    box: Box
    rows: slice


def declare(specs: Sequence[TensorSpec]) -> nn.Parameter:
    """An uninitialised parameter that holds logical tensors stacked on dimension 0.

    The parameter carries `.held`, a list of Held. Device and dtype are torch's defaults of the
    moment: build under `torch.device("meta")` to learn shapes without memory.
    """
    held: list[Held] = []
    first = 0
    for spec in specs:
        last = first + spec.shape[0]
        held.append(Held(spec, whole(spec.shape), slice(first, last)))
        first = last
    parameter = nn.Parameter(torch.empty(first, *specs[0].shape[1:]))
    parameter.held = held  # type: ignore[attr-defined]
    return parameter


class Column(nn.Module):
    """y = x W^T + b for one or several matrices at once, whose output rows tensor parallelism divides.

    `outputs` maps each logical name ("layers.0.attn.q") to its output rows; one matrix product
    computes them all. Input [..., width], output [..., sum of rows].
    """

    def __init__(self, outputs: dict[str, int], width: int, unit: int = 1, bias: bool = False) -> None:
        super().__init__()
        split = (Split(0, Axis.TP, unit),)
        self.sizes = list(outputs.values())
        self.weight = declare([TensorSpec(f"{name}.weight", (out, width), split) for name, out in outputs.items()])
        self.bias = (
            declare([TensorSpec(f"{name}.bias", (out,), split, Role.BIAS) for name, out in outputs.items()])
            if bias
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., sum of rows]."""
        return F.linear(x, self.weight, self.bias)


class Row(nn.Module):
    """y = x W^T + b whose input columns tensor parallelism divides; it writes to the residual stream.

    Input [..., hidden], output [..., width]. The bias belongs to the sum and is not divided.
    """

    def __init__(self, name: str, hidden: int, width: int, unit: int = 1, bias: bool = False) -> None:
        super().__init__()
        spec = TensorSpec(f"{name}.weight", (width, hidden), (Split(1, Axis.TP, unit),), Role.OUTPUT)
        self.weight = declare([spec])
        self.bias = declare([TensorSpec(f"{name}.bias", (width,), role=Role.BIAS)]) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] -> [..., width]."""
        return F.linear(x, self.weight, self.bias)


class Embed(nn.Module):
    """Rows of a table by index; the rows of a vocabulary are divided over tensor parallelism."""

    def __init__(self, name: str, rows: int, width: int, divided: bool = True) -> None:
        super().__init__()
        splits = (Split(0, Axis.TP, ragged=True),) if divided else ()
        self.weight = declare([TensorSpec(f"{name}.weight", (rows, width), splits, Role.EMBED)])

    def forward(self, ids: Tensor) -> Tensor:
        """[B, T] integers -> [B, T, width]."""
        return F.embedding(ids, self.weight)


class Head(nn.Module):
    """Logits from hidden states. A tied head shares the embedding's parameter and declares nothing."""

    def __init__(self, name: str, vocab: int, width: int, tied: Embed | None = None) -> None:
        super().__init__()
        if tied is None:
            splits = (Split(0, Axis.TP, ragged=True),)
            self.weight = declare([TensorSpec(f"{name}.weight", (vocab, width), splits, Role.HEAD)])
        else:
            self.weight = tied.weight

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., width] -> [..., vocab]."""
        return F.linear(hidden, self.weight)

"""The feed-forward sublayer, plain or gated."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from neoxkit.config.model import ModelConfig
from neoxkit.parallel.division import UNDIVIDED, Division
from neoxkit.parallel.layers import Column, Row

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
}


class Mlp(nn.Module):
    """down(act(up x)). Holds `{name}.up` and `{name}.down`."""

    def __init__(self, config: ModelConfig, name: str, division: Division = UNDIVIDED) -> None:
        super().__init__()
        mlp = config.mlp
        self.up = Column({f"{name}.up": mlp.hidden}, config.width, bias=mlp.bias, division=division)
        self.down = Row(f"{name}.down", mlp.hidden, config.width, bias=mlp.bias, division=division)
        self.activation = mlp.activation
        self.activate: Callable[[str, Tensor], Tensor] = activated

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return self.down(self.activate(self.activation, self.up(x)))


def activated(activation: str, x: Tensor) -> Tensor:
    """act(x)."""
    return ACTIVATIONS[activation](x)


class GatedMlp(nn.Module):
    """down(act(gate x) * up x) (arXiv 2002.05202). Holds `{name}.gate` and `.up` fused, and `.down`."""

    def __init__(self, config: ModelConfig, name: str, division: Division = UNDIVIDED) -> None:
        super().__init__()
        mlp = config.mlp
        both = {f"{name}.gate": mlp.hidden, f"{name}.up": mlp.hidden}
        self.gate_up = Column(both, config.width, bias=mlp.bias, division=division)
        self.down = Row(f"{name}.down", mlp.hidden, config.width, bias=mlp.bias, division=division)
        self.activation = mlp.activation
        self.activate: Callable[[str, Tensor], Tensor] = gated

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return self.down(self.activate(self.activation, self.gate_up(x)))


def gated(activation: str, fused: Tensor) -> Tensor:
    """act(gate) * up of gates and ups side by side, [..., 2 hidden] -> [..., hidden]."""
    gate, up = fused.chunk(2, dim=-1)
    return ACTIVATIONS[activation](gate) * up

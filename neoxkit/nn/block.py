"""One layer of the decoder: norm, mixer, norm, mlp, joined by a sequential or a parallel residual."""

from __future__ import annotations

from torch import Tensor, nn

from neoxkit.config.model import ModelConfig
from neoxkit.nn.attention import Context, GroupedQueryAttention
from neoxkit.nn.mlp import GatedMlp, Mlp
from neoxkit.nn.norm import build_norm
from neoxkit.nn.state import LayerState


class Block(nn.Module):
    """x += attn(norm1 x); x += mlp(norm2 x)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        name = f"layers.{layer}"
        self.norm1 = build_norm(config.norm, f"{name}.norm1", config.width)
        self.attn = GroupedQueryAttention(config, f"{name}.attn")
        self.norm2 = build_norm(config.norm, f"{name}.norm2", config.width)
        self.mlp = (GatedMlp if config.mlp.gated else Mlp)(config, f"{name}.mlp")

    def forward(self, x: Tensor, context: Context, state: LayerState | None = None) -> Tensor:
        """[B, T, width] -> [B, T, width]."""
        x = x + self.attn(self.norm1(x), context, state)
        return x + self.mlp(self.norm2(x))


class ParallelBlock(Block):
    """x += attn(norm1 x) + mlp(norm2 x): both sublayers read the same x (GPT-J, GPT-NeoX)."""

    def forward(self, x: Tensor, context: Context, state: LayerState | None = None) -> Tensor:
        """[B, T, width] -> [B, T, width]."""
        return x + self.attn(self.norm1(x), context, state) + self.mlp(self.norm2(x))


def build_block(config: ModelConfig, layer: int) -> Block:
    """The layer that the configuration asks for."""
    return (ParallelBlock if config.residual == "parallel" else Block)(config, layer)

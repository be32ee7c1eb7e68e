"""One layer of the decoder: mixer, mlp and their norms, joined to the residual stream in one of four ways."""

from __future__ import annotations

from torch import Tensor, nn

from neoxkit.config.model import ModelConfig
from neoxkit.nn.attention import Context, GroupedQueryAttention
from neoxkit.nn.mlp import GatedMlp, Mlp
from neoxkit.nn.norm import build_norm
from neoxkit.nn.paged import PagedLayer
from neoxkit.nn.state import LayerState
from neoxkit.parallel.division import UNDIVIDED, Division
from neoxkit.parallel.layers import join_rows


class Block(nn.Module):
    """x += attn(norm1 x); x += mlp(norm2 x)."""

    def __init__(self, config: ModelConfig, layer: int, division: Division = UNDIVIDED) -> None:
        super().__init__()
        name = f"layers.{layer}"
        self.norm1 = build_norm(config.norm, f"{name}.norm1", config.width, division)
        self.attn = GroupedQueryAttention(config, f"{name}.attn", division)
        self.norm2 = build_norm(config.norm, f"{name}.norm2", config.width, division)
        self.mlp = (GatedMlp if config.mlp.gated else Mlp)(config, f"{name}.mlp", division)

    def forward(self, x: Tensor, context: Context, state: LayerState | PagedLayer | None = None) -> Tensor:
        """[B, T, width] -> [B, T, width]."""
        x = x + self.attn(self.norm1(x), context, state)
        return x + self.mlp(self.norm2(x))


class ParallelBlock(Block):
    """x += attn(norm1 x) + mlp(norm2 x): both sublayers read the same x (GPT-J, GPT-NeoX)."""

    def __init__(self, config: ModelConfig, layer: int, division: Division = UNDIVIDED) -> None:
        super().__init__(config, layer, division)
        self.add = join_rows(self.attn.o, self.mlp.down, division)

    def forward(self, x: Tensor, context: Context, state: LayerState | PagedLayer | None = None) -> Tensor:
        """[B, T, width] -> [B, T, width]."""
        return self.add(x, self.attn(self.norm1(x), context, state), self.mlp(self.norm2(x)))


class PostNormBlock(Block):
    """x += norm1(attn x); x += norm2(mlp x): what a sublayer adds is normed, not what it reads (OLMo 2)."""

    def forward(self, x: Tensor, context: Context, state: LayerState | PagedLayer | None = None) -> Tensor:
        """[B, T, width] -> [B, T, width]."""
        x = x + self.norm1(self.attn(x, context, state))
        return x + self.norm2(self.mlp(x))


class SharedNormBlock(nn.Module):
    """x += attn(norm1 x) + mlp(norm1 x): a parallel residual with one norm for both (GPT-J, StableLM)."""

    def __init__(self, config: ModelConfig, layer: int, division: Division = UNDIVIDED) -> None:
        super().__init__()
        name = f"layers.{layer}"
        self.norm1 = build_norm(config.norm, f"{name}.norm1", config.width, division)
        self.attn = GroupedQueryAttention(config, f"{name}.attn", division)
        self.mlp = (GatedMlp if config.mlp.gated else Mlp)(config, f"{name}.mlp", division)
        self.add = join_rows(self.attn.o, self.mlp.down, division)

    def forward(self, x: Tensor, context: Context, state: LayerState | PagedLayer | None = None) -> Tensor:
        """[B, T, width] -> [B, T, width]."""
        normed = self.norm1(x)
        return self.add(x, self.attn(normed, context, state), self.mlp(normed))


BLOCKS: dict[str, type[Block] | type[SharedNormBlock]] = {
    "sequential": Block,
    "parallel": ParallelBlock,
    "shared": SharedNormBlock,
    "post": PostNormBlock,
}


def build_block(config: ModelConfig, layer: int, division: Division = UNDIVIDED) -> nn.Module:
    """The layer that the configuration asks for."""
    return BLOCKS[config.residual](config, layer, division)

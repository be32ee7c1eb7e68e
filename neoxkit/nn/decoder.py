"""The decoder, the specs of its logical tensors, and the pieces that a live one holds.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from neoxkit.config.model import Learned, ModelConfig
from neoxkit.nn.attention import build_context
from neoxkit.nn.block import build_block
from neoxkit.nn.norm import build_norm
from neoxkit.nn.state import State
from neoxkit.parallel.layers import Embed, Head, Held
from neoxkit.spec import Box, TensorSpec


class Decoder(nn.Module):
    """A decoder-only language model. Its parameters are not initialised: load them, or `nn.init.initialise`."""

    def __init__(
        self, config: ModelConfig, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype or before)
        try:
            with torch.device(device or "cpu"):
                self._build(config)
        finally:
            torch.set_default_dtype(before)

    def _build(self, config: ModelConfig) -> None:
        self.config = config
        self.embed = Embed("embed", config.vocab, config.width)
        learned = isinstance(config.position, Learned)
        self.position = Embed("position", config.context, config.width, divided=False) if learned else None
        self.embed_norm = build_norm(config.norm, "embed.norm", config.width) if config.embed_norm else None
        self.layers = nn.ModuleList(build_block(config, layer) for layer in range(config.depth))
        self.norm = build_norm(config.norm, "norm", config.width)
        self.head = Head("head", config.vocab, config.width, self.embed if config.tied else None)

    def hidden(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        state: State | None = None,
    ) -> Tensor:
        """The residual stream after the final norm, [B, T, width], of token `ids` [B, T].

        `positions` [B, T] count from 0 in each row unless given. `segments` [B, T] keeps tokens from
        seeing other segments. `state` remembers the tokens of earlier calls.
        """
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)[None]
        if state is not None:
            positions = positions.expand(ids.shape)
        x = self.embed(ids)
        if self.position is not None:
            x = x + self.position(positions)
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        context = build_context(self.config, positions, segments, x.dtype, state is not None)
        for layer, block in enumerate(self.layers):
            x = block(x, context, None if state is None else state.layers[layer])
        hidden: Tensor = self.norm(x)
        return hidden

    def forward(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        state: State | None = None,
    ) -> Tensor:
        """Logits [B, T, vocab]; arguments as for `hidden`."""
        logits: Tensor = self.head(self.hidden(ids, positions, segments, state))
        return logits


def specs(config: ModelConfig) -> dict[str, TensorSpec]:
    """Every logical tensor of a model, by name, in the order of the forward pass.

    The model itself says so: it is built on the meta device, without memory.
    """
    model = Decoder(config, device="meta")
    return {held.spec.name: held.spec for parameter in model.parameters() for held in holdings(parameter)}


def holdings(parameter: Tensor) -> list[Held]:
    """What a parameter of a decoder holds."""
    held: list[Held] = parameter.held  # type: ignore[attr-defined]
    return held


def pieces(model: nn.Module) -> Iterator[tuple[TensorSpec, Box, Tensor]]:
    """Each logical tensor that a live model holds: its spec, the box held here, and a view of the values."""
    for parameter in model.parameters():
        for held in holdings(parameter):
            yield held.spec, held.box, parameter.detach()[held.rows]

"""The decoder, the specs of its logical tensors, and the pieces that a live one holds.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
from torch import Tensor, nn

from neoxkit.config.kernels import DEFAULT, Kernels
from neoxkit.config.model import Learned, ModelConfig
from neoxkit.mesh import Mesh, holders
from neoxkit.nn.attention import Context, GroupedQueryAttention, build_context
from neoxkit.nn.block import build_block
from neoxkit.nn.compiling import compile_layers
from neoxkit.nn.norm import build_norm
from neoxkit.nn.paged import PagedState
from neoxkit.nn.state import State
from neoxkit.parallel.division import divide
from neoxkit.parallel.groups import LOCAL, Groups, form
from neoxkit.parallel.layers import Embed, Head, Held
from neoxkit.spec import Axis, Box, TensorSpec


class Decoder(nn.Module):
    """A decoder-only language model. Its parameters are not initialised: load them, or `nn.init.initialise`."""

    def __init__(
        self,
        config: ModelConfig,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        groups: Groups = LOCAL,
        sequence_parallel: bool = False,
        kernels: Kernels = DEFAULT,
        built: Callable[[nn.Module], object] | None = None,
    ) -> None:
        """The part of a model that belongs at the place of `groups`. Raises ConfigError where the mesh divides no head.

        With `sequence_parallel` its ranks divide tokens too wherever they do not divide heads or rows:
        less memory, the same amount sent. It is for training; decoding divides no single token. `built` is
        called with each layer before the next is made.
        """
        super().__init__()
        self.kernels = kernels
        self.division = divide(groups, sequence_parallel, kernels.compile)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype or before)
        try:
            with torch.device(device or "cpu"):
                self._build(config, built)
        finally:
            torch.set_default_dtype(before)

    def _build(self, config: ModelConfig, built: Callable[[nn.Module], object] | None) -> None:
        self.config = config
        division = self.division
        self.embed = Embed("embed", config.vocab, config.width, division=division)
        learned = isinstance(config.position, Learned)
        self.position = Embed("position", config.context, config.width, False, division) if learned else None
        self.embed_norm = build_norm(config.norm, "embed.norm", config.width, division) if config.embed_norm else None
        self.layers = nn.ModuleList()
        for layer in range(config.depth):
            self.layers.append(build_block(config, layer, division))
            if built is not None:
                built(self.layers[-1])
        compile_layers(self.layers, self.kernels.compile)
        self.norm = build_norm(config.norm, "norm", config.width, division)
        self.head = Head("head", config.vocab, config.width, self.embed if config.tied else None, division)

    def hidden(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        state: State | PagedState | None = None,
    ) -> Tensor:
        """The residual stream after the final norm, [B, T, width], of token `ids` [B, T].

        `positions` [B, T] count from 0 in each row unless given. With context parallelism the tokens are this
        rank's share of every sample, and so are they. `segments` [B, T] keeps tokens from
        seeing other segments; tokens of one stand together. `state` remembers the tokens of earlier calls; with one of
        pages, a single row has the tokens of several texts.
        """
        if positions is None:
            positions = self.division.positions(ids.shape[1], ids.device)
        if state is not None:
            positions = positions.expand(ids.shape)
        x = self.embedded(ids, positions)
        context = build_context(self.config, x, positions, segments, state, self.division, self.kernels)
        return self.through(x, context, state)

    def through(self, x: Tensor, context: Context, state: State | PagedState | None = None) -> Tensor:
        """All layers and the final norm, of a stream x as it enters the first layer."""
        for layer, block in enumerate(self.layers):
            x = block(x, context, None if state is None else state.layers[layer])
        return self.division.whole(self.norm(x))

    def embedded(self, ids: Tensor, positions: Tensor) -> Tensor:
        """The stream as it enters the first layer, of token `ids` [B, T] at `positions` [B or 1, T]."""
        x: Tensor = self.embed(ids)
        if self.position is not None:
            x = x + self.position(self.division.share(positions))
        return x if self.embed_norm is None else self.embed_norm(x)

    @property
    def dtype(self) -> torch.dtype:
        """That of the stream."""
        weight = self.norm.weight
        assert isinstance(weight, Tensor)
        return weight.dtype

    @property
    def kv_heads(self) -> int:
        """Key/value heads that are computed here."""
        mixer = self.layers[0].attn
        assert isinstance(mixer, GroupedQueryAttention)
        return mixer.kv_heads

    def new_state(self, batch: int, capacity: int) -> State:
        """An empty state for `batch` texts of at most `capacity` tokens, for the heads that are computed here."""
        assert self.division.samples[1] == 1, "a state has all tokens of a text"
        weight = self.embed.weight
        return State(self.config, batch, capacity, weight.dtype, weight.device, self.kv_heads)

    def forward(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        state: State | PagedState | None = None,
    ) -> Tensor:
        """Logits [B, T, vocab]; arguments as for `hidden`."""
        logits: Tensor = self.head(self.hidden(ids, positions, segments, state))
        return logits


def form_groups(
    config: ModelConfig, mesh: Mesh, device: torch.device | str = "cpu", timeout: timedelta | None = None
) -> Groups:
    """The process groups that a model on a mesh needs. Raises as `groups.form` does."""
    at = mesh.coord()
    alike = {len(holders(spec, at, Axis.TP)) for spec in specs(config).values() if spec.splits}
    return form(mesh, device, {mesh.tp // count for count in alike}, timeout)


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

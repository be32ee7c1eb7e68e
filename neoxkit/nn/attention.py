"""Grouped-query attention.

Shapes: B batch, T tokens, H query heads, G key/value heads, D head_dim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from neoxkit.config.kernels import DEFAULT, Kernels
from neoxkit.config.model import Alibi, ModelConfig
from neoxkit.nn.kernels import attend, prepare, prepare_pages
from neoxkit.nn.kernels.sight import Prepared, Sight
from neoxkit.nn.norm import RMSNorm, WideRMSNorm
from neoxkit.nn.paged import PagedLayer, PagedState
from neoxkit.nn.position import Rotation, alibi_slopes, rotation, turn
from neoxkit.nn.state import LayerState, State
from neoxkit.parallel.division import UNDIVIDED, Division
from neoxkit.parallel.layers import Column, Row
from neoxkit.spec import Axis


class Context(NamedTuple):
    """What every layer of one forward pass shares: computed once, not in each layer."""

    rotation: Rotation | None
    seen: Prepared  # what each token sees, as the kernel wants it
    positions: Tensor  # [B or 1, T]
    last: int  # the highest position, when there is a state of rows


def build_context(
    config: ModelConfig,
    stream: Tensor,
    positions: Tensor,
    segments: Tensor | None,
    state: State | PagedState | None,
    division: Division = UNDIVIDED,
    kernels: Kernels = DEFAULT,
) -> Context:
    """The shared part of a pass of `stream` [B, ...] over tokens at `positions` [B or 1, T], `segments` [B, T] or None.

    What is seen is of whole samples, also where T is only this rank's share of them, and of its heads.

    Without a state, tokens see those before them in the row, though their positions may restart with
    each segment; with one, a token's position is its place and there are no segments. Raises ConfigError
    when a kernel other than `auto` cannot do this.
    """
    assert segments is None or state is None, "a state remembers one text a row"
    turned = rotation(config, positions, stream.dtype)
    if isinstance(state, PagedState):
        assert state.packing is not None, "begin comes before a pass"
        slopes, kv_heads = slopes_of(config, positions.device, division), state.layers[0].keys.shape[2]
        mixer = config.mixer
        seen = prepare_pages(state.packing, mixer.window, slopes, stream.dtype, mixer.head_dim, kv_heads)
        return Context(turned, seen, positions, 0)
    stateful = state is not None
    tokens = positions.shape[1] * division.samples[1]
    places = positions if stateful else torch.arange(tokens, device=positions.device)[None]
    last = int(places.max()) if stateful else tokens - 1
    window = config.mixer.window
    if window is not None and window > last:
        window = None
    segments = None if segments is None else division.whole_samples(segments)
    slopes = slopes_of(config, positions.device, division)
    sight = Sight(stream.shape[0], places, last + 1, window, segments, slopes, stateful)
    return Context(turned, prepare(kernels, sight, stream.dtype, config.mixer.head_dim), positions, last)


def slopes_of(config: ModelConfig, device: torch.device, division: Division) -> Tensor | None:
    """ALiBi's slopes of the heads that are computed here, fp32 [H]; None for a model without."""
    if not isinstance(config.position, Alibi):
        return None
    here = alibi_slopes(config.mixer.heads)[local_heads(config, division)]
    return torch.tensor(here, dtype=torch.float32, device=device)


def local_heads(config: ModelConfig, division: Division) -> slice:
    """Those query heads whose attention is computed at a place."""
    (tensor, wide), (share, shares) = division.at[Axis.TP], division.samples
    index, size = tensor * shares + share, wide * shares
    here = config.mixer.heads // size
    return slice(index * here, (index + 1) * here)


def build_head_norm(config: ModelConfig, name: str, heads: int, division: Division) -> RMSNorm | WideRMSNorm | None:
    """The norm of queries or keys [..., heads, D], if there is one: of each head, or of all together."""
    if not config.mixer.qk_norm:
        return None
    if config.mixer.qk_norm_span == "all":
        return WideRMSNorm(name, heads, config.mixer.head_dim, config.norm.eps, division)
    return RMSNorm(name, config.mixer.head_dim, config.norm.eps, division.inside, division)


class GroupedQueryAttention(nn.Module):
    """Holds `{name}.q`, `.k`, `.v` as one fused matrix, and `{name}.o`."""

    def __init__(self, config: ModelConfig, name: str, division: Division = UNDIVIDED) -> None:
        super().__init__()
        mixer = config.mixer
        self.head_dim = mixer.head_dim
        q, kv = mixer.heads * mixer.head_dim, mixer.kv_heads * mixer.head_dim
        outputs = {f"{name}.q": q, f"{name}.k": kv, f"{name}.v": kv}
        self.qkv = Column(outputs, config.width, mixer.head_dim, mixer.bias, division)
        self.o = Row(f"{name}.o", q, config.width, mixer.head_dim, mixer.out_bias, division)
        self.q_norm = build_head_norm(config, f"{name}.q_norm", mixer.heads, division)
        self.k_norm = build_head_norm(config, f"{name}.k_norm", mixer.kv_heads, division)
        self.heads, self.kv_heads, _ = (rows // mixer.head_dim for rows in self.qkv.rows)  # those computed here
        self.attend = division.by_heads(attend, self.heads, self.kv_heads)

    def forward(self, x: Tensor, context: Context, state: LayerState | PagedLayer | None = None) -> Tensor:
        """[B, T, width] -> [B, T, width]."""
        fused = self.qkv(x)
        batch, tokens, _ = fused.shape  # on a divided stream x has fewer tokens
        heads = fused.view(batch, tokens, -1, self.head_dim)
        q, k, v = heads.split((self.heads, self.kv_heads, self.kv_heads), dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if state is None:
            q, k = turn(q, k, context.rotation)
        else:
            q, k, v = state.enter(q, k, v, context.rotation, context.positions, context.last)
        mixed = self.attend(q, k, v, context.seen)
        return self.o(mixed.reshape(batch, tokens, -1))

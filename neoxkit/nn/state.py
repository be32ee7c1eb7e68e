"""What attention remembers between tokens, so that each new token costs one step and not a whole pass.

Shapes: B batch, C capacity in tokens, G key/value heads, D head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from neoxkit.config.model import ModelConfig
from neoxkit.nn.position import Rotation, turn


class LayerState:
    """Keys and values of one layer, [B, C, G, D]; the token at position p lies in slot p."""

    def __init__(
        self,
        batch: int,
        capacity: int,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        kv_heads: int | None = None,
    ) -> None:
        shape = (batch, capacity, kv_heads or config.mixer.kv_heads, config.mixer.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    def enter(
        self, q: Tensor, keys: Tensor, values: Tensor, by: Rotation | None, positions: Tensor, last: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Turn queries and keys of tokens at `positions` [B, T]; remember keys and values [B, T, G, D].

        Returns the queries, and the keys and values of slots 0 to `last`. Rows of a batch may stand at different
        positions. A slot that a row has not reached yet holds nothing it can see: attention looks only at slots up
        to a token's own position.
        """
        q, keys = turn(q, keys, by)
        row = torch.arange(keys.shape[0], device=keys.device)[:, None]
        self.keys[row, positions] = keys
        self.values[row, positions] = values
        return q, self.keys[:, : last + 1], self.values[:, : last + 1]


class State:
    """The memory of a whole decoder for a batch of sequences."""

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        kv_heads: int | None = None,
    ) -> None:
        """Empty; `kv_heads` are those that this process computes, all unless given."""
        where = device or torch.device("cpu")
        self.capacity = capacity
        self.layers = [LayerState(batch, capacity, config, dtype, where, kv_heads) for _ in range(config.depth)]

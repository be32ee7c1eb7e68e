"""Keys and values of many texts in pages, and passes in which tokens of several texts stand in one row.

Shapes: T tokens of a pass, N texts, P pages of the longest, G key/value heads, D head_dim.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from neoxkit.config.model import ModelConfig
from neoxkit.native import ops as native
from neoxkit.nn.kernels.paged import Packing
from neoxkit.nn.position import Rotation, turn


class PagedLayer:
    """Keys and values of one layer, [pages, size, G, D]."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self._rows = [x.view(-1, *x.shape[2:]) for x in (keys, values)]
        self.slots = torch.empty(0, dtype=torch.int64)
        self._native = native.takes(keys.dtype, keys.device.type)

    def enter(
        self, q: Tensor, keys: Tensor, values: Tensor, by: Rotation | None, positions: Tensor, last: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Turn queries and keys of a pass, remember keys and values [1, T, G, D]; return those of all pages."""
        if self._native:
            native.enter(q, keys, values, by, self.slots, self.keys, self.values)
            return q, self.keys, self.values
        q, keys = turn(q, keys, by)
        for rows, new in zip(self._rows, (keys, values), strict=True):
            rows.index_copy_(0, self.slots, new[0])
        return q, self.keys, self.values


class PagedState:
    """The memory of a decoder for many texts. Before each pass it is told whose tokens come, by `begin`."""

    def __init__(
        self, config: ModelConfig, pages: int, size: int, dtype: torch.dtype, device: torch.device, kv_heads: int
    ) -> None:
        """Room for `pages` pages of `size` tokens each, with the key/value heads that are computed here."""
        self.size = size
        shape = (pages, size, kv_heads, config.mixer.head_dim)
        self.layers = [
            PagedLayer(_zeros(shape, dtype, device), _zeros(shape, dtype, device)) for _ in range(config.depth)
        ]
        self.packing: Packing | None = None

    def begin(self, packing: Packing) -> None:
        """Say whose tokens the next pass has."""
        self.packing = packing
        for layer in self.layers:
            layer.slots = packing.slots


def bytes_of_token(config: ModelConfig, dtype: torch.dtype, kv_heads: int) -> int:
    """What a token takes of a cache, in bytes."""
    return 2 * config.depth * kv_heads * config.mixer.head_dim * dtype.itemsize


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU a page of memory is taken when it is written first.

    They must be zeros: what is not seen has weight 0 in a sum, and 0 times what memory happened to hold may be NaN.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    count = int(np.prod(shape))
    return torch.from_numpy(np.zeros(count * dtype.itemsize, dtype=np.uint8)).view(dtype).view(shape)

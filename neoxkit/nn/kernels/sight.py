"""What each query of a pass sees, and where attention is computed: all that kernels know of a model.

Shapes: B batch, T query tokens, S key tokens, H query heads, G key/value heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)

STATELESS = "it does not attend to a state, as in decoding"
"""What kernels for whole samples lack."""


class Sight(NamedTuple):
    """What each query of a pass sees: keys at places p - window + 1 to p of its own segment, p being its place.

    Without a state places are 0 to T - 1 in every row. With one, rows may stand at different places, and S keys
    lie in slots 0 to S - 1. Equal numbers in `segments` [B, T] must stand together. `slopes` [H], in fp32, are
    ALiBi's: how much a score falls for each token of distance.
    """

    batch: int
    places: Tensor  # [B or 1, T]
    slots: int  # S
    window: int | None = None
    segments: Tensor | None = None
    slopes: Tensor | None = None
    state: bool = False

    @property
    def tokens(self) -> int:
        """T."""
        return self.places.shape[1]

    @property
    def plain(self) -> bool:
        """Whether each query sees itself and all before it, and nothing lowers a score."""
        return not self.state and self.window is None and self.segments is None and self.slopes is None


@dataclass(frozen=True)
class Setting:
    """Where attention is computed, and of what kind it is: what the choice of a kernel depends on.

    `capability` is that of a CUDA device, `packages` are those of `PACKAGES` that can be imported. `learns` says
    that gradients are wanted, `compiled` that what was prepared is given to compiled code.
    """

    device: str
    dtype: torch.dtype
    head_dim: int
    capability: tuple[int, int] = (0, 0)
    packages: frozenset[str] = frozenset()
    window: bool = False
    segments: bool = False
    alibi: bool = False
    state: bool = False
    learns: bool = True
    compiled: bool = False

    @property
    def plain(self) -> bool:
        """As `Sight.plain`."""
        return not (self.state or self.window or self.segments or self.alibi)

    @property
    def ampere(self) -> bool:
        """Whether the device runs flash attention: a CUDA device of the Ampere generation or later."""
        return self.device == "cuda" and self.capability >= (8, 0)

    @property
    def outdated(self) -> str:
        """What to say of a device that is not."""
        return f"it needs compute capability 8.0, and the device has {'.'.join(map(str, self.capability))}"


class Prepared(Protocol):
    """What a kernel made of a Sight, once for all layers of a pass. It may be given to compiled code."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of q [B, T, H, D], k and v [B, S, G, D], as q."""


class Kernel(NamedTuple):
    """A way to compute attention: why it cannot, if it cannot; and what it makes of a Sight."""

    lacks: Callable[[Setting], str | None]
    prepare: Callable[[Sight, Setting], Prepared]


def ends_of(sight: Sight) -> Tensor:
    """Where documents begin and end, counted through all rows: int32 [documents + 1].

    Example, two rows of four tokens with segments [0, 0, 1, 1] and [5, 5, 5, 5]: [0, 2, 4, 8].
    """
    rows, tokens, device = sight.batch, sight.tokens, sight.places.device
    if sight.segments is None:
        return torch.arange(0, (rows + 1) * tokens, tokens, dtype=torch.int32, device=device)
    begins = torch.ones(rows, tokens, dtype=torch.bool, device=device)
    begins[:, 1:] = sight.segments[:, 1:] != sight.segments[:, :-1]
    return torch.nn.functional.pad(begins.flatten().nonzero().flatten(), (0, 1), value=rows * tokens).int()


def visible(sight: Sight) -> Tensor:
    """Which keys each query may see, bool [B or 1, 1, T, S]."""
    slots = torch.arange(sight.slots, device=sight.places.device)
    distance = sight.places[:, :, None] - slots
    seen = distance >= 0
    if sight.window is not None:
        seen = seen & (distance < sight.window)
    if sight.segments is not None:
        seen = seen & (sight.segments[:, :, None] == sight.segments[:, None, :])
    return seen[:, None]


def distance_bias(sight: Sight, slopes: Tensor) -> Tensor:
    """ALiBi's additive bias, [B or 1, H, T, S]: minus the slope of each head [H] times the distance."""
    slots = torch.arange(sight.slots, device=sight.places.device)
    distance = sight.places[:, None, :, None] - slots
    return -slopes[None, :, None, None] * distance


def mask_of(sight: Sight, dtype: torch.dtype) -> Tensor | None:
    """What each query sees as a mask [B or 1, 1 or H, T, S]: bool (True is seen), or additive where there is a bias.

    None where plain causal attention says the same: fused kernels are then twice as fast.
    """
    if sight.plain:
        return None
    mask = visible(sight)
    if sight.slopes is None:
        return mask
    return distance_bias(sight, sight.slopes).masked_fill(~mask, float("-inf")).to(dtype)

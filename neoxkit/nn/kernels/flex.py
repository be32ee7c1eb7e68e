"""torch's flex attention: windows, segments and ALiBi in one compiled kernel, without a mask of all pairs.

Shapes: B batch, T tokens, H query heads, G key/value heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from neoxkit.nn.kernels.sight import STATELESS, Kernel, Setting, Sight

Score = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
Seen = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Flexible(NamedTuple):
    """Attention to the blocks of keys that some query sees."""

    blocks: BlockMask
    score: Score | None
    run: Callable[..., Any]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As Prepared says."""
        shared = q.shape[2] != k.shape[2]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        mixed: Tensor = self.run(q, k, v, score_mod=self.score, block_mask=self.blocks, enable_gqa=shared)
        return mixed.transpose(1, 2)


def rule(window: int | None, segments: Tensor | None) -> Seen:
    """What each query sees, as flex attention asks: by batch row, head, query and key."""

    def seen(row: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        found = query >= key
        if window is not None:
            found = found & (query - key < window)
        if segments is not None:
            found = found & (segments[row, query] == segments[row, key])
        return found

    return seen


def lowered(slopes: Tensor) -> Score:
    """Scores less ALiBi's slope of the head times the distance."""

    def score(value: Tensor, _: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return value - slopes[head] * (query - key)

    return score


def lacks(setting: Setting) -> str | None:
    """Why it cannot run."""
    if setting.device not in ("cpu", "cuda"):
        return f"flex attention is for GPUs, and the device is {setting.device}"
    if setting.device == "cpu" and setting.learns:
        return "torch's flex attention computes no gradients on a CPU"
    if setting.state:
        return STATELESS
    if setting.device == "cpu":
        return None
    if not setting.ampere:
        return setting.outdated
    if setting.head_dim < 16:
        return f"it needs a head_dim of at least 16, and the model's is {setting.head_dim}"
    if "triton" not in setting.packages:
        return "it is compiled by triton, which is not installed"
    return None


def prepare(sight: Sight, setting: Setting) -> Flexible:
    """The blocks; the same ones for every pass of a length where there are no segments."""
    fused, device = setting.device == "cuda", sight.places.device
    if sight.segments is None:
        blocks = blocks_of_length(sight.tokens, sight.window, device, fused, torch.is_inference_mode_enabled())
    else:
        make = compiled()[1] if fused else create_block_mask
        seen = rule(sight.window, sight.segments)
        blocks = make(seen, sight.batch, None, sight.tokens, sight.tokens, device=device)
    score = None if sight.slopes is None else lowered(sight.slopes)
    return Flexible(blocks, score, compiled()[0] if fused else cast(Any, flex_attention))


@lru_cache(maxsize=8)
def blocks_of_length(tokens: int, window: int | None, device: torch.device, fused: bool, inference: bool) -> BlockMask:
    """The blocks of so many tokens without segments; apart for inference mode, whose tensors autograd does not take."""
    make = compiled()[1] if fused else create_block_mask
    found: BlockMask = make(rule(window, None), None, None, tokens, tokens, device=device)
    return found


@cache
def compiled() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Attention, and the search for blocks that does not first make a mask of all pairs."""
    return torch.compile(flex_attention), torch.compile(create_block_mask)


FLEX = Kernel(lacks, prepare)

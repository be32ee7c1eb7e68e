"""Attention over whole samples, of which each rank of a context parallel group has a run of tokens.

Before attention ranks trade: each gives away heads and is given tokens, so that it has all tokens of
some heads. After it they trade back (DeepSpeed-Ulysses, arXiv 2309.14509). Attention itself is what it
is in one process. Where key/value heads do not divide over the ranks they are repeated first.

Shapes: B batch, T tokens of a sample, H query heads, G key/value heads, D head_dim, R ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import lcm
from typing import Any

import torch
from torch import Tensor

from neoxkit.errors import ConfigError
from neoxkit.parallel.linear import TOKENS

Attend = Callable[[Tensor, Tensor, Tensor, Any], Tensor]
"""Attention: of q [B, T, H, D], k and v [B, T, G, D] and what a kernel was told of a pass, [B, T, H, D]."""

Trade = Callable[[Tensor], Tensor]
"""What the ranks have for this one, [R, ...], where each gives x[r] to rank r."""

HEADS = 2
"""The dimension of queries, keys and values that is traded for tokens."""


def traded_heads(kv_heads: int, ranks: int) -> int:
    """Key/value heads that are traded: as often as they are, or repeated until the ranks divide them.

    Example: 2 heads over 4 ranks are traded as 0, 0, 1, 1, and each rank has one.
    """
    return lcm(kv_heads, ranks)


def by_heads(trade: Trade, ranks: int, attend: Attend, heads: int, kv_heads: int) -> Attend:
    """Attention for ranks that have T / R tokens of all heads, by `attend`, which is given T of H / R heads.

    Raises ConfigError when the ranks do not divide the heads.
    """
    if heads % ranks:
        raise ConfigError(
            f"context parallelism cannot divide {heads} heads over cp {ranks}",
            f"choose a mesh.cp that divides {heads}: attention is divided by whole heads",
        )
    assert heads % kv_heads == 0
    return partial(_attend, trade, ranks, attend, traded_heads(kv_heads, ranks) // kv_heads)


def _attend(
    trade: Trade, ranks: int, attend: Attend, copies: int, q: Tensor, k: Tensor, v: Tensor, seen: Any
) -> Tensor:
    """[B, T / R, H, D] of q; k and v with G heads, each repeated `copies` times."""
    if copies > 1:
        k, v = (x.repeat_interleave(copies, HEADS) for x in (k, v))
    parts = [x.unflatten(HEADS, (ranks, -1)).movedim(HEADS, 0) for x in (q, k, v)]
    counts = [part.shape[-2] for part in parts]
    mine = trade(torch.cat(parts, dim=-2)).movedim(0, TOKENS).flatten(TOKENS, TOKENS + 1)
    q, k, v = mine.split(counts, dim=HEADS)
    mixed = attend(q, k, v, seen)
    back = trade(mixed.unflatten(TOKENS, (ranks, -1)).movedim(TOKENS, 0))
    return back.movedim(0, HEADS).flatten(HEADS, HEADS + 1)

"""Attention kernels: a slow and obvious reference, and torch's fused one. The first judges the second.

Shapes: B batch, T query tokens, S key tokens, H query heads, G key/value heads, D head_dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def visible(positions: Tensor, slots: Tensor, window: int | None, segments: tuple[Tensor, Tensor] | None) -> Tensor:
    """Which keys each query may see, bool [B, 1, T, S].

    A query at position p sees keys at positions p - window + 1 to p, of its own segment.
    `positions` is [B, T], `slots` [B or 1, S], `segments` those of queries [B, T] and keys [B, S].
    """
    distance = positions[:, :, None] - slots[:, None, :]
    seen = distance >= 0
    if window is not None:
        seen = seen & (distance < window)
    if segments is not None:
        seen = seen & (segments[0][:, :, None] == segments[1][:, None, :])
    return seen[:, None]


def distance_bias(positions: Tensor, slots: Tensor, slopes: Tensor) -> Tensor:
    """ALiBi's additive bias, [B, H, T, S]: minus the slope of each head [H] times the distance."""
    distance = positions[:, None, :, None] - slots[:, None, None, :]
    return -slopes[None, :, None, None] * distance


def reference(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v by its definition, in fp32; q [B, T, H, D], k and v [B, S, G, D].

    `bias` [B or 1, 1 or H, T, S] is additive, -inf where a key is not seen; None is causal with T = S.
    """
    groups = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(groups, dim=2).float() for x in (k, v))
    scores = torch.einsum("bthd,bshd->bhts", q.float(), k) / q.shape[-1] ** 0.5
    if bias is None:
        unseen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(unseen, float("-inf"))
    else:
        scores = scores + bias
    return torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v).to(q.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The same through torch's fused attention.

    `mask` is bool (True is seen) or additive, [B or 1, 1 or H, T, S]; None is causal with T = S.
    """
    groups = q.shape[2] // k.shape[2]
    if groups > 1:
        k, v = (x.repeat_interleave(groups, dim=2) for x in (k, v))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    return out.transpose(1, 2)

"""Attention by its definition: slow, obvious, and the judge of every other kernel.

Shapes: B batch, T query tokens, S key tokens, H query heads, G key/value heads, D head_dim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from neoxkit.nn.kernels.sight import Kernel, Setting, Sight, mask_of


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


class Biased(NamedTuple):
    """Attention with a bias, or plain causal."""

    bias: Tensor | None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As Prepared says."""
        return reference(q, k, v, self.bias)


def lacks(_: Setting) -> str | None:
    """Nothing: it runs everywhere."""
    return None


def prepare(sight: Sight, _: Setting) -> Biased:
    """The bias, in fp32."""
    mask = mask_of(sight, torch.float32)
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, float("-inf"))
    return Biased(mask)


REFERENCE = Kernel(lacks, prepare)

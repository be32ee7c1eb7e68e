"""torch's scaled_dot_product_attention, which chooses among fused kernels itself; what is not plain is a mask.

Shapes: B batch, T query tokens, S key tokens, H query heads, G key/value heads, D head_dim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from neoxkit.nn.kernels.sight import HALF, Kernel, Setting, Sight, mask_of


class Masked(NamedTuple):
    """Attention with a mask, or plain causal. With `grouped` heads share keys and values without copies of them."""

    mask: Tensor | None
    grouped: bool

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As Prepared says."""
        groups = q.shape[2] // k.shape[2]
        if groups > 1 and not self.grouped:
            k, v = (x.repeat_interleave(groups, dim=2) for x in (k, v))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        shared = groups > 1 and self.grouped
        causal = self.mask is None
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, is_causal=causal, enable_gqa=shared)
        return mixed.transpose(1, 2)


def lacks(_: Setting) -> str | None:
    """Nothing: it runs everywhere."""
    return None


def prepare(sight: Sight, setting: Setting) -> Masked:
    """The mask. Of torch's kernels only those for half precision without a mask share keys without copies."""
    mask = mask_of(sight, setting.dtype)
    flash = setting.ampere and setting.dtype in HALF and setting.head_dim <= 256
    return Masked(mask, grouped=mask is None and flash)


SDPA = Kernel(lacks, prepare)

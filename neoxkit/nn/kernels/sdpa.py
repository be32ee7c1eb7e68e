"""torch's scaled_dot_product_attention, which chooses among fused kernels itself; what is not plain is a mask.

On a CPU documents are taken one by one: a mask would cost all pairs of tokens, and calls cost little.

Shapes: B batch, T query tokens, S key tokens, H query heads, G key/value heads, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from neoxkit.nn.kernels.sight import HALF, Kernel, Setting, Sight, ends_of, mask_of


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


@dataclass  # not frozen: compiled code would look into it, and be another for other sizes
class Apart:
    """Attention within each document of `sizes` tokens, counted through all rows.

    `mask` is that of the longest, of which others take the beginning; those of up to `free` tokens need none.
    """

    sizes: list[int]
    mask: Tensor | None
    free: int

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As Prepared says."""
        each = zip(*(x.flatten(0, 1).split(self.sizes) for x in (q, k, v)), strict=True)
        mixed = [self.alone(len(q)).attend(q[None], k[None], v[None])[0] for q, k, v in each]
        return torch.cat(mixed).unflatten(0, q.shape[:2])

    def alone(self, tokens: int) -> Masked:
        """Attention within a document of so many tokens."""
        mask = None if self.mask is None or tokens <= self.free else self.mask[..., :tokens, :tokens]
        return Masked(mask, grouped=False)


@cache
def uncompiled() -> type[Apart]:
    """The same, kept out of compiled code. (To ask for that loads the compiler, which takes seconds.)"""

    class Uncompiled(Apart):
        attend = torch.compiler.disable(Apart.attend)

    return Uncompiled


def lacks(_: Setting) -> str | None:
    """Nothing: it runs everywhere."""
    return None


def prepare(sight: Sight, setting: Setting) -> Masked | Apart:
    """The mask. Of torch's kernels only those for half precision without a mask share keys without copies."""
    if sight.segments is not None and setting.device == "cpu":
        return prepare_apart(sight, setting)
    mask = mask_of(sight, setting.dtype)
    flash = setting.ampere and setting.dtype in HALF and setting.head_dim <= 256
    return Masked(mask, grouped=mask is None and flash)


def prepare_apart(sight: Sight, setting: Setting) -> Apart:
    """The sizes of documents, and a mask where being causal is not all."""
    sizes = ends_of(sight).diff().tolist()
    longest = max(sizes)
    window = None if sight.window is None or sight.window >= longest else sight.window
    mask = mask_of(Sight(1, sight.places[:, :longest], longest, window, slopes=sight.slopes), setting.dtype)
    free = window if window is not None and sight.slopes is None else 0
    return (uncompiled() if setting.compiled else Apart)(sizes, mask, free)


SDPA = Kernel(lacks, prepare)

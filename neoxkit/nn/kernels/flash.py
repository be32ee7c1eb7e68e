"""Flash attention (arXiv 2307.08691) over rows and documents laid end to end: no query meets those of another.

torch has the kernel itself, FlashAttention 2, or 3 where that is installed. The package flash-attn has ALiBi besides.

Shapes: B batch, T tokens, H query heads, G key/value heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any, NamedTuple, cast

from torch import Tensor

from neoxkit.nn.kernels.sight import HALF, STATELESS, Kernel, Setting, Sight, ends_of


class Documents(NamedTuple):
    """Attention within documents of at most `longest` tokens; document i has the tokens from ends[i] to ends[i + 1].

    Tokens are counted through all rows. A query sees `before` tokens before itself, all of them with -1. Where
    heads share keys, torch 2.11 is not told, and later releases refuse them unless they are `told`.
    """

    ends: Tensor  # int32
    longest: int
    before: int
    slopes: Tensor | None
    told: bool
    run: Callable[..., Any]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As Prepared says."""
        rows = q.shape[:2]
        mixed: Tensor = self.run(*(x.flatten(0, 1) for x in (q, k, v)), self)
        return mixed.unflatten(0, rows)


def by_torch(q: Tensor, k: Tensor, v: Tensor, of: Documents) -> Tensor:
    """torch's own function: q [B x T, H, D], k and v [B x T, G, D]."""
    from torch.nn.attention import varlen

    ends, longest, window = of.ends, of.longest, (of.before, 0)
    shared: dict[str, Any] = {"enable_gqa": True} if of.told else {}
    mixed: Any = varlen.varlen_attn(q, k, v, ends, ends, longest, longest, window_size=window, **shared)
    return cast(Tensor, mixed)


def by_package(q: Tensor, k: Tensor, v: Tensor, of: Documents) -> Tensor:
    """flash-attn's function: q [B x T, H, D], k and v [B x T, G, D]."""
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found, unused-ignore]

    ends, longest, window = of.ends, of.longest, (of.before, 0)
    mixed: Tensor = flash_attn_varlen_func(
        q, k, v, ends, ends, longest, longest, causal=True, window_size=window, alibi_slopes=of.slopes
    )
    return mixed


def lacks(setting: Setting) -> str | None:
    """Why it cannot run."""
    if setting.device != "cuda":
        return f"flash attention is for NVIDIA GPUs, and the device is {setting.device}"
    if not setting.ampere:
        return setting.outdated
    if setting.dtype not in HALF:
        return f"it computes in bf16 and fp16, and the run is in {setting.dtype}".replace("torch.float32", "fp32")
    if setting.head_dim > 256 or setting.head_dim % 8:
        return f"it needs a head_dim of 8, 16, 24 ... 256, and the model's is {setting.head_dim}"
    if setting.state:
        return STATELESS
    if setting.alibi and "flash_attn" not in setting.packages:
        return "for ALiBi it needs the package flash-attn, which is not installed (pip install neoxkit[flash])"
    return None


def prepare(sight: Sight, _: Setting) -> Documents:
    """The ends of documents: without segments each row is one."""
    from torch.nn.attention import varlen

    before = -1 if sight.window is None else sight.window - 1
    told = "enable_gqa" in signature(varlen.varlen_attn).parameters
    run = by_torch if sight.slopes is None else by_package
    return Documents(ends_of(sight), sight.tokens, before, sight.slopes, told, run)


def use_newest(setting: Setting) -> None:
    """Let torch's flash attention be FlashAttention 3 where it is installed and made for the device (Hopper)."""
    from torch.nn.attention import activate_flash_attention_impl, current_flash_attention_impl

    newer = setting.capability[0] == 9 and "flash_attn_interface" in setting.packages
    if newer and setting.dtype in HALF and current_flash_attention_impl() is None:
        activate_flash_attention_impl("FA3")


FLASH = Kernel(lacks, prepare)

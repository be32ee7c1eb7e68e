"""Attention kernels, and which of them is used.

What each query of a pass sees is told once, as a `Sight`. A kernel prepares what it wants of that: a mask, blocks of
keys, the ends of documents. With what it prepared, every layer attends. `reference` judges them all.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from neoxkit.config.kernels import Kernels
from neoxkit.config.model import Alibi, ModelConfig
from neoxkit.errors import ConfigError
from neoxkit.nn.kernels.flash import FLASH, use_newest
from neoxkit.nn.kernels.flex import FLEX
from neoxkit.nn.kernels.paged import Packing, prepare_paged
from neoxkit.nn.kernels.reference import REFERENCE
from neoxkit.nn.kernels.sdpa import SDPA
from neoxkit.nn.kernels.sight import HALF, Kernel, Prepared, Setting, Sight

KERNELS: dict[str, Kernel] = {"reference": REFERENCE, "sdpa": SDPA, "flex": FLEX, "flash": FLASH}
"""By the names that `kernels.attention` takes."""

PACKAGES = ("flash_attn", "flash_attn_interface", "triton")
"""What kernels may need: flash-attn, FlashAttention 3, and what GPU code is compiled by."""


def choose(wanted: str, setting: Setting) -> str:
    """The name of the kernel for a setting; `auto` is the fastest that can run.

    torch's own choice is best wherever there is nothing to mask, in fp32 (where the others gain little), and for the
    few queries of decoding. Raises ConfigError when a kernel that is asked for by name cannot run.
    """
    if wanted == "auto":
        masked = setting.device == "cuda" and setting.dtype in HALF and not (setting.plain or setting.state)
        order = ("flash", "flex", "sdpa") if masked else ("sdpa",)
        return next(name for name in order if KERNELS[name].lacks(setting) is None)
    if (reason := KERNELS[wanted].lacks(setting)) is not None:
        raise ConfigError(f"kernels.attention {wanted}: {reason}", "set kernels.attention: auto")
    return wanted


def prepare(kernels: Kernels, sight: Sight, dtype: torch.dtype, head_dim: int) -> Prepared:
    """What the layers of a pass attend with. Raises as `choose` does."""
    setting = describe(
        sight.places.device,
        dtype,
        head_dim,
        window=sight.window is not None,
        segments=sight.segments is not None,
        alibi=sight.slopes is not None,
        state=sight.state,
        learns=torch.is_grad_enabled(),
        compiled=kernels.compile,
    )
    return KERNELS[choose(kernels.attention, setting)].prepare(sight, setting)


def prepare_pages(
    packing: Packing,
    window: int | None,
    slopes: Tensor | None,
    dtype: torch.dtype,
    head_dim: int,
    kv_heads: int,
) -> Prepared:
    """What the layers of a pass attend with whose keys lie in pages."""
    if packing.ready is not None:
        return packing.ready
    setting = describe(
        packing.tables.device, dtype, head_dim, window=window is not None, alibi=slopes is not None, learns=False
    )
    return prepare_paged(packing, window, slopes, setting, kv_heads)


def describe(device: torch.device, dtype: torch.dtype, head_dim: int, **kind: Any) -> Setting:
    """The setting of attention of some kind on a device."""
    return Setting(device.type, dtype, head_dim, _capability(device), _packages(), **kind)


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Prepared) -> Tensor:
    """Attention of q [B, T, H, D], k and v [B, S, G, D] to what was prepared, as q."""
    return seen.attend(q, k, v)


def begin(kernels: Kernels, model: ModelConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Get ready for training. Raises ConfigError when the attention of such a model cannot be computed as asked."""
    alibi = isinstance(model.position, Alibi)
    setting = describe(device, dtype, model.mixer.head_dim, window=model.mixer.window is not None, alibi=alibi)
    choose(kernels.attention, setting)
    use_newest(setting)


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


@cache
def _packages() -> frozenset[str]:
    return frozenset(name for name in PACKAGES if find_spec(name) is not None)

"""Rotary frequencies and their scalings, the rotation, and ALiBi's slopes.

Shapes: B batch, T tokens, H heads, D head_dim, R rotated dimensions of each head.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from neoxkit.config.model import LinearScaling, Llama3Scaling, ModelConfig, Rotary


class Rotation(NamedTuple):
    """Cosines and sines of each token's angles, [B or 1, T, 1, R / 2], in the model's dtype."""

    cos: Tensor
    sin: Tensor


def frequencies(position: Rotary, rotated: int, device: torch.device | None = None) -> Tensor:
    """Radians per token of each rotated pair, fp32 [rotated / 2].

    Pair j turns by base^(-2j / rotated). Llama 3's scaling divides the frequency of wavelengths
    longer than context / low_freq_factor, keeps those shorter than context / high_freq_factor, and
    blends between, in the wavelength's reciprocal.
    """
    exponents = torch.arange(0, rotated, 2, dtype=torch.int64, device=device).float() / rotated
    plain = 1.0 / (position.base**exponents)
    scaling = position.scaling
    if scaling is None:
        return plain
    if isinstance(scaling, LinearScaling):
        return plain / scaling.factor
    return _llama3(plain, scaling)


def _llama3(plain: Tensor, scaling: Llama3Scaling) -> Tensor:
    context, low, high = scaling.original_context, scaling.low_freq_factor, scaling.high_freq_factor
    wavelength = 2 * math.pi / plain
    blend = (context / wavelength - low) / (high - low)
    between = (1 - blend) * plain / scaling.factor + blend * plain
    slow = torch.where(wavelength > context / low, plain / scaling.factor, plain)
    return torch.where((wavelength >= context / high) & (wavelength <= context / low), between, slow)


def rotation(config: ModelConfig, positions: Tensor, dtype: torch.dtype) -> Rotation | None:
    """The rotation of tokens at integer `positions` [B, T], or None where positions do not rotate.

    Angles are computed in fp32: in bf16 position 257 would be position 256.
    """
    if not isinstance(config.position, Rotary):
        return None
    with torch.autocast(positions.device.type, enabled=False):
        turn = frequencies(config.position, config.rotated, positions.device)
        angles = positions[..., None].float() * turn
    return Rotation(angles.cos().to(dtype)[:, :, None], angles.sin().to(dtype)[:, :, None])


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Turn the first R dimensions of each head of x [B, T, H, D]; dimensions j and j + R/2 are a pair.

    Example, R = D = 2: (a, b) becomes (a cos - b sin, b cos + a sin).
    """
    half = by.cos.shape[-1]
    a, b = x[..., :half], x[..., half : 2 * half]
    turned = (a * by.cos - b * by.sin, b * by.cos + a * by.sin)
    if 2 * half == x.shape[-1]:
        return torch.cat(turned, dim=-1)
    return torch.cat((*turned, x[..., 2 * half :]), dim=-1)


def turn(q: Tensor, k: Tensor, by: Rotation | None) -> tuple[Tensor, Tensor]:
    """Queries and keys [B, T, H or G, D], rotated where positions rotate.

    One by one: autograd would keep both for what needs one.
    """
    return (q, k) if by is None else (rotate(q, by), rotate(k, by))


def alibi_slopes(heads: int) -> list[float]:
    """How much a score falls for each token of distance, by head (arXiv 2108.12409, section 3).

    8 heads: 1/2, 1/4 ... 1/256. Where heads is not a power of two, the slopes of the power below
    come first, then every second slope of the power above.
    """
    power = 2 ** math.floor(math.log2(heads))
    first = [2 ** (-8 * (head + 1) / power) for head in range(power)]
    return first + [2 ** (-4 * (head + 1) / power) for head in range(0, 2 * (heads - power), 2)]

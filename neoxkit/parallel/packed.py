"""Matrix products of a model that does not learn, on a CPU: weights as the processor takes them fastest.

With few tokens a product costs what reading its weights costs. So weights that are kept in 16 bits stay in 16 bits,
and are widened as they are multiplied, in fp32, by code of our own (`panels`). Where that cannot be compiled, FBGEMM
does this on any x86 processor since 2013 (`half`), also without instructions for half precision; what it keeps is
fp16: of bf16 weights above 2^-17 exactly, below to 2^-25. Of weights in fp32, torch does best with `turned`.

Shapes: M tokens, in, out.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from neoxkit.native import ops as native

Product = Callable[[Tensor], Tensor]
"""x W^T + b of x [..., in] -> [..., out]."""

Make = Callable[[Tensor, Tensor | None], Product]
"""A product with a weight [out, in] and a bias [out], if there is one."""

GREATEST = 65504.0
"""The greatest number of fp16."""

PREFERENCE = 1.25
"""Products in a weight's own half precision must be faster by this to be chosen: they round what they read."""

PIECE = 2**24
"""Elements that are packed at once, in fp32: a larger matrix becomes several, so that loading takes little more."""

FEW = 32
"""Up to so many tokens, W x^T is faster than x W^T in fp32."""


def half(weight: Tensor, bias: Tensor | None) -> Product:
    """Weights in fp16, all else in fp32. A weight that fp16 cannot hold is kept in fp32."""
    weight = weight.detach()
    if not weight.numel() or max(map(abs, torch.stack(torch.aminmax(weight)).tolist())) > GREATEST:
        return turned(weight.float(), None if bias is None else bias.float())
    rows = max(1, PIECE // weight.shape[1])
    parts = [_half(weight[first : first + rows], bias, first) for first in range(0, len(weight), rows)]
    return parts[0] if len(parts) == 1 else lambda x: torch.cat([part(x) for part in parts], dim=-1)


def _half(weight: Tensor, bias: Tensor | None, first: int) -> Product:
    """As `half`, of a few rows from `first` on."""
    added = None if bias is None else bias.detach()[first : first + len(weight)].float()
    packed = torch.ops.quantized.linear_prepack_fp16(weight.float(), added)
    multiply: Any = torch.ops.quantized.linear_dynamic_fp16.default

    def product(x: Tensor) -> Tensor:
        found: Tensor = multiply(x, packed)
        return found

    return product


def turned(weight: Tensor, bias: Tensor | None) -> Product:
    """Weights as they are; of a few tokens, the product is W x^T, for which torch's libraries have better code."""
    weight, added = weight.detach(), None if bias is None else bias.detach()[:, None]

    def product(x: Tensor) -> Tensor:
        rows = x.shape[:-1].numel()
        if not 1 < rows <= FEW:
            return F.linear(x, weight, bias)
        across = x.reshape(rows, -1).t()
        found = torch.mm(weight, across) if added is None else torch.addmm(added, weight, across)
        return found.t().contiguous().view(*x.shape[:-1], -1)

    return product


def panels(weight: Tensor, bias: Tensor | None) -> Product:
    """Weights as they are, in 32 or 16 bits, in an order that suits code of our own; all else in fp32."""
    return native.Panels(weight, bias)


def choose_make(kept: torch.dtype, device: torch.device, width: int, hidden: int) -> Make | None:
    """How a device multiplies with weights that are kept in a dtype; None is as torch does, in that dtype.

    Whether half precision has instructions that are fast enough is measured, with matrices of the model's size.
    """
    if device.type != "cpu":
        return None
    if kept == torch.float32:
        return panels if native.available() else turned
    if not (native.available() or has_fbgemm()):
        return None
    make = panels if native.available() else half
    return None if PREFERENCE * seconds(None, kept, width, hidden) < seconds(make, kept, width, hidden) else make


def has_fbgemm() -> bool:
    """Whether torch has FBGEMM's products here."""
    known = platform.machine() in ("x86_64", "AMD64") and "fbgemm" in torch.backends.quantized.supported_engines
    return known and hasattr(torch.ops.quantized, "linear_dynamic_fp16")


def seconds(make: Make | None, kept: torch.dtype, width: int, hidden: int) -> float:
    """What products with one token and with sixteen take together; the best of three."""
    weight = torch.ones(hidden, width, dtype=kept)
    if make is None:
        inputs = [torch.ones(rows, width, dtype=kept) for rows in (1, 16)]
        product: Product = lambda x: F.linear(x, weight)  # noqa: E731
    else:
        inputs = [torch.ones(rows, width) for rows in (1, 16)]
        product = make(weight, None)
    times = []
    for _ in range(4):  # the first builds what there is to build
        start = time.perf_counter()
        for x in inputs:
            product(x)
        times.append(time.perf_counter() - start)
        if sum(times) > 1:
            break
    return min(times)

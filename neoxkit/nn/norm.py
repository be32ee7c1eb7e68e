"""Layer norm and RMS norm, chosen by the Norm node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neoxkit.config.model import Norm
from neoxkit.parallel.division import UNDIVIDED, Division, RmsNorm
from neoxkit.parallel.layers import declare
from neoxkit.spec import Axis, Role, Split, TensorSpec


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension (arXiv 1607.06450)."""

    def __init__(self, name: str, width: int, eps: float, bias: bool, sums: Sequence[Axis], division: Division) -> None:
        super().__init__()
        self.eps = eps
        self.weight = declare([TensorSpec(f"{name}.weight", (width,), role=Role.NORM)], division, sums=sums)
        added = TensorSpec(f"{name}.bias", (width,), role=Role.BIAS)
        self.bias = declare([added], division, sums=sums) if bias else None
        self.apply_norm: Callable[[Tensor, Tensor, Tensor | None, float], Tensor] = layer_norm

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return self.apply_norm(x, self.weight, self.bias, self.eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm of x [..., width] with a weight and perhaps a bias [width]."""
    return F.layer_norm(x, weight.shape, weight, bias, eps)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (arXiv 1910.07467).

    In half precision the mean is taken in fp32 and the result rounded before the weight is
    applied, as the published Llama weights were trained.
    """

    def __init__(self, name: str, width: int, eps: float, sums: Sequence[Axis], division: Division) -> None:
        super().__init__()
        self.eps = eps
        self.weight = declare([TensorSpec(f"{name}.weight", (width,), role=Role.NORM)], division, sums=sums)
        self.apply_norm: Callable[[Tensor, Tensor, float], Tensor] = rms_norm

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return self.apply_norm(x, self.weight, self.eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of x [..., width] with a weight [width]."""
    return weight * F.rms_norm(x.float(), weight.shape, None, eps).to(x.dtype)


def quick_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm` in fp32 without gradients, by operations that take a CPU a third of the time for a few tokens."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return weight * (x * torch.rsqrt(length * length / x.shape[-1] + eps))


class WideRMSNorm(nn.Module):
    """RMSNorm over the last two dimensions together: all heads of a token, which tensor parallelism divides."""

    def __init__(self, name: str, heads: int, head_dim: int, eps: float, division: Division) -> None:
        super().__init__()
        self.eps = eps
        split = (Split(0, Axis.TP, head_dim),)
        self.weight = declare([TensorSpec(f"{name}.weight", (heads * head_dim,), split, Role.NORM)], division)
        self.divided = division.tp is not None
        self.apply_norm: Callable[[Tensor, Tensor, float], Tensor] = partial(_divided_rms_norm, division.rms_norm)

    def forward(self, x: Tensor) -> Tensor:
        """[..., H, D] -> [..., H, D]."""
        return self.apply_norm(x.flatten(-2), self.weight, self.eps).view(x.shape)


def _divided_rms_norm(normalise: RmsNorm, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * normalise(x.float(), weight.shape, None, eps).to(x.dtype)


def build_norm(config: Norm, name: str, width: int, division: Division = UNDIVIDED) -> nn.Module:
    """The norm of the stream that the configuration asks for, holding `{name}.weight` and perhaps `.bias`."""
    if config.kind == "rms":
        return RMSNorm(name, width, config.eps, division.stream, division)
    return LayerNorm(name, width, config.eps, config.bias, division.stream, division)

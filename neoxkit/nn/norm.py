"""Layer norm and RMS norm, chosen by the Norm node."""

from __future__ import annotations

from collections.abc import Sequence

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

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (arXiv 1910.07467).

    In half precision the mean is taken in fp32 and the result rounded before the weight is
    applied, as the published Llama weights were trained.
    """

    def __init__(self, name: str, width: int, eps: float, sums: Sequence[Axis], division: Division) -> None:
        super().__init__()
        self.eps = eps
        self.weight = declare([TensorSpec(f"{name}.weight", (width,), role=Role.NORM)], division, sums=sums)
        self.normalise: RmsNorm = F.rms_norm

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return self.weight * self.normalise(x.float(), self.weight.shape, None, self.eps).to(x.dtype)


def quick_rms_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None, eps: float) -> Tensor:
    """torch's rms_norm without gradients, by operations that take a CPU a third of the time for a few tokens."""
    assert weight is None, "the weight is applied after rounding"
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x * torch.rsqrt(length * length / shape[0] + eps)


class WideRMSNorm(nn.Module):
    """RMSNorm over the last two dimensions together: all heads of a token, which tensor parallelism divides."""

    def __init__(self, name: str, heads: int, head_dim: int, eps: float, division: Division) -> None:
        super().__init__()
        self.eps = eps
        split = (Split(0, Axis.TP, head_dim),)
        self.weight = declare([TensorSpec(f"{name}.weight", (heads * head_dim,), split, Role.NORM)], division)
        self.normalise = division.rms_norm

    def forward(self, x: Tensor) -> Tensor:
        """[..., H, D] -> [..., H, D]."""
        flat = x.flatten(-2).float()
        return (self.weight * self.normalise(flat, self.weight.shape, None, self.eps).to(x.dtype)).view_as(x)


def build_norm(config: Norm, name: str, width: int, division: Division = UNDIVIDED) -> nn.Module:
    """The norm of the stream that the configuration asks for, holding `{name}.weight` and perhaps `.bias`."""
    if config.kind == "rms":
        return RMSNorm(name, width, config.eps, division.stream, division)
    return LayerNorm(name, width, config.eps, config.bias, division.stream, division)

"""Layer norm and RMS norm, chosen by the Norm node."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from neoxkit.config.model import Norm
from neoxkit.parallel.layers import declare
from neoxkit.spec import Role, TensorSpec


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension (arXiv 1607.06450)."""

    def __init__(self, name: str, width: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = declare([TensorSpec(f"{name}.weight", (width,), role=Role.NORM)])
        self.bias = declare([TensorSpec(f"{name}.bias", (width,), role=Role.BIAS)]) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (arXiv 1910.07467).

    In half precision the mean is taken in fp32 and the result rounded before the weight is
    applied, as the published Llama weights were trained.
    """

    def __init__(self, name: str, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = declare([TensorSpec(f"{name}.weight", (width,), role=Role.NORM)])

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return self.weight * F.rms_norm(x.float(), self.weight.shape, None, self.eps).to(x.dtype)


class WideRMSNorm(RMSNorm):
    """RMSNorm over the last two dimensions together: all heads of a token."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., H, D] -> [..., H, D]."""
        return super().forward(x.flatten(-2)).view_as(x)


def build_norm(config: Norm, name: str, width: int) -> nn.Module:
    """The norm that the configuration asks for, holding `{name}.weight` and perhaps `{name}.bias`."""
    if config.kind == "rms":
        return RMSNorm(name, width, config.eps)
    return LayerNorm(name, width, config.eps, config.bias)

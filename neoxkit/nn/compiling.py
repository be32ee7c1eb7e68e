"""Layers compiled by torch.compile, each by itself: what is alike in all of them is compiled once.

Within a layer norms, rotary, activations and residual sums are fused. Attention, matrix products and what is sent
to other ranks stay what they are.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from neoxkit.errors import ConfigError


def compile_layers(layers: Iterable[nn.Module], wanted: bool, backend: str = "inductor") -> None:
    """Let layers run compiled, if that is `wanted`; before any is told to recompute.

    Nothing is compiled before the first pass. Names and parameters stay as they are.
    """
    if not wanted:
        return
    for layer in layers:
        layer.forward = torch.compile(layer.forward, backend=backend)


def check_compiler(device: torch.device) -> None:
    """Raise ConfigError when nothing can be compiled for a device: a small function is, and run."""
    from torch._dynamo.exc import TorchDynamoException

    def small(x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x) + 1

    try:
        torch.compile(small)(torch.ones(64, device=device))
    except (TorchDynamoException, RuntimeError, OSError) as error:
        needs = "triton" if device.type == "cuda" else "a C++ compiler"
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"kernels.compile: torch cannot compile for {device.type} here ({reason})",
            f"install {needs}, or set kernels.compile: false",
        ) from None

"""The precision that a run computes in: chosen once, and then recorded."""

from __future__ import annotations

import torch

from neoxkit.config.run import RunConfig
from neoxkit.parallel.device import beats_fp32

ROWS = 2048
"""Rows of the matrix product that is measured, at most."""


def choose_precision(config: RunConfig, device: torch.device) -> str:
    """fp32 or bf16. `auto` measures a matrix product of the model's own size, which takes a moment."""
    if config.precision != "auto":
        return config.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    rows = min(ROWS, config.micro * config.sequence)
    return "bf16" if beats_fp32(torch.bfloat16, rows, config.model.width, config.model.mlp.hidden) else "fp32"

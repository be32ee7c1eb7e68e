"""The precision that a run computes in: chosen once, and then recorded."""

from __future__ import annotations

import time

import torch

from neoxkit.config.run import RunConfig

ROWS = 2048
"""Rows of the matrix product that is measured, at most."""

MARGIN = 1.5
"""bf16 must win the matrix product by this much: the rest of a step gains nothing, and masters cost a pass."""


def choose_precision(config: RunConfig, device: torch.device) -> str:
    """fp32 or bf16. `auto` measures a matrix product of the model's own size, which takes a moment."""
    if config.precision != "auto":
        return config.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    rows = min(ROWS, config.micro * config.sequence)
    shape = rows, config.model.width, config.model.mlp.hidden
    return "bf16" if product(torch.bfloat16, *shape) * MARGIN < product(torch.float32, *shape) else "fp32"


def product(dtype: torch.dtype, rows: int, width: int, hidden: int) -> float:
    """Seconds of a product [rows, width] x [width, hidden] on the CPU: the best of three."""
    a, b = torch.ones(rows, width, dtype=dtype), torch.ones(hidden, width, dtype=dtype)
    torch.nn.functional.linear(a[:64], b)  # the first product of a dtype builds its kernel
    times = []
    for _ in range(3):
        start = time.perf_counter()
        torch.nn.functional.linear(a, b)
        times.append(time.perf_counter() - start)
        if sum(times) > 1:  # without bf16 instructions a product may take seconds
            break
    return min(times)

"""Which device a name means, and the dtype in which a CPU is fastest."""

from __future__ import annotations

import time

import torch

from neoxkit.errors import ConfigError

MARGIN = 1.5
"""Half precision must win a matrix product by this much: the rest of the work gains nothing from it."""

_ROWS = 256
"""Rows of the product that is measured before a model is run: enough that arithmetic is timed, and not memory.

With instructions for half precision it wins by far, without them it loses by far: what is chosen does
not change from run to run. A single row, as in decoding, would be a toss-up.
"""


def choose_device(wanted: str) -> torch.device:
    """The device called cpu, cuda, cuda:1, mps ...; `auto` is the first GPU, or else the CPU.

    Raises ConfigError when torch does not know the name or finds no such device.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"device {wanted!r} is not to be had here ({first})", "choose auto or cpu") from None
    if device.type == "meta":
        raise ConfigError("device 'meta' holds no numbers", "choose auto or cpu")
    return device


def running_dtype(kept: torch.dtype, device: torch.device, width: int, hidden: int) -> torch.dtype:
    """The dtype to run a model in whose weights are kept in `kept`: the same, or fp32 where that is faster.

    Only a CPU is asked, and only about half precision: without instructions for it, it is many times
    slower. A matrix product of the model's own size is measured, which takes a moment.
    """
    if device.type != "cpu" or kept.itemsize != 2 or beats_fp32(kept, _ROWS, width, hidden):
        return kept
    return torch.float32


def beats_fp32(dtype: torch.dtype, rows: int, width: int, hidden: int) -> bool:
    """Whether the CPU takes a product [rows, width] x [width, hidden] at least MARGIN times faster in this dtype."""
    return product(dtype, rows, width, hidden) * MARGIN < product(torch.float32, rows, width, hidden)


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

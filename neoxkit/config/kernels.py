"""By which code a run is computed: its results are the same but for rounding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from neoxkit.config.model import Node


class Kernels(Node):
    """By which code a run is computed. What it learns is the same but for rounding."""

    attention: Literal["auto", "reference", "sdpa", "flex", "flash"] = Field(
        "auto",
        description="auto: the fastest that device, precision and model allow; sdpa: torch's fused attention, with a "
        "mask where it is not plain; flash: FlashAttention, also for windows and documents, and with flash-attn for "
        "ALiBi; flex: torch's compiled attention for all of these; reference: its definition, slow.",
    )
    compile: bool = Field(
        False,
        description="Compile each layer by torch.compile: norms, rotary, activations and sums are fused. Steps are "
        "faster, and the first takes minutes.",
    )

    def problems(self, stage: int, counted: bool) -> Iterator[tuple[str, str, str]]:
        """What contradicts ZeRO's stage, or operations that are counted by DeepSpeed: the key, why, what to do."""
        if self.compile and stage == 3:
            cause = "kernels.compile with zero.stage 3: DeepSpeed gathers weights amid what would be compiled"
            yield "kernels.compile", cause, "lower zero.stage, or set kernels.compile: false"
        if self.compile and counted:
            cause = "kernels.compile with deepspeed.flops_profiler, which counts no operations of compiled layers"
            yield "kernels.compile", cause, "leave one of them out"


DEFAULT = Kernels()
"""Kernels that are chosen, and nothing compiled."""

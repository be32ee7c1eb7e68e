"""How a run is divided over devices, and what each of them keeps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from neoxkit.config.model import Node


class MeshSizes(Node):
    """How many ways each axis divides the run. The data-parallel size follows from the number of devices."""

    tp: int = Field(1, gt=0, description="Tensor parallel: heads, hidden rows and the vocabulary are divided.")
    pp: int = Field(1, gt=0, description="Pipeline parallel: layers are divided.")
    dp: int | None = Field(
        None, gt=0, description="Data parallel: samples are divided. devices / (tp x pp) when left out."
    )
    sequence_parallel: bool = Field(
        False, description="Divide tokens too, over tp, wherever heads are not: less memory, the same amount sent."
    )


class Zero(Node):
    """What data-parallel ranks divide among themselves (ZeRO, arXiv 1910.02054). Stages above 0 need DeepSpeed."""

    stage: Literal[0, 1, 2, 3] = Field(
        0, description="0: nothing; 1: optimizer state; 2: gradients too; 3: weights too."
    )
    offload: Literal["none", "optimizer", "all"] = Field(
        "none",
        description="Keep in the CPU's memory. optimizer: masters and moments; all: weights too (stage 3).",
    )


class Recompute(Node):
    """Activations that are computed again on the way back, for memory (arXiv 1604.06174)."""

    layers: Literal["none", "full", "selective"] = Field(
        "none", description="full: whole layers; selective: attention alone (arXiv 2205.05198)."
    )
    every: int = Field(1, gt=0, description="Of so many layers, one is recomputed.")


class LossScale(Node):
    """The factor by which the loss is multiplied in fp16, so that small gradients do not vanish."""

    initial: float = Field(65536.0, gt=0, description="The first scale.")
    window: int = Field(1000, gt=0, description="Steps without overflow after which the scale doubles.")
    hysteresis: int = Field(2, gt=0, description="Overflows until the scale is halved.")
    lowest: float = Field(1.0, gt=0, description="The scale is never halved below this.")
    fixed: bool = Field(False, description="Keep the first scale for ever.")

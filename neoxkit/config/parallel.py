"""How a run is divided over devices, and what each of them keeps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from neoxkit.config.model import Node


class MeshSizes(Node):
    """How many ways each axis divides the run. The data-parallel size follows from the number of devices."""

    tp: int = Field(1, gt=0, description="Tensor parallel: heads, hidden rows and the vocabulary are divided.")
    pp: int = Field(1, gt=0, description="Pipeline parallel: layers are divided.")
    dp: int | None = Field(
        None, gt=0, description="Data parallel: samples are divided. devices / (tp x pp x cp) when left out."
    )
    cp: int = Field(
        1,
        gt=0,
        description="Context parallel: the tokens of every sample are divided, and heads during attention, as "
        "DeepSpeed-Ulysses does (arXiv 2309.14509). For long samples.",
    )
    sequence_parallel: bool = Field(
        False, description="Divide tokens too, over tp, wherever heads are not: less memory, the same amount sent."
    )

    @property
    def model(self) -> int:
        """Devices that learn from the same samples."""
        return self.tp * self.pp * self.cp

    @property
    def tokens(self) -> int:
        """Ranks that the tokens of a sample are divided over."""
        return self.cp * (self.tp if self.sequence_parallel else 1)

    def problems(self, heads: int, sequence: int, noise: bool) -> Iterator[tuple[str, str, str]]:
        """What these contradict of a run with such a model and samples: the key, why, what to do."""
        both = f"tp {self.tp} x cp {self.cp}"
        if self.cp > 1 and heads % (self.tp * self.cp):
            cause = f"mesh.cp {self.cp}: {heads} heads do not divide over {both}, and attention divides whole heads"
            yield "mesh.cp", cause, "choose another mesh"
        if self.cp > 1 and self.pp > 1:
            cause = f"mesh.cp {self.cp} with mesh.pp {self.pp}: DeepSpeed's pipeline knows no context parallelism"
            yield "mesh.cp", cause, "set one of them to 1; ZeRO divides state over dp x cp"
        if self.cp > 1 and noise:
            cause = f"logging.noise_scale with mesh.cp {self.cp}: a rank has the gradient of no whole sample"
            yield "logging.noise_scale", cause, "set it to null"
        if self.sequence_parallel and self.tp == 1:
            cause = "mesh.sequence_parallel divides tokens over tp, and mesh.tp is 1"
            yield "mesh.sequence_parallel", cause, "leave it out, or raise mesh.tp"
        if sequence % self.tokens:
            key = "mesh.sequence_parallel" if sequence % self.cp == 0 else "mesh.cp"
            over = both if self.sequence_parallel and self.cp > 1 else f"{'cp' if self.cp > 1 else 'tp'} {self.tokens}"
            cause = f"{key} divides {sequence} tokens over {over}, and they do not divide"
            yield key, cause, "choose another data.sequence"


class Zero(Node):
    """What ranks along dp and cp divide among themselves (ZeRO, arXiv 1910.02054). Stages above 0 need DeepSpeed."""

    stage: Literal[0, 1, 2, 3] = Field(
        0,
        description="0: nothing; 1: optimizer state; 2: gradients too; 3: weights too. What is not stated is 1 where "
        "DeepSpeed's engine computes in bf16 or fp16.",
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

    @model_validator(mode="after")
    def _every_of_some(self) -> Recompute:
        if self.every > 1 and self.layers == "none":
            raise ValueError("every is of the layers that are recomputed, and layers is none; set layers: full")
        return self


class LossScale(Node):
    """The factor by which the loss is multiplied in fp16, so that small gradients do not vanish."""

    initial: float = Field(65536.0, gt=0, description="The first scale.")
    window: int = Field(1000, gt=0, description="Steps without overflow after which the scale doubles.")
    hysteresis: int = Field(2, gt=0, description="Overflows until the scale is halved.")
    lowest: float = Field(1.0, gt=0, description="The scale is never halved below this.")
    fixed: bool = Field(False, description="Keep the first scale for ever.")
    most_skipped: int = Field(
        50, gt=0, description="A step whose gradient overflows is skipped; so many in a row end the run."
    )

    @model_validator(mode="after")
    def _moves_or_not(self) -> LossScale:
        for name in ("window", "hysteresis", "lowest"):
            if self.fixed and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} says how the scale moves, and fixed keeps it; leave one of them out")
        if self.lowest > self.initial:
            raise ValueError(f"lowest {self.lowest:g} is above initial {self.initial:g}; lower it")
        return self

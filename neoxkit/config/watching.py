"""How a run is watched: what it measures, who is told, what is profiled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from neoxkit.config.model import Node


class Wandb(Node):
    """Weights & Biases. Whether it is on-line is for WANDB_MODE to say; the key is that of `wandb login`."""

    project: str = Field("neoxkit", description="The project.")
    entity: str | None = Field(None, description="The team or user; null: the user's default.")
    group: str | None = Field(None, description="Runs of a group are shown together.")
    name: str | None = Field(None, description="The run's name; null: the name of its folder.")
    tags: tuple[str, ...] = Field((), description="Labels of the run.")
    host: str | None = Field(None, description="URL of a server of one's own; null: wandb's.")


class Comet(Node):
    """Comet. The key is that of `comet login`, or in COMET_API_KEY."""

    project: str = Field("neoxkit", description="The project.")
    workspace: str | None = Field(None, description="The workspace; null: the user's default.")
    name: str | None = Field(None, description="The experiment's name; null: the name of the run's folder.")
    tags: tuple[str, ...] = Field((), description="Labels of the experiment.")
    offline: str | None = Field(None, description="A folder to write archives to, for `comet upload`; null: on-line.")


class Logging(Node):
    """What is told while training goes on, and to whom."""

    every: int = Field(10, gt=0, description="Steps between lines of the log, where stderr is no terminal.")
    parameter_norm: int | None = Field(
        None, gt=0, description="Steps between measurements of the norm of all weights; null: never."
    )
    noise_scale: int | None = Field(
        None,
        gt=0,
        description="Steps between measurements of the gradient noise scale (arXiv 1812.06162), the batch size in "
        "tokens beyond which larger batches save few steps; null: never. It compares micro-batches with their sum.",
    )
    peak_tflops: float | None = Field(
        None, gt=0, description="1e12 operations a second that a device can do, for MFU and HFU; null: by its name."
    )
    tensorboard: str | None = Field(None, description="A folder for TensorBoard's event files; null: none.")
    wandb: Wandb | None = Field(None, description="Where Weights & Biases is to have it; null: nowhere.")
    comet: Comet | None = Field(None, description="Where Comet is to have it; null: nowhere.")

    def problems(self, deepspeed: bool, precision: str, micro_batches: int) -> Iterator[tuple[str, str, str]]:
        """What these contradict of a run, whose steps have so many micro-batches in all: the key, why, what to do."""
        for key, every in (("noise_scale", self.noise_scale), ("parameter_norm", self.parameter_norm)):
            if every and deepspeed:
                cause = f"logging.{key} is of the plain engine: DeepSpeed divides what it is computed from"
                yield key, cause, "set it to null"
        if self.noise_scale and precision == "fp16":
            cause = "logging.noise_scale with precision fp16: gradients of micro-batches are scaled, and may overflow"
            yield "noise_scale", cause, "choose bf16, or set it to null"
        if self.noise_scale and micro_batches == 1:
            cause = "logging.noise_scale compares micro-batches with a step, and a step has one micro-batch"
            yield "noise_scale", cause, "lower batch.micro"


class Profile(Node):
    """A few steps, recorded in detail in the run's folder. It slows them down."""

    first: int = Field(gt=0, description="The first step that is recorded.")
    last: int = Field(gt=0, description="The last one.")
    record: Literal["torch", "memory", "nsight"] = Field(
        "torch",
        description="torch: a trace for chrome://tracing or Perfetto; memory: what lies in a GPU's memory, for "
        "pytorch.org/memory_viz; nsight: marks, for `nsys profile -c cudaProfilerApi`.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Profile:
        if self.last < self.first:
            raise ValueError(f"last {self.last} is before first {self.first}")
        return self

"""DeepSpeed's own options, as DeepSpeed spells them: those that a run may tune, and who decides the others.

DeepSpeed itself takes a misspelled key without a word, so nothing is passed on that is not declared here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import Field, model_validator

from neoxkit.config.model import Node

DECIDED: Mapping[str, str] = {
    "train_batch_size": "batch.size",
    "train_micro_batch_size_per_gpu": "batch.micro",
    "gradient_accumulation_steps": "batch.size and batch.micro",
    "gradient_clipping": "clip",
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "fp16": "precision and loss_scale",
    "bf16": "precision",
    "bfloat16": "precision",
    "data_types": "precision",
    "torch_autocast": "precision",
    "activation_checkpointing": "recompute",
    "steps_per_print": "logging.every",
    "data_efficiency": "data",
    "seed": "seed",
    "pipeline": "mesh.pp",
    "tensor_parallel": "mesh.tp",
    "sequence_parallel_size": "mesh",
}
"""Keys of DeepSpeed that neoxkit's own options decide."""

ZERO_DECIDED: Mapping[str, str] = {
    "stage": "zero.stage",
    "offload_optimizer": "zero.offload",
    "offload_param": "zero.offload",
    "cpu_offload": "zero.offload",
    "cpu_offload_param": "zero.offload",
}

STAGES: Mapping[str, tuple[int, ...]] = {
    "allgather_bucket_size": (1, 2),
    "round_robin_gradients": (1, 2),
    "sub_group_size": (3,),
    "stage3_prefetch_bucket_size": (3,),
    "stage3_param_persistence_threshold": (3,),
    "stage3_max_live_parameters": (3,),
    "stage3_max_reuse_distance": (3,),
}
"""The ZeRO stages that read an option of `zero_optimization`; all but 0, where it is not named."""

REMOVED: Mapping[str, str] = {
    "amp": "DeepSpeed 0.19 has removed it; set precision",
    "nebula": "DeepSpeed 0.19 has removed it; checkpoints are neoxkit's own",
    "sparse_attention": "DeepSpeed 0.19 has removed it; set model.mixer.window",
    "curriculum_learning": "DeepSpeed 0.19 has removed it",
    "progressive_layer_drop": "DeepSpeed 0.19 has removed it",
    "checkpoint": "checkpoints are neoxkit's own; see save",
    "tensorboard": "the run's own metrics are logged by neoxkit; see logging",
    "wandb": "the run's own metrics are logged by neoxkit; see logging",
    "csv_monitor": "metrics.jsonl has the run's metrics",
    "comet": "the run's own metrics are logged by neoxkit; see logging",
}
"""Keys of DeepSpeed that do nothing here, and why."""


def _refuse(given: object, decided: Mapping[str, str]) -> object:
    if isinstance(given, dict):
        for key in given:
            if key in decided:
                raise ValueError(f"{key} is decided by {decided[key]}; set that")
            if key in REMOVED:
                raise ValueError(f"{key}: {REMOVED[key]}")
    return given


class ZeroTuning(Node):
    """How ZeRO sends and keeps what it divides. Null: DeepSpeed decides. None of it changes what is learned."""

    reduce_bucket_size: int | None = Field(
        None, gt=0, description="Elements of gradients that are sent at a time (stages 1 to 3)."
    )
    allgather_bucket_size: int | None = Field(
        None, gt=0, description="Elements of weights that are gathered at a time (stages 1 and 2)."
    )
    overlap_comm: bool | None = Field(None, description="Send gradients while others are computed.")
    reduce_scatter: bool | None = Field(None, description="Send each rank its part of the gradients, not all of them.")
    contiguous_gradients: bool | None = Field(None, description="Copy gradients into one buffer as they are made.")
    round_robin_gradients: bool | None = Field(
        None, description="Deal gradients out in turn, so that offloaded copies go in parallel (stages 1 and 2)."
    )
    sub_group_size: int | None = Field(None, gt=0, description="Elements that are updated at a time (stage 3).")
    stage3_prefetch_bucket_size: int | None = Field(
        None, ge=0, description="Elements of weights that are fetched ahead of use."
    )
    stage3_param_persistence_threshold: int | None = Field(
        None, ge=0, description="Weights of fewer elements are kept whole on every rank."
    )
    stage3_max_live_parameters: int | None = Field(None, ge=0, description="Elements that are whole at a time.")
    stage3_max_reuse_distance: int | None = Field(
        None, ge=0, description="Weights that are used again within so many elements are kept."
    )

    @model_validator(mode="before")
    @classmethod
    def _ours(cls, given: object) -> object:
        return _refuse(given, ZERO_DECIDED)


class CommsLogger(Node):
    """A log of what is sent."""

    enabled: bool = Field(description="Write it to stderr.")
    verbose: bool = Field(False, description="A line for each message.")
    prof_all: bool = Field(True, description="All kinds of messages.")
    debug: bool = Field(False, description="Name the caller too.")


class FlopsProfiler(Node):
    """DeepSpeed's count of floating-point operations and time, module by module."""

    enabled: bool = Field(description="Profile one step.")
    profile_step: int = Field(1, ge=0, description="Which: the one after so many.")
    module_depth: int = Field(-1, description="Modules to tell, in depth; -1: all.")
    top_modules: int = Field(1, gt=0, description="Modules to tell at each depth.")
    detailed: bool = Field(True, description="Tell every module.")
    output_file: str | None = Field(None, description="A file to write it to; null: stderr.")


class DeepSpeedOptions(Node):
    """Options that are passed on to DeepSpeed, under its own names."""

    zero_optimization: ZeroTuning = ZeroTuning()
    comms_logger: CommsLogger | None = None
    flops_profiler: FlopsProfiler | None = None
    communication_data_type: Literal["fp32", "bf16", "fp16"] | None = Field(
        None, description="The type in which gradients are sent; fp32 when left out."
    )
    prescale_gradients: bool | None = Field(None, description="Divide gradients before they are summed over ranks.")
    gradient_predivide_factor: float | None = Field(
        None, gt=0, description="Divide gradients by this before they are summed, and by the rest afterwards."
    )
    wall_clock_breakdown: bool | None = Field(None, description="Write times of each part of a step to stderr.")
    memory_breakdown: bool | None = Field(None, description="Write the memory in use at each part of a step to stderr.")

    @model_validator(mode="before")
    @classmethod
    def _ours(cls, given: object) -> object:
        return _refuse(given, DECIDED)

    def problems(self, stage: int, pp: int, steps: int) -> Iterator[tuple[str, str, str]]:
        """What has no effect, or cannot be, with such a ZeRO stage and pipeline: the key, what is wrong, the remedy."""
        for key, value in self.zero_optimization.model_dump(exclude_none=True).items():
            if value is not None and not reads(key, stage):
                first, *others = STAGES.get(key, (1, 2, 3))
                stages = f"stages {first} to {others[-1]}" if others else f"stage {first}"
                told = f" is of ZeRO's {stages}, and zero.stage is {stage}"
                yield f"zero_optimization.{key}", told, f"leave it out, or set zero.stage: {first}"
        if pp > 1 and self.zero_optimization.overlap_comm:
            cause = ": a pipeline's gradients are sent when all are computed"
            yield "zero_optimization.overlap_comm", cause, "leave it out"
        factor = self.gradient_predivide_factor not in (None, 1.0)
        if factor and self.prescale_gradients:
            yield "gradient_predivide_factor", " says nothing beside prescale_gradients", "keep one of them"
        if stage > 1 and self.zero_optimization.reduce_scatter is not False and (factor or self.prescale_gradients):
            key = "gradient_predivide_factor" if factor else "prescale_gradients"
            cause = f": ZeRO stage {stage} knows none while it sends each rank its part"
            yield key, cause, "leave it out, or set deepspeed.zero_optimization.reduce_scatter: false"
        profiler = self.flops_profiler
        if profiler is None or not profiler.enabled:
            return
        if pp > 1:
            yield "flops_profiler", " never ends in a pipeline", "leave it out"
        if profiler.profile_step >= steps > 0:
            cause = f" {profiler.profile_step} never comes in a run of {steps} steps"
            yield "flops_profiler.profile_step", cause, f"choose one below {steps}"


def reads(key: str, stage: int) -> bool:
    """Whether a ZeRO stage reads an option of `zero_optimization`."""
    return stage in STAGES.get(key, (1, 2, 3))

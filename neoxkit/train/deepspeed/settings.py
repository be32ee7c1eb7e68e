"""A run as DeepSpeed's own configuration: every key that decides the training is written here, and nowhere else."""

from __future__ import annotations

from typing import Any

from neoxkit.config.run import RunConfig

QUIET = 10**9
"""Steps between DeepSpeed's lines of progress: never. The loop tells it."""


def deepspeed_config(config: RunConfig) -> dict[str, Any]:
    """What `deepspeed.initialize` is given. `config.precision` must be resolved.

    Clipping is off, and the loss is not scaled: the engine divides by the tokens of the whole step, and clips by
    a norm that counts shared heads once, by way of DeepSpeed's static loss scale. Rates are set at every step.
    """
    half = config.precision != "fp32"
    found: dict[str, Any] = {
        "train_batch_size": config.micro * config.accumulation * config.dp * config.mesh.cp,
        "train_micro_batch_size_per_gpu": config.micro,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": 0.0,
        "steps_per_print": QUIET,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero_config(config),
        "bf16": {"enabled": config.precision == "bf16"},
        "fp16": {"enabled": config.precision == "fp16", "loss_scale": 1.0},
    }
    if half:
        found |= {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
    # Of a stream that all tensor-parallel ranks have alike, each sends a part to the next stage. A divided one differs.
    alike = not config.mesh.sequence_parallel
    found["pipeline"] = {"pipe_partitioned": alike, "grad_partitioned": alike}
    given = config.deepspeed.model_dump(exclude_none=True, exclude={"zero_optimization"})
    return found | given


def zero_config(config: RunConfig) -> dict[str, Any]:
    """The part about ZeRO. Parameters that have no gradient in a pass are an error elsewhere, so they need no care."""
    zero = config.zero
    found: dict[str, Any] = {"stage": zero.stage}
    if zero.offload != "none":
        found["offload_optimizer"] = {"device": "cpu"}
    if zero.offload == "all":
        found["offload_param"] = {"device": "cpu"}
    return found | config.deepspeed.zero_optimization.model_dump(exclude_none=True)

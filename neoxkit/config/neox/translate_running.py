"""gpt-neox's options of batches, devices, checkpoints and logs to ours."""

from __future__ import annotations

import difflib
import math
import os
from typing import Any

from neoxkit.config.deepspeed import STAGES, DeepSpeedOptions, ZeroTuning, reads
from neoxkit.config.neox.draft import Draft
from neoxkit.config.run import HALF


def devices(draft: Draft) -> None:
    """The mesh, ZeRO, and what is passed on to DeepSpeed where it trains."""
    tp, pp = draft.get("model_parallel_size"), draft.get("pipe_parallel_size")
    draft.put("mesh.tp", max(1, tp), "model_parallel_size")
    draft.put("mesh.pp", max(1, pp), "pipe_parallel_size")
    if draft.get("sequence_parallel") and tp > 1:
        draft.put("mesh.sequence_parallel", True, "sequence_parallel")
    count = draft.get("global_num_gpus")
    if count is not None:
        dp, rest = divmod(count, max(1, tp) * max(1, pp))
        if rest or dp < 1:
            raise draft.refuse(
                "global_num_gpus",
                f"{count} do not divide over model_parallel_size {tp} x pipe_parallel_size {pp}",
                "leave it out: the number of devices is seen when a run starts",
            )
        draft.put("mesh.dp", dp, "global_num_gpus")
    stage = _zero(draft)
    if draft.get("checkpoint_activations"):
        draft.put("recompute.layers", "full", "checkpoint_activations")
    _passed_on(draft, needed=stage > 0 or pp > 1)
    _tuned(draft, stage, pp)


def _zero(draft: Draft) -> int:
    """The stage; and what of its state lies in the memory of the CPU."""
    zero = draft.get("zero_optimization")
    draft.used.add("zero_optimization")
    stage = draft.get("zero_stage") if zero is None else zero.get("stage")
    if stage is None and zero is None:
        stage = 0
    name = "zero_stage" if zero is None else "zero_optimization.stage"
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        raise draft.refuse(name, f"{stage!r:.60}", "choose 0, 1, 2 or 3")
    half = draft.tree.values["precision"] in HALF and draft.get("pipe_parallel_size") > 1
    if stage == 0 and half and (zero is not None or draft.has("zero_stage")):
        draft.dropped[name] = "in half precision a pipeline has ZeRO 1, which learns the same"
        stage = 1
    draft.put("zero.stage", stage, name)
    where: dict[str, Any] = {}
    for theirs, old in (("offload_optimizer", "cpu_offload"), ("offload_param", "cpu_offload_params")):
        block = (zero or {}).get(theirs)
        device = (block or {}).get("device", "none") if isinstance(block, dict | None) else block
        if device not in ("none", "cpu", None):
            raise draft.refuse(f"zero_optimization.{theirs}", f"to {device!r:.60}", "choose cpu")
        if device == "cpu" or (zero or {}).get(old) is True:
            where[theirs] = f"zero_optimization.{theirs if device == 'cpu' else old}"
    if where and not stage:
        draft.dropped["zero_optimization"] = "without a stage nothing is divided, and nothing is offloaded"
    elif where:
        all_of_it = "offload_param" in where
        draft.put("zero.offload", "all" if all_of_it else "optimizer", next(reversed(where.values())))
    return int(stage)


OFFLOAD = (
    *("stage", "offload_optimizer", "offload_param"),
    *("cpu_offload", "cpu_offload_params", "cpu_offload_use_pin_memory"),
)
PASSED = (
    *("prescale_gradients", "gradient_predivide_factor", "wall_clock_breakdown", "flops_profiler"),
    *("communication_data_type", "comms_logger"),
)
ANYWAY = {"prescale_gradients": False, "gradient_predivide_factor": 1.0, "wall_clock_breakdown": False}
"""What DeepSpeed does unless it is told otherwise."""

CHECKPOINTS = (
    *("elastic_checkpoint", "load_from_fp32_weights", "pipeline_loading_checkpoint"),
    *("stage3_gather_16bit_weights_on_model_save", "stage3_gather_fp16_weights_on_model_save"),
)
TUNING = (
    *("allgather_partitions", "use_multi_rank_bucket_allreduce", "ignore_unused_parameters", "legacy_stage1"),
    *("stage3_model_persistence_threshold", "module_granularity_threshold", "memory_efficient_linear"),
    *("stage3_module_granularity_threshold", "use_all_reduce_for_fetch_params", "fast_sharding_for_leaf_module"),
    *("stage3_use_all_reduce_for_fetch_params", "override_module_apply", "log_trace_cache_warnings"),
)
PRESCALE = "prescale_gradients"
OWN = "there is no ZeRO and no pipeline, and neoxkit's own engine trains"


def _passed_on(draft: Draft, needed: bool) -> None:
    """Options of DeepSpeed, as they are; where neoxkit's own engine trains, they say nothing."""
    given = {name: name for name in PASSED if draft.has(name)}
    extra = draft.get("deepspeed_extra_args") or {}
    given |= {name: f"deepspeed_extra_args.{name}" for name in extra if name not in ("fp16", "bf16")}
    for name, origin in given.items():
        value = extra[name] if "." in origin else draft.get(name)
        off = isinstance(value, dict) and not value.get("enabled")
        if off or value is None or value == ANYWAY.get(name):
            continue
        if name not in DeepSpeedOptions.model_fields:
            raise draft.refuse(origin, "not passed on to DeepSpeed", "leave it out")
        if not needed:
            draft.dropped[origin] = OWN
        elif name == "gradient_predivide_factor" and (draft.get(PRESCALE) or extra.get(PRESCALE)):
            draft.dropped[origin] = f"{PRESCALE} decides"
        elif name == "flops_profiler" and value.get("profile_step", 1) >= draft.tree.values.get("steps", math.inf):
            draft.dropped[origin] = "its profile_step never comes"
        else:
            draft.put(f"deepspeed.{name}", value, origin)


def _tuned(draft: Draft, stage: int, pp: int) -> None:
    """What tunes ZeRO, as it is, where the stage reads it."""
    for name, value in (draft.get("zero_optimization") or {}).items():
        origin = f"zero_optimization.{name}"
        if name in OFFLOAD:
            continue
        if name in CHECKPOINTS:
            draft.dropped[origin] = "checkpoints are neoxkit's own"
        elif name in TUNING:
            draft.dropped[origin] = "neoxkit decides; no result changes"
        elif name not in ZeroTuning.model_fields:
            close = difflib.get_close_matches(name, ZeroTuning.model_fields, n=1)
            remedy = f"did you mean {close[0]}?" if close else "leave it out"
            raise draft.refuse(origin, "not passed on to DeepSpeed", remedy)
        elif pp <= 1 and not stage:
            draft.dropped[origin] = OWN
        elif not reads(name, stage):
            draft.dropped[origin] = f"ZeRO stage {stage} does not read it"
        elif name == "overlap_comm" and pp > 1:
            draft.dropped[origin] = "a pipeline sends gradients when all are computed"
        else:
            whole = isinstance(value, float) and value.is_integer()
            draft.put(f"deepspeed.{origin}", int(value) if whole else value, origin)
            stages = STAGES.get(name, (1, 2, 3))
            draft.tree.only["deepspeed", "zero_optimization", name] = ("zero", "stage"), stages


def batch(draft: Draft) -> None:
    """Samples of a step: two of three are enough, since the number of devices is seen when a run starts."""
    size, passes = draft.get("train_batch_size"), draft.get("gradient_accumulation_steps")
    micro_of = "train_micro_batch_size_per_gpu" if draft.has("train_micro_batch_size_per_gpu") else "batch_size"
    micro = draft.get(micro_of)
    for name, value in (("train_batch_size", size), (micro_of, micro), ("gradient_accumulation_steps", passes)):
        if value is not None and value < 1:
            raise draft.refuse(name, f"{value}", "it must be above 0")
    if size is None and micro is None:
        draft.lack(
            "batch.size",
            "neither train_batch_size nor train_micro_batch_size_per_gpu is given",
            "give one, or --set batch.size=N",
        )
        return
    if size is not None:
        draft.put("batch.size", size, "train_batch_size")
    if micro is not None:
        draft.put("batch.micro", micro, micro_of)
    if size is None or draft.has("gradient_accumulation_steps"):
        draft.put("batch.accumulation", passes, "gradient_accumulation_steps", micro_of)
    if size is not None and micro is not None and draft.has("gradient_accumulation_steps") and size % (micro * passes):
        raise draft.refuse(
            "train_batch_size",
            f"{size} is no multiple of {micro_of} {micro} x gradient_accumulation_steps {passes}",
            "leave one of them out",
        )


def saving(draft: Draft) -> None:
    """Where the run lives, and when it saves."""
    folder = draft.get("save")
    if folder is None:
        draft.lack("save.folder", "save is not given", "give it: a run without a folder would leave nothing")
    else:
        draft.put("save.folder", folder, "save")
    factor, extra = draft.get("checkpoint_factor"), draft.get("extra_save_iters") or []
    if factor is not None and draft.get("checkpoint_scale").lower() == "log":
        draft.put("save.log_factor", float(factor), "checkpoint_factor", "checkpoint_scale")
    elif factor is not None:
        if factor != int(factor) or factor < 1:
            raise draft.refuse(
                "checkpoint_factor", f"{factor}", "with checkpoint_scale linear it is a whole number of steps"
            )
        draft.put("save.every", int(factor), "checkpoint_factor")
    if extra:
        draft.put("save.steps", extra, "extra_save_iters")
    if draft.has("keep_last_n_checkpoints"):
        draft.put("save.keep_last", draft.get("keep_last_n_checkpoints"), "keep_last_n_checkpoints")


def loading(draft: Draft) -> None:
    """What the run begins with. gpt-neox's `load` of its own `save` folder is what every run does here."""
    draft.used |= {"load", "finetune", "iteration"}
    folder, save, fresh = draft.get("load"), draft.get("save"), draft.get("finetune")
    same = folder is not None and save is not None and os.path.normpath(folder) == os.path.normpath(save)
    if folder is None:
        for name in ("finetune", "iteration"):
            if draft.get(name):
                draft.dropped[name] = "no `load` is given"
        return
    if not fresh:
        if not same:
            raise draft.refuse(
                "load",
                f"{folder} is another folder than save",
                "to go on with an old run, `neoxkit import LOAD SAVE/step-N` and leave load out; "
                "to begin anew with its weights, set finetune: true",
            )
        draft.dropped["load"] = "a run goes on from its own folder by itself"
        return
    step = draft.get("iteration")
    draft.put("load", folder if step is None else os.path.join(folder, f"global_step{step}"), "load")


COMET = {"workspace": "workspace", "experiment_name": "name", "tags": "tags"}


def watching(draft: Draft) -> None:
    """The log, the trackers and the profile."""
    draft.put("logging.every", draft.get("log_interval"), "log_interval")
    draft.put("logging.tensorboard", draft.get("tensorboard_dir"), "tensorboard_dir")
    draft.put("logging.peak_tflops", draft.get("peak_theoretical_tflops"), "peak_theoretical_tflops")
    _trackers(draft)
    if draft.get("profile") or draft.get("memory_profiling"):
        name = "profile" if draft.get("profile") else "memory_profiling"
        draft.put("profile.record", "torch" if name == "profile" else "memory", name)
        draft.put("profile.first", max(1, draft.get("profile_step_start")), "profile_step_start", always=True)
        draft.put("profile.last", draft.get("profile_step_stop"), "profile_step_stop", always=True)
    mesh, zero = draft.tree.values.get("mesh", {}), draft.tree.values.get("zero", {})
    if mesh.get("pp", 1) > 1 or zero.get("stage", 0):
        for name in ("log_param_norm", "log_gradient_noise_scale"):
            if draft.get(name):
                draft.dropped[name] = "it is not measured where DeepSpeed trains"
        return
    if draft.get("log_param_norm"):
        draft.put("logging.parameter_norm", draft.get("log_interval"), "log_param_norm")
    if draft.get("log_gradient_noise_scale"):
        every = draft.get("gradient_noise_scale_n_batches")
        draft.put("logging.noise_scale", every, "log_gradient_noise_scale")


def _trackers(draft: Draft) -> None:
    """Weights & Biases, and Comet."""
    if draft.get("use_wandb"):
        draft.put("logging.wandb.project", draft.get("wandb_project"), "wandb_project", "use_wandb", always=True)
        for theirs, ours in (("team", "entity"), ("group", "group"), ("run_name", "name")):
            draft.put(f"logging.wandb.{ours}", draft.get(f"wandb_{theirs}"), f"wandb_{theirs}")
        if draft.get("wandb_host") != "https://api.wandb.ai":
            draft.put("logging.wandb.host", draft.get("wandb_host"), "wandb_host")
    else:
        _unused(draft, "use_wandb", "wandb_")
    if draft.get("use_comet"):
        project = draft.get("comet_project") or "neoxkit"
        draft.put("logging.comet.project", project, "comet_project", "use_comet", always=True)
        for theirs, ours in (("workspace", "workspace"), ("experiment_name", "name"), ("tags", "tags")):
            if draft.get(f"comet_{theirs}") is not None:
                draft.put(f"logging.comet.{ours}", draft.get(f"comet_{theirs}"), f"comet_{theirs}")
    else:
        _unused(draft, "use_comet", "comet_")


def _unused(draft: Draft, switch: str, prefix: str) -> None:
    """Options of a tracker that is not asked for."""
    for name in draft.settings.values:
        if name.startswith(prefix):
            draft.dropped[name] = f"{switch} is not true"

"""A run of ours in gpt-neox's options: the way back of `translate`, and checked by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from neoxkit.config.data import Data
from neoxkit.config.neox.network import GATED, NORMS, PLAIN
from neoxkit.config.neox.translate_data import PACKINGS
from neoxkit.config.neox.translate_model import INITS
from neoxkit.config.run import RunConfig

KINDS = {"adamw": "Adam", "adamw8bit": "Adam", "lion": "Lion", "sgd": "SGD"}

UNTOLD = (
    *("model.family", "model.tokens", "data.tokenizer", "data.sequence", "device", "threads", "engine"),
    *("save.background", "loss_scale", "deepspeed.comms_logger", "deepspeed.flops_profiler"),
)
"""What gpt-neox has no word for, or takes from somewhere else, and what is learned does not depend on."""


def to_neox(run: RunConfig) -> dict[str, Any]:
    """The options of gpt-neox that mean the same, as far as it has words; `lost` says what it has none for."""
    found = {**_network(run), **_learning(run), **_running(run)}
    return {key: value for key, value in found.items() if value is not None}


def lost(run: RunConfig, back: RunConfig) -> Iterator[str]:
    """The options in which a run differs from what was read back of its translation, but for those of UNTOLD."""
    ours, theirs = (_flat(each.model_dump(mode="json")) for each in (run, back))
    for key in {**ours, **theirs}:
        told = any(key == name or key.startswith(f"{name}.") for name in UNTOLD)
        told |= key == "data.blend" and len(run.data.train) == 1  # which is blended with nothing
        if ours.get(key) != theirs.get(key) and not told:
            yield key


def _flat(tree: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found.update(_flat(value, f"{at}{key}.") if isinstance(value, Mapping) else {f"{at}{key}": value})
    return found


def _network(run: RunConfig) -> dict[str, Any]:
    model, mixer, mlp = run.model, run.model.mixer, run.model.mlp
    norm, (_, eps, _) = next((name, each) for name, each in NORMS.items() if each[0] == model.norm.kind)
    inits = {ours: theirs for theirs, ours in INITS.items()}
    exact = mlp.activation.removesuffix("_tanh")
    known = GATED if mlp.gated else PLAIN
    found: dict[str, Any] = {
        "num_layers": model.depth,
        "hidden_size": model.width,
        "num_attention_heads": mixer.heads,
        "num_kv_heads": mixer.kv_heads if mixer.kv_heads != mixer.heads else None,
        "max_position_embeddings": model.context,
        "seq_length": run.sequence,
        "padded_vocab_size": model.vocab,
        "no_weight_tying": not model.tied,
        "norm": norm,
        eps: model.norm.eps,
        "pos_emb": model.position.kind,
        "gpt_j_residual": model.residual in ("parallel", "shared"),
        "gpt_j_tied": model.residual == "shared",
        "use_bias_in_attn_linear": mixer.bias,
        "use_bias_in_mlp": mlp.bias,
        "activation": next((theirs for theirs, ours in known.items() if ours == exact), exact),
        "bias_gelu_fusion": mlp.activation.endswith("_tanh"),
        "intermediate_size": 3 * mlp.hidden if mlp.gated else mlp.hidden,
        "init_method": inits[run.init.weights],
        "output_layer_init_method": inits[run.init.output],
        "init_method_std": run.init.std,
    }
    if model.position.kind == "rotary":
        base = model.position.base  # a whole number in gpt-neox, which stops at another
        found |= {"rotary_pct": model.position.fraction, "rotary_emb_base": int(base) if base.is_integer() else base}
    if mixer.window:
        found |= {"sliding_window_width": mixer.window - 1, "attention_config": [[["flash"], model.depth]]}
    return found


def _learning(run: RunConfig) -> dict[str, Any]:
    given, schedule = run.optimizer.model_dump(mode="json"), run.schedule
    names = ("lr", "betas", "eps", "momentum", "nesterov")
    params = {key: given[key] for key in names if key in given}
    found: dict[str, Any] = {
        "optimizer": {"type": KINDS.get(run.optimizer.kind, run.optimizer.kind), "params": params},
        "use_bnb_optimizer": run.optimizer.kind == "adamw8bit",
        "weight_decay": run.optimizer.weight_decay,
        "gradient_clipping": run.clip or 0,
        "train_iters": run.steps or None,
        "train_epochs": run.epochs,
        "lr_decay_style": schedule.decay,
        "lr_decay_iters": schedule.decay_steps,
        "warmup": schedule.warmup,
        "min_lr": schedule.min_lr,
        "precision": {"bf16": "bfloat16"}.get(run.precision, run.precision),
    }
    if schedule.warmup_steps is not None:
        found["warmup"] = schedule.warmup_steps / (schedule.decay_steps or run.steps)
    if run.precision == "fp16":
        scale = run.loss_scale
        found["fp16"] = {
            "enabled": True,
            "loss_scale": scale.initial if scale.fixed else 0,
            "initial_scale_power": int(scale.initial).bit_length() - 1,
            "loss_scale_window": scale.window,
            "hysteresis": scale.hysteresis,
            "min_loss_scale": scale.lowest,
        }
    return found


def _running(run: RunConfig) -> dict[str, Any]:
    batch, mesh, zero = run.batch, run.mesh, run.zero
    offload = {"offload_optimizer": {"device": "cpu"}} if zero.offload != "none" else {}
    offload |= {"offload_param": {"device": "cpu"}} if zero.offload == "all" else {}
    follows = batch.micro and batch.accumulation and not mesh.dp
    found: dict[str, Any] = {
        **_data(run.data),
        "seed": run.seed,
        "train_batch_size": None if follows else batch.size,
        "train_micro_batch_size_per_gpu": batch.micro,
        "gradient_accumulation_steps": batch.accumulation,
        "global_num_gpus": mesh.dp and mesh.dp * mesh.model,
        "model_parallel_size": mesh.tp,
        "pipe_parallel_size": mesh.pp,
        "sequence_parallel": mesh.sequence_parallel,
        "zero_optimization": {
            "stage": zero.stage,
            **offload,
            **run.deepspeed.zero_optimization.model_dump(mode="json", exclude_none=True),
        },
        "prescale_gradients": run.deepspeed.prescale_gradients,
        "gradient_predivide_factor": run.deepspeed.gradient_predivide_factor,
        "wall_clock_breakdown": run.deepspeed.wall_clock_breakdown,
        "communication_data_type": run.deepspeed.communication_data_type,
        "checkpoint_activations": run.recompute.layers == "full",
        "save": run.save.folder,
        "load": run.load,
        "finetune": True if run.load else None,
        "checkpoint_factor": run.save.every or run.save.log_factor,
        "checkpoint_scale": "log" if run.save.log_factor and not run.save.every else "linear",
        "extra_save_iters": list(run.save.steps) or None,
        "keep_last_n_checkpoints": run.save.keep_last,
        "log_interval": run.logging.every,
        "tensorboard_dir": run.logging.tensorboard,
        "peak_theoretical_tflops": run.logging.peak_tflops,
    }
    if run.data.valid is not None or run.data.split is not None:
        found |= {"eval_interval": run.evaluation.every, "eval_iters": run.evaluation.batches}
    return found | _watching(run)


def _data(data: Data) -> dict[str, Any]:
    found: dict[str, Any] = {
        "data_impl": "mmap",
        "pack_impl": {ours: theirs for theirs, ours in PACKINGS.items()}.get(data.packing, data.packing),
        "eod_mask_loss": data.mask_after_end,
    }
    alone = len(data.train) == 1 and data.train[0].labels is None and data.blend == "exact"
    if alone and data.valid is None:
        return found | {"data_path": data.train[0].tokens, "split": data.split or "100,0,0"}
    for part, sources in (("train", data.train), ("valid", data.valid or ())):
        for name, values in (
            (f"{part}_data_paths", [source.tokens for source in sources]),
            (f"{part}_data_weights", [source.weight or 1.0 for source in sources]),
            (f"{part}_label_data_paths", [source.labels for source in sources]),
        ):
            if any(value not in (None, 1.0) for value in values):
                found[name] = values
    if data.weigh_by_documents is not None:
        found |= {"weight_by_num_documents": True, "weighted_sampler_alpha": data.weigh_by_documents}
    return found


def _watching(run: RunConfig) -> dict[str, Any]:
    logging, found = run.logging, dict[str, Any]()
    if logging.parameter_norm:
        found |= {"log_param_norm": True}
    if logging.noise_scale:
        found |= {"log_gradient_noise_scale": True, "gradient_noise_scale_n_batches": logging.noise_scale}
    if wandb := logging.wandb:
        named = {"project": wandb.project, "team": wandb.entity, "group": wandb.group}
        named |= {"run_name": wandb.name, "host": wandb.host}
        found |= {"use_wandb": True, **{f"wandb_{key}": value for key, value in named.items()}}
    if comet := logging.comet:
        named = {"project": comet.project, "workspace": comet.workspace, "experiment_name": comet.name}
        tags = list(comet.tags) or None
        found |= {"use_comet": True, "comet_tags": tags, **{f"comet_{key}": value for key, value in named.items()}}
    if run.profile:
        kind = "memory_profiling" if run.profile.record == "memory" else "profile"
        found |= {kind: True, "profile_step_start": run.profile.first, "profile_step_stop": run.profile.last}
    if curriculum := run.data.curriculum:
        how = {"total_curriculum_step": curriculum.steps, "difficulty_step": curriculum.multiple}
        found["curriculum_learning"] = {
            "enabled": True,
            "curriculum_type": "seqlen",
            "min_difficulty": curriculum.start,
            "max_difficulty": run.sequence,
            "schedule_type": "fixed_root" if curriculum.root > 1 else "fixed_linear",
            "schedule_config": {**how, "root_degree": curriculum.root},
        }
    return found

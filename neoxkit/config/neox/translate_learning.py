"""gpt-neox's options of the optimizer, its rate and the precision to ours."""

from __future__ import annotations

from typing import Any

from neoxkit.config.neox.draft import Draft

KINDS = {
    "adam": "adamw",
    "adamw": "adamw",
    "cpu_adam": "adamw",
    "cpu_torch_adam": "adamw",
    "lion": "lion",
    "sgd": "sgd",
}
REFUSED = {
    "onebitadam": "DeepSpeed 0.19 has removed it",
    "zerooneadam": "DeepSpeed 0.19 has removed it",
    "sm3": "no such optimizer is built in",
    "madgrad_wd": "no such optimizer is built in",
}
BETAS = {"adamw": (0.9, 0.999), "adamw8bit": (0.9, 0.999), "lion": (0.9, 0.99)}
LR = 0.001
SAME = {
    "bias_correction": True,
    "adam_w_mode": True,
    "amsgrad": False,
    "maximize": False,
    "dampening": 0,
    "torch_adam": None,
    "freeze_step": None,
    "cuda_aware": None,
    "max_grad_norm": 0.0,
    "comm_backend_name": None,
    "fp32_optimizer_states": None,
    "set_grad_none": None,
}
"""Parameters of optimizers that ours has not, and the value that says what it does; None: any."""


def optimizer(draft: Draft) -> None:
    """Its kind, rate and parameters. Raises ConfigError for one that is refused."""
    given = draft.get("optimizer") or {}
    draft.used |= {"optimizer", "optimizer_type"}
    params = given.get("params") or {}
    if not isinstance(params, dict):
        raise draft.refuse("optimizer.params", f"{params!r:.60} is no mapping", "write it as {lr: 6.0e-4}")
    for key in given:
        if key not in ("type", "params"):
            raise draft.refuse(f"optimizer.{key}", "unknown", "it has `type` and `params`")
    kind, name = _kind(draft, given)
    stated = f"optimizer.{'type' if 'type' in given else ''}".rstrip(".")
    if kind != "adamw":
        draft.put("optimizer.kind", kind, stated, "optimizer_type", "use_bnb_optimizer", always=True)
    known = {"lr", "weight_decay"} | ({"momentum", "nesterov"} if kind == "sgd" else {"betas"})
    known |= {"eps"} if kind.startswith("adamw") else set()
    for key, value in params.items():
        if key in known or (key in SAME and SAME[key] in (None, value)) or (key == "momentum" and not value):
            continue
        remedy = f"known are {', '.join(sorted(known))}"
        raise draft.refuse(f"optimizer.params.{key}", f"{value!r:.60} with {name}", remedy)
    _rate(draft, params)
    if kind in BETAS:
        draft.put("optimizer.betas", params.get("betas", list(BETAS[kind])), "optimizer.params.betas", always=True)
    if kind.startswith("adamw"):
        draft.put("optimizer.eps", params.get("eps", 1e-8), "optimizer.params.eps")
    if kind == "sgd":
        draft.put("optimizer.momentum", params.get("momentum", 0.0), "optimizer.params.momentum")
        draft.put("optimizer.nesterov", params.get("nesterov", False), "optimizer.params.nesterov")
    _decay(draft, params)
    clip = draft.get("gradient_clipping")
    draft.put("clip", clip or None, "gradient_clipping")


def _kind(draft: Draft, given: dict[str, Any]) -> tuple[str, str]:
    """Our name of the optimizer, and theirs."""
    name = given.get("type", draft.get("optimizer_type"))
    if isinstance(name, str) and name.lower() in REFUSED:
        raise draft.refuse("optimizer.type", f"{name}: {REFUSED[name.lower()]}", "choose Adam or Lion")
    if not isinstance(name, str) or name.lower() not in KINDS:
        raise draft.refuse("optimizer.type", f"{name!r:.60} is unknown", "choose Adam, Lion or SGD")
    kind = KINDS[name.lower()]
    if draft.get("use_bnb_optimizer"):
        if kind != "adamw":
            raise draft.refuse("use_bnb_optimizer", f"with {name}", "it is of Adam alone")
        kind = "adamw8bit"
    return kind, name


def _rate(draft: Draft, params: dict[str, Any]) -> None:
    lr = params.get("lr", draft.get("lr"))
    if draft.has("lr") and draft.get("lr") != lr:
        raise draft.refuse("lr", f"{draft.get('lr')}, and optimizer.params.lr is {lr}", "keep one of them")
    draft.put("optimizer.lr", LR if lr is None else lr, "optimizer.params.lr", "lr", "optimizer", always=True)


def _decay(draft: Draft, params: dict[str, Any]) -> None:
    """`weight_decay` is gpt-neox's own; that of the optimizer's parameters stands in for it."""
    inner = params.get("weight_decay")
    if inner is not None and draft.has("weight_decay") and inner != draft.get("weight_decay"):
        raise draft.refuse(
            "optimizer.params.weight_decay",
            f"{inner}, and weight_decay is {draft.get('weight_decay')}",
            "keep one of them",
        )
    decay = draft.get("weight_decay") if inner is None or draft.has("weight_decay") else inner
    draft.put("optimizer.weight_decay", decay, "weight_decay", "optimizer.params.weight_decay")


def schedule(draft: Draft) -> None:
    """The steps, and the learning rate over them."""
    steps, epochs = draft.get("train_iters"), draft.get("train_epochs")
    if epochs is not None:
        if steps is not None:
            raise draft.refuse("train_epochs", "train_iters is given too", "keep one of them")
        draft.put("epochs", epochs, "train_epochs")
    elif steps is None:
        draft.lack("steps", "train_iters is not given", "give it in one of the files, or --set steps=N")
    else:
        draft.put("steps", steps, "train_iters")
    draft.put("schedule.decay", draft.get("lr_decay_style").lower(), "lr_decay_style")
    draft.put("schedule.warmup", draft.get("warmup"), "warmup")
    draft.put("schedule.min_lr", draft.get("min_lr"), "min_lr")
    draft.used |= {"lr_decay_iters", "lr_decay_fraction"}
    decay, part = draft.get("lr_decay_iters"), draft.get("lr_decay_fraction")
    if decay is not None and part is not None:
        raise draft.refuse("lr_decay_fraction", "lr_decay_iters is given too", "keep one of them")
    if part is not None and steps is not None:
        decay = max(1, int(steps * part))
    if decay is not None and decay != steps:
        draft.put("schedule.decay_steps", decay, "lr_decay_iters", "lr_decay_fraction")


SCALE = {
    "loss_scale_window": "window",
    "hysteresis": "hysteresis",
    "min_loss_scale": "lowest",
}
HARMLESS = {
    "enabled",
    "type",
    "auto_cast",
    "consecutive_hysteresis",
    "immediate_grad_update",
    "check_grad_overflow",
    "fp16",
    "loss_scale",
    "initial_scale_power",
    *SCALE,
}


def precision(draft: Draft) -> None:
    """fp32 unless another is asked for: by `precision`, or by a block `fp16` or `bf16` that is enabled."""
    extra = draft.get("deepspeed_extra_args") or {}
    draft.used |= {"fp16", "bf16", "precision", "deepspeed_extra_args"}
    wanted: dict[str, str] = {}
    for name in ("fp16", "bf16"):
        block = draft.get(name) or extra.get(name) or {}
        for key in block:
            if key not in HARMLESS:
                raise draft.refuse(f"{name}.{key}", "unknown", "leave it out: masters are in fp32")
        if block.get("enabled") is True:
            wanted[name] = "bf16" if name == "bf16" or block.get("type") in ("bfloat16", "bf16") else "fp16"
    if draft.has("precision"):
        stated = draft.get("precision").lower()
        wanted["precision"] = "bf16" if stated == "bfloat16" else stated
    if len(set(wanted.values())) > 1:
        first, other, *_ = wanted
        raise draft.refuse(other, f"{wanted[other]}, and {first} asks for {wanted[first]}", "keep one of them")
    chosen = next(iter(wanted.values()), "fp32")
    draft.put("precision", chosen, *wanted, "precision", always=True)
    if chosen == "fp16":
        _loss_scale(draft, draft.get("fp16") or extra.get("fp16") or {})
        for name in draft.tree.values.get("loss_scale", {}):
            draft.tree.only["loss_scale", name] = ("precision",), ("fp16",)


def _loss_scale(draft: Draft, block: dict[str, Any]) -> None:
    """DeepSpeed's scaling: dynamic from 2^initial_scale_power on, unless `loss_scale` is above 0."""
    fixed = block.get("loss_scale") or 0
    if fixed:
        draft.put("loss_scale.fixed", True, "fp16.loss_scale")
        draft.put("loss_scale.initial", float(fixed), "fp16.loss_scale")
        return
    power = block.get("initial_scale_power", 16)
    if not isinstance(power, int) or not 0 <= power < 64:
        raise draft.refuse("fp16.initial_scale_power", f"{power!r:.60}", "it must be a whole number below 64")
    draft.put("loss_scale.initial", 2.0**power, "fp16.initial_scale_power")
    if block.get("consecutive_hysteresis"):
        draft.dropped["fp16.consecutive_hysteresis"] = "overflows need not follow one another to lower the scale"
    for theirs, ours in SCALE.items():
        if theirs in block:
            draft.put(f"loss_scale.{ours}", block[theirs], f"fp16.{theirs}")

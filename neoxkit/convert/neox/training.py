"""How far a run of gpt-neox was, and by which options it went on: for trainer/state.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from neoxkit.config.neox.settings import Settings
from neoxkit.convert.neox.optimizer import WITHOUT
from neoxkit.convert.neox.states import States
from neoxkit.convert.neox.tensors import Tensors
from neoxkit.errors import ConversionError
from neoxkit.log import warn
from neoxkit.spec import Role, TensorSpec

ADAM = ("adam", "adamw", "cpu_adam", "cpu_torch_adam")
"""gpt-neox's names of optimizers that go on as AdamW."""


@dataclass(frozen=True)
class Training:
    """What goes on with the weights: counters, and all of trainer/state.json."""

    step: int
    samples: int
    tokens: int
    state: Mapping[str, Any]


def training(
    tensors: Tensors, settings: Settings, states: States, specs: Iterable[TensorSpec], shared: Mapping[str, int]
) -> Training:
    """The state of the trainer. `shared` are biases that are sums of parameters, and of how many.

    Each of the parameters had the gradient that their sum has, and made Adam's step for it: so the sum
    moved as many times as far, and goes on so (`lr_scale`).

    Raises ConversionError when the files do not say how far the run was, or the optimizer is no Adam.
    """
    _check_kind(settings, states)
    step = _number(tensors, "iteration", "total_iters", "global_steps")
    if step is None:
        raise ConversionError(f"{tensors.folder / 'mp_rank_00_model_states.pt'}: it does not say its step", WITHOUT)
    samples = _samples(tensors, settings, step)
    tokens = samples * (settings.whole("seq_length") or settings.whole("max_position_embeddings") or 0)
    given = _options(tensors, settings, states)
    decay = given["optimizer"].get("weight_decay", 0.0)
    state: dict[str, Any] = {
        "step": step,
        "samples": samples,
        "tokens": tokens,
        "skipped": _skipped(tensors, step),
        "optimizer": {"kind": "adamw", "steps": states.steps, "groups": _groups(specs, decay, shared)},
        "data": None,
        "options": given,
    }
    if states.about and _real(states.about[0].get("lr")):
        state["lr"] = states.about[0]["lr"]  # of the next step
    if states.scale is not None and states.scale != 1.0:
        state["loss_scale"] = states.scale
    return Training(step, samples, tokens, state)


def _check_kind(settings: Settings, states: States) -> None:
    """Raise ConversionError for an optimizer that does not go on as AdamW."""
    given = settings.get("optimizer")
    given = given if isinstance(given, dict) else {}
    kind = str(given.get("type", "adam")).lower()
    if kind not in ADAM:
        raise ConversionError(f"{settings.said('optimizer')}: not Adam", WITHOUT)
    if any(group.get("bias_correction") is False for group in states.about):
        raise ConversionError(f"{settings.folder}: its Adam does not correct the bias of its moments", WITHOUT)
    params = given.get("params")
    mode = params.get("adam_w_mode", True) if isinstance(params, dict) else True
    if (mode is False or kind == "cpu_torch_adam") and any(group.get("weight_decay") for group in states.about):
        warn(f"{settings.folder}: its weight decay was part of the gradient, and will be apart from it, as AdamW's is")


def _groups(specs: Iterable[TensorSpec], decay: float, shared: Mapping[str, int]) -> list[dict[str, Any]]:
    """The groups of parameters by name, as the engine keeps them."""
    groups: dict[tuple[float, int], list[str]] = {}
    for spec in specs:
        key = (0.0 if spec.role in (Role.NORM, Role.BIAS) else decay), shared.get(spec.name, 1)
        groups.setdefault(key, []).append(spec.name)
    return [
        {"weight_decay": decayed, **({"lr_scale": scale} if scale != 1 else {}), "names": names}
        for (decayed, scale), names in groups.items()
    ]


def _number(tensors: Tensors, *keys: str) -> int | None:
    """The first of these that is a whole number."""
    values = (tensors.about.get(key) for key in keys)
    return next((each for each in values if isinstance(each, int) and not isinstance(each, bool) and each >= 0), None)


def _samples(tensors: Tensors, settings: Settings, step: int) -> int:
    """Samples that the run has learned from, as DeepSpeed counts them, else steps of the batch."""
    counted = _number(tensors, "global_samples")
    if counted is not None and _number(tensors, "global_steps") == step:
        return counted
    size = _batch(tensors, settings)
    if size is None:
        raise ConversionError(
            f"{settings.folder}: train_batch_size is not given, and {step} steps are of no known number of samples",
            f"give it with --config FILE, or {WITHOUT}",
        )
    return step * size


def _batch(tensors: Tensors, settings: Settings) -> int | None:
    """The samples of a step: as given, or as DeepSpeed was configured."""
    config = tensors.about.get("ds_config")
    size = config.get("train_batch_size") if isinstance(config, dict) else None
    return settings.whole("train_batch_size") or (size if isinstance(size, int) else None)


def _skipped(tensors: Tensors, step: int) -> int:
    """Steps that fp16 lost to an overflow: the learning rate does not count them."""
    scheduler = tensors.about.get("lr_scheduler")
    place = scheduler.get("num_iters") if isinstance(scheduler, dict) else None
    if not isinstance(place, int) or isinstance(place, bool):
        return min(_number(tensors, "skipped_steps") or 0, step)
    if place > step:
        warn(f"{tensors.folder}: its learning rate is at step {place}, beyond its step {step}, which is taken")
    return max(0, step - place)


def _options(tensors: Tensors, settings: Settings, states: States) -> dict[str, Any]:
    """What is known of the run in the words of neoxkit's options, for those who go on otherwise to be told."""
    group: Mapping[str, Any] = next((each for each in states.about if each.get("weight_decay")), {})
    group = group or (states.about[0] if states.about else {})
    optimizer: dict[str, Any] = {key: group[key] for key in ("eps", "weight_decay") if _real(group.get(key))}
    betas = group.get("betas")
    if isinstance(betas, list | tuple) and len(betas) == 2 and all(map(_real, betas)):
        optimizer["betas"] = list(betas)
    scheduler = tensors.about.get("lr_scheduler")
    scheduler = scheduler if isinstance(scheduler, dict) else {}
    if _real(scheduler.get("start_lr")):
        optimizer["lr"] = scheduler["start_lr"]
    given: dict[str, Any] = {"optimizer": optimizer, "schedule": {}}
    if isinstance(scheduler.get("decay_style"), str):
        given["schedule"]["decay"] = scheduler["decay_style"]
    if _real(scheduler.get("min_lr")):
        given["schedule"]["min_lr"] = scheduler["min_lr"]
    if (size := _batch(tensors, settings)) is not None:
        given["batch"] = {"size": size}
    if (length := settings.whole("seq_length")) is not None:
        given["data"] = {"sequence": length}
    if "gradient_clipping" in settings.values:
        given["clip"] = settings.number("gradient_clipping", 0.0) or None
    if (seed := settings.whole("seed")) is not None:
        given["seed"] = seed  # the order of the data follows from it
    return given


def _real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)

"""Training against a plain loop around transformers' models: the same weights, batches and numbers, for 50 steps."""

from __future__ import annotations

import math
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jobs
import pytest
import tiny_runs as runs
import torch
from torch import Tensor, nn

from neoxkit.checkpoint.format import MODEL
from neoxkit.config.run import RunConfig
from neoxkit.data.rows.batch import Batch
from neoxkit.families import by_name
from neoxkit.families.schema import expand
from neoxkit.families.spelling import write_config
from neoxkit.nn.decoder import form_groups, holdings, pieces
from neoxkit.train.begin import build_engine
from neoxkit.train.engine import Engine
from neoxkit.train.objectives.lm import NextToken
from neoxkit.train.plain import PlainEngine
from neoxkit.train.schedule import rate_of

STEPS, ROWS, CLIP = 50, 4, 0.8
PEAK, LOW, WARMUP = 0.01, 1e-3, 5
BETAS, EPS, DECAY = (0.9, 0.95), 1e-5, 0.1
"""With a smaller eps a gradient that is rounding alone, as that of the bias of keys, would be a step of its own."""

KINDS = {"gpt_neox": "GPTNeoX", "llama": "Llama", "mistral": "Mistral"}
"""What transformers calls the families, before Config and ForCausalLM."""

LOSS, WEIGHT = 1e-4, 1e-4
"""How far losses, and weights at the end, may be apart."""

pytest.importorskip("transformers")


class Loop(NamedTuple):
    """What is seen of 50 steps: losses, norms before clipping; by transformers' names last weights, first gradients."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, Tensor]
    gradients: dict[str, Tensor]


def config(family: str, **options: Any) -> RunConfig:
    """The run, as a user would write it."""
    optimizer = {"lr": PEAK, "betas": BETAS, "eps": EPS, "weight_decay": DECAY}
    schedule = {"warmup_steps": WARMUP, "decay": "cosine", "min_lr": LOW}
    options = {"batch": {"size": ROWS, "micro": 2}, "clip": CLIP, "steps": STEPS, **options}
    return runs.config(family, optimizer=optimizer, schedule=schedule, **options)


def rate(step: int) -> float:
    """The learning rate of a step: a rise to the peak, of which the first step is not idle, then half a cosine."""
    if step <= WARMUP:
        return PEAK * max(1, step) / WARMUP
    return LOW + (PEAK - LOW) * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP))) / 2


def spelled(family: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by our names as those of transformers' model, which calls GPT-NeoX's head otherwise than its files do."""
    found: dict[str, Tensor] = {}
    for rule in expand(by_name(family), config(family).model):
        theirs = rule.layout.join([values[name].clone() for name in rule.ours])
        found.update(zip((name.replace("embed_out", "lm_head") for name in rule.theirs), theirs, strict=True))
    return found


def their_model(family: str) -> nn.Module:
    """Transformers' model of the same configuration."""
    import transformers

    about = write_config(by_name(family), config(family).model)
    about.pop("model_type", None)
    built = getattr(transformers, f"{KINDS[family]}Config")(**about)
    model: nn.Module = getattr(transformers, f"{KINDS[family]}ForCausalLM")(built).float().train()
    return model


def undecayed(model: nn.Module) -> set[str]:
    """The names of biases, and of all parameters of norms."""
    return {
        f"{name}.{each}"
        for name, module in model.named_modules()
        for each, _ in module.named_parameters(recurse=False)
        if each == "bias" or "Norm" in type(module).__name__
    }


@cache
def their_loop(family: str) -> Loop:
    """Transformers' model, torch's AdamW and clipping; of ours are the weights that it begins with."""
    begun = PlainEngine(config(family), NextToken())
    begun.initialise()
    model = their_model(family)
    weights = spelled(family, {spec.name: value for spec, _, value in pieces(begun.model)})
    parameters = dict(model.named_parameters())
    assert set(weights) == set(parameters)
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)
    bare = undecayed(model)
    groups = [
        {"params": [p for name, p in parameters.items() if (name in bare) is apart], "weight_decay": decay}
        for apart, decay in ((False, DECAY), (True, 0.0))
    ]
    assert all(group["params"] for group in groups)
    adamw = torch.optim.AdamW(groups, betas=BETAS, eps=EPS)
    losses, norms, gradients = [], [], {}
    for step in range(STEPS):
        batch = runs.batch(ROWS, step)
        loss = nn.functional.cross_entropy(model(input_ids=batch.ids).logits.flatten(0, 1), batch.labels.flatten())
        adamw.zero_grad()
        loss.backward()
        if step == 0:
            gradients = {name: parameter.grad.clone() for name, parameter in parameters.items()}
        norms.append(float(nn.utils.clip_grad_norm_(parameters.values(), CLIP)))
        for group in adamw.param_groups:
            group["lr"] = rate(step)
        adamw.step()
        losses.append(loss.item())
    assert min(norms) < CLIP < max(norms), "some steps are clipped, and some are not"
    return Loop(losses, norms, {name: value.detach() for name, value in parameters.items()}, gradients)


def our_loop(family: str, engine: Engine, run: RunConfig) -> Loop:
    """The same steps through an engine, of two micro-batches."""
    losses, norms = [], []
    for step in range(STEPS):
        batch = runs.batch(ROWS, step)
        halves = [Batch(batch.ids[i : i + 2], batch.labels[i : i + 2]) for i in (0, 2)]
        report = engine.step(halves, rate_of(run, step))
        losses.append(report.loss)
        norms.append(report.norm)
    weights = {held.spec.name: held.value for held in engine.state() if held.name.startswith(MODEL)}
    return Loop(losses, norms, spelled(family, weights), {})


def on_deepspeed(family: str) -> Loop:
    """The same steps through the DeepSpeed engine."""
    run = config(family, engine="deepspeed", zero={"stage": 1}).on(1)
    engine = build_engine(run, torch.device("cpu"), form_groups(run.model, run.placed))
    engine.initialise()
    return our_loop(family, engine, run)


def assert_alike(ours: Loop, theirs: Loop) -> None:
    torch.testing.assert_close(ours.losses, theirs.losses, rtol=0, atol=LOSS)
    torch.testing.assert_close(ours.norms, theirs.norms, rtol=1e-3, atol=0)
    assert set(ours.weights) == set(theirs.weights)
    for name, value in ours.weights.items():
        torch.testing.assert_close(value, theirs.weights[name], rtol=0, atol=WEIGHT, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("family", KINDS)
def test_fifty_steps_are_a_transformers_training_loop(family: str) -> None:
    """The same losses, norms and last weights; the gradients of the first step by tensor."""
    run = config(family)
    engine = PlainEngine(run, NextToken())
    engine.initialise()
    gradients: dict[str, Tensor] = {}
    step = engine.optimizer.step

    def keep(found: dict[Tensor, Tensor], lr: float, divisor: float) -> None:
        if not gradients:
            for parameter, value in found.items():
                gradients.update({h.spec.name: value[h.rows].clone() / divisor for h in holdings(parameter)})
        step(found, lr, divisor)

    engine.optimizer.step = keep  # type: ignore[method-assign]
    theirs = their_loop(family)
    assert_alike(our_loop(family, engine, run), theirs)
    shrink = min(1.0, CLIP / theirs.norms[0])
    for name, value in spelled(family, gradients).items():
        wanted = theirs.gradients[name] * shrink
        torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed")
def test_fifty_steps_on_deepspeed_are_too(tmp_path: Path) -> None:
    """In a process of its own, since DeepSpeed starts torch.distributed."""
    ((neox, llama),) = jobs.run(1, on_deepspeed, [("gpt_neox",), ("llama",)], tmp_path)
    assert_alike(neox, their_loop("gpt_neox"))
    assert_alike(llama, their_loop("llama"))

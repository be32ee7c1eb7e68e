"""Each kind of optimizer against torch's, bitsandbytes' and lion-pytorch's own, on twins of the logical tensors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_runs as runs
import torch

from neoxkit.config.run import RunConfig
from neoxkit.errors import CheckpointError, ConfigError
from neoxkit.nn.decoder import Decoder, holdings, specs
from neoxkit.nn.init import initialise
from neoxkit.spec import Role
from neoxkit.train.objectives.lm import NextToken
from neoxkit.train.optim import Learner, LionOptimizer, build, groups_of
from neoxkit.train.plain import PlainEngine
from neoxkit.train.rules import lion

LR, DIVISOR = 0.01, 7.0

KINDS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "lion": {},
    "sgd": {"nesterov": True},
    "adafactor": {},
    "muon": {"rest": {"lr": 0.003, "betas": (0.8, 0.9)}},
    "adamw8bit": {},
}


def config(kind: str, family: str = "gpt_neox", **options: Any) -> RunConfig:
    """A tiny run; for 8 bits one whose MLP has more than 4096 elements."""
    if kind == "adamw8bit":
        pytest.importorskip("bitsandbytes")
        tree = runs.tree(family, Path("/nowhere"))["model"]
        options["model"] = tree | {"width": 64, "mlp": tree.get("mlp", {}) | {"hidden": 80}}
    return runs.config(family, optimizer={"kind": kind, "lr": LR, **KINDS[kind], **options.pop("more", {})}, **options)


def decoder(run: RunConfig) -> Decoder:
    model = Decoder(run.model)
    initialise(model, run.model, run.init, run.seed)
    return model


Twins = dict[str, torch.nn.Parameter]


def twins_of(model: Decoder) -> Twins:
    """A parameter for each logical tensor."""
    return {
        held.spec.name: torch.nn.Parameter(parameter.detach()[held.rows].clone())
        for parameter in model.parameters()
        for held in holdings(parameter)
    }


def groups(run: RunConfig, twins: Twins, wanted: Any = lambda spec: True) -> list[dict[str, Any]]:
    """The twins in two groups: with decay, and without."""
    known = specs(run.model)
    chosen = {name: twin for name, twin in twins.items() if wanted(known[name])}
    decayed = [twin for name, twin in chosen.items() if known[name].role not in (Role.NORM, Role.BIAS)]
    rest = [twin for name, twin in chosen.items() if known[name].role in (Role.NORM, Role.BIAS)]
    given = [(decayed, run.optimizer.weight_decay), (rest, 0.0)]
    return [{"params": params, "weight_decay": decay} for params, decay in given if params]


def theirs(run: RunConfig, twins: Twins) -> dict[torch.optim.Optimizer, float]:
    """The optimizers of others over the twins, and by how much each one's rate is ours."""
    options = run.optimizer
    if options.kind == "adamw":
        adamw = torch.optim.AdamW(groups(run, twins), betas=options.betas, eps=options.eps, fused=True)
        return {adamw: 1.0}
    if options.kind == "lion":
        # Not DeepSpeed's: that compiles for minutes, anew in every environment.
        return {pytest.importorskip("lion_pytorch").Lion(groups(run, twins), lr=LR, betas=options.betas): 1.0}
    if options.kind == "sgd":
        made = torch.optim.SGD(groups(run, twins), momentum=options.momentum, nesterov=options.nesterov, fused=True)
        return {made: 1.0}
    if options.kind == "adafactor":
        return {torch.optim.Adafactor(groups(run, twins), foreach=False): 1.0}
    if options.kind == "adamw8bit":
        bitsandbytes = pytest.importorskip("bitsandbytes")
        return {bitsandbytes.optim.AdamW8bit(groups(run, twins), betas=options.betas, eps=options.eps): 1.0}
    assert options.kind == "muon"

    def hidden(spec: Any) -> bool:
        return spec.role in (Role.MATRIX, Role.OUTPUT)

    rest = groups(run, twins, lambda spec: not hidden(spec))
    return {
        torch.optim.Muon(groups(run, twins, hidden), momentum=options.momentum): 1.0,
        torch.optim.AdamW(rest, betas=options.rest.betas, eps=options.rest.eps, fused=True): 0.3,
    }


@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_those_of_others(kind: str, family: str) -> None:
    """Fused query, key and value matrices are each by themselves. All bits, but where the other sums otherwise."""
    run = config(kind, family)
    model = decoder(run)
    twins = twins_of(model)
    others, learner = theirs(run, twins), Learner(model.parameters(), run.optimizer)
    generator = torch.Generator().manual_seed(0)
    for step in range(4):
        lr = LR / (step + 1)
        gradients = {p: torch.randn(p.shape, generator=generator) for p in model.parameters()}
        for parameter, gradient in gradients.items():
            for held in holdings(parameter):
                twins[held.spec.name].grad = gradient[held.rows].clone() / DIVISOR
        for other, scale in others.items():
            for group in other.param_groups:
                group["lr"] = lr * scale
            other.step()
        learner.step(gradients, lr, DIVISOR)
    assert learner.steps == 4
    exact = kind in ("adamw", "adafactor", "muon")
    close = {"rtol": 0.0, "atol": 0.0} if exact else {"rtol": 1e-5, "atol": 1e-6}
    moved = twins_of(decoder(run))
    for spec, _, value in learner.masters():
        name = spec.name
        torch.testing.assert_close(value, twins[name].detach(), **close, msg=lambda said, at=name: f"{at}: {said}")
        assert not torch.equal(value, moved[name].detach()), name


def test_lion_is_the_papers() -> None:
    """Program 1 of arXiv 2302.06675, number by number."""
    weights, moments = [torch.tensor([1.0, -2.0, 0.5])], [torch.zeros(3)]
    w, m = weights[0].clone(), torch.zeros(3)
    for gradient in (torch.tensor([0.3, -0.1, 0.0]), torch.tensor([-0.2, 0.4, 1.0]), torch.tensor([0.01, 0.1, -9.0])):
        update = torch.tensor([float(torch.sign(0.9 * m[i] + 0.1 * gradient[i])) for i in range(3)])
        w = w - 0.01 * (update + 0.1 * w)
        m = 0.99 * m + 0.01 * gradient
        lion(weights, [gradient.clone()], moments, 0.01, (0.9, 0.99), 0.1)
        torch.testing.assert_close(weights[0], w)
        torch.testing.assert_close(moments[0], m)


@pytest.mark.parametrize("kind", ["adamw", "lion", "sgd"])
def test_an_optimizer_of_torchs_kind_makes_the_same_steps(kind: str) -> None:
    """What an engine is given that wants a torch.optim.Optimizer, with rates by name."""
    run = config(kind)
    scales = {"layers.0.mlp.up.weight": 2.0}
    model, other = decoder(run), decoder(run)
    learner = Learner(model.parameters(), run.optimizer)
    learner.scale(scales)
    built = build(run.optimizer, groups_of(other.parameters(), run.optimizer, scales))
    assert isinstance(built, LionOptimizer) == (kind == "lion")
    generator = torch.Generator().manual_seed(0)
    for step in range(3):
        for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
            ours.grad = torch.randn(ours.shape, generator=generator)
            theirs.grad = ours.grad.clone()
        for group in built.param_groups:
            group["lr"] = LR / (step + 1) * group["lr_scale"]
        built.step()
        learner.step({p: p.grad for p in model.parameters() if p.grad is not None}, LR / (step + 1), 1.0)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    told = {name: group for group in learner.about()["groups"] for name in group["names"]}
    assert told["layers.0.mlp.up.weight"]["lr_scale"] == 2.0
    assert "lr_scale" not in told["layers.1.mlp.up.weight"]


@pytest.mark.parametrize("kind", KINDS)
def test_decay_goes_by_role(kind: str) -> None:
    for embeddings in (True, False):
        run = config(kind, more={"decay_embeddings": embeddings})
        told = Learner(Decoder(run.model, "meta").parameters(), run.optimizer).about()["groups"]
        decayed = {name: group["weight_decay"] > 0 for group in told for name in group["names"]}
        assert set(decayed) == set(specs(run.model))
        for name, spec in specs(run.model).items():
            expected = spec.role not in (Role.NORM, Role.BIAS) and (spec.role is not Role.EMBED or embeddings)
            assert decayed[name] == expected, name


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_learns(kind: str) -> None:
    """What does not move, moves the wrong way or is scaled wrongly does not learn a batch by heart."""
    run = config(kind, clip=None, more={"weight_decay": 0.0})
    engine = PlainEngine(run, NextToken())
    engine.initialise()
    batch = runs.batch(2, 0)
    losses = [engine.step([batch], 0.003 if kind == "lion" else 0.05).loss for _ in range(25)]
    assert losses[-1] < losses[0] - 1, losses


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    run = runs.config(optimizer={"kind": "adamw8bit", "lr": LR})
    with pytest.raises(ConfigError, match="adamw8bit needs bitsandbytes, which cannot be imported"):
        PlainEngine(run, NextToken())


TP, ZERO = ({"mesh": {"tp": 2}}, "mesh.tp 2"), ({"zero": {"stage": 1}}, "deepspeed")


@pytest.mark.parametrize(
    ("kind", "options", "how"),
    [("muon", *ZERO), ("adafactor", *TP), ("adafactor", *ZERO), ("adamw8bit", *TP), ("adamw8bit", *ZERO)],
)
def test_what_needs_whole_tensors_is_not_divided(kind: str, options: dict[str, Any], how: str) -> None:
    with pytest.raises(ConfigError, match=rf"optimizer\.kind {kind} treats each tensor as a whole, and .*{how}"):
        runs.config(optimizer={"kind": kind, "lr": LR}, **options)


def test_another_kind_does_not_go_on() -> None:
    engine = PlainEngine(config("lion"), NextToken())
    with pytest.raises(CheckpointError, match="the checkpoint's optimizer is not lion"):
        engine.check_state(None, {"kind": "adamw", "steps": 1})  # type: ignore[arg-type]

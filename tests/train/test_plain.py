"""The plain engine against torch's own optimiser and clipping; what it holds, loads and refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tiny_runs as runs
import torch

from neoxkit.checkpoint.dtypes import name_of
from neoxkit.errors import CheckpointError, ConversionError
from neoxkit.nn.decoder import holdings, pieces, specs
from neoxkit.nn.init import initialise
from neoxkit.spec import Role, TensorSpec, gaps
from neoxkit.train.engine import TrainingError
from neoxkit.train.objectives.lm import NextToken
from neoxkit.train.plain import PlainEngine

FAMILIES = list(runs.MODELS)


def engine(family: str = "gpt_neox", *overrides: str, **options: Any) -> PlainEngine:
    config = runs.config(family, *([Path("/nowhere")] if overrides else []), *overrides, **options)
    built = PlainEngine(config, NextToken())
    built.initialise()
    return built


def values(built: PlainEngine) -> dict[str, torch.Tensor]:
    return {held.name: held.value.clone() for held in built.state()}


class Memory:
    """A Source over the state of an engine."""

    def __init__(self, built: PlainEngine) -> None:
        self.held = values(built)
        self.config = built.model.config
        self.specs = {held.name: held.spec for held in built.state()}

    def names(self) -> list[str]:
        return list(self.held)

    def spec(self, name: str) -> TensorSpec:
        return self.specs[name]

    def dtype(self, name: str) -> str:
        return name_of(self.held[name].dtype)

    def read(self, name: str, want: Any = None) -> torch.Tensor:
        value = self.held[name]
        return value[tuple(slice(*span) for span in want)] if want else value


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_torchs_adamw(family: str) -> None:
    """The same gradients through torch.optim.AdamW, with decay for matrices alone, give the same bits."""
    ours = engine(family)
    config = ours.config.optimizer
    copies = {p: torch.nn.Parameter(p.detach().clone()) for p in ours.parameters}
    decayed = [copy for copy in copies.values() if copy.ndim > 1]
    rest = [copy for copy in copies.values() if copy.ndim == 1]
    adamw = torch.optim.AdamW(
        [{"params": decayed}, {"params": rest, "weight_decay": 0.0}],
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )
    generator = torch.Generator().manual_seed(0)
    for step in range(5):
        lr = 0.01 / (step + 1)
        gradients = {p: torch.randn(p.shape, generator=generator) for p in ours.parameters}
        for parameter, copy in copies.items():
            copy.grad = gradients[parameter] / 7
        for group in adamw.param_groups:
            group["lr"] = lr
        adamw.step()
        ours.optimizer.step(gradients, lr, 7.0)
    assert ours.optimizer.steps == 5
    for parameter, copy in copies.items():
        assert torch.equal(parameter.detach(), copy.detach()), holdings(parameter)[0].spec.name


@pytest.mark.parametrize("clip", [None, 0.5, 1e3])
def test_clipping_is_torchs(clip: float | None) -> None:
    built = engine("llama", clip=clip)
    seen: dict[torch.Tensor, torch.Tensor] = {}

    def keep(gradients: dict[torch.Tensor, torch.Tensor], lr: float, divisor: float) -> None:
        seen.update({parameter: value / divisor for parameter, value in gradients.items()})

    built.optimizer.step = keep  # type: ignore[method-assign]
    batch = runs.batch(4, 0)
    report = built.step([batch], 0.01)
    hidden = built.model.hidden(batch.ids)
    logits = torch.nn.functional.linear(hidden, built.model.head.weight)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())
    for parameter, gradient in zip(built.parameters, torch.autograd.grad(loss, built.parameters), strict=True):
        parameter.grad = gradient
    norm = torch.nn.utils.clip_grad_norm_(built.parameters, clip if clip is not None else float("inf"))
    assert report.norm == pytest.approx(norm.item(), rel=1e-5)
    for parameter in built.parameters:
        torch.testing.assert_close(seen[parameter], parameter.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_accumulation_equals_one_batch_however_masks_fall(precision: str) -> None:
    whole = engine("llama", precision=precision)
    parts = engine("llama", precision=precision)
    batch = runs.batch(4, 3, masked=True)
    rows = [type(batch)(batch.ids[i : i + 1], batch.labels[i : i + 1], batch.mask[i : i + 1]) for i in range(4)]
    assert len({int(row.mask.sum()) for row in rows}) > 1
    a, b = whole.step([batch], 0.01), parts.step(rows, 0.01)
    close = 1e-6 if precision == "fp32" else 1e-2
    assert a.loss == pytest.approx(b.loss, rel=close)
    assert a.norm == pytest.approx(b.norm, rel=close)
    assert a.tokens == b.tokens == int(batch.mask.sum())
    mine, theirs = values(whole), values(parts)
    for name in mine:
        if "exp_avg/" in name:
            torch.testing.assert_close(mine[name], theirs[name], rtol=close, atol=close * 1e-2, msg=name)


def test_bf16_gradients_are_summed_in_fp32() -> None:
    built = engine("gpt_neox", precision="bf16")
    seen: list[torch.Tensor] = []
    built.optimizer.step = lambda gradients, lr, divisor: seen.extend(gradients.values())  # type: ignore[method-assign]
    built.step([runs.batch(1, seed) for seed in range(8)], 0.01)
    assert {gradient.dtype for gradient in seen} == {torch.float32}
    # A sum of bf16 numbers in fp32 has more bits than bf16 holds.
    assert any((gradient != gradient.bfloat16().float()).any() for gradient in seen)


def test_bf16_weights_are_the_rounded_masters() -> None:
    built = engine("gpt_neox", precision="bf16")
    for step in range(3):
        built.step([runs.batch(2, step)], 1e-4)
    held = values(built)
    moved = 0
    for spec, _, weight in pieces(built.model):
        master = held[f"optimizer/master/{spec.name}"]
        assert weight.dtype == torch.bfloat16
        assert master.dtype == torch.float32
        assert torch.equal(weight, master.bfloat16())
        moved += int((master != weight.float()).any())
    assert moved, "masters hold more than the weights do"


def test_fp32_writes_no_masters() -> None:
    assert not [name for name in values(engine()) if "master" in name]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_state_holds_every_logical_tensor_whole(family: str, precision: str) -> None:
    built = engine(family, precision=precision)
    components = ["model", "optimizer/exp_avg", "optimizer/exp_avg_sq"]
    components += ["optimizer/master"] if precision == "bf16" else []
    expected = {f"{part}/{name}": spec for part in components for name, spec in specs(built.config.model).items()}
    seen: dict[str, list[Any]] = {}
    for held in built.state():
        assert held.spec == expected[held.name]
        assert held.run is None
        seen.setdefault(held.name, []).append(held.box)
    assert set(seen) == set(expected)
    assert not [name for name, boxes in seen.items() if gaps(expected[name].shape, boxes)]


@pytest.mark.parametrize("family", FAMILIES)
def test_decay_goes_by_role(family: str) -> None:
    for embeddings in (True, False):
        built = engine(family, optimizer={"lr": 0.01, "decay_embeddings": embeddings})
        held = [(h, group) for group in built.optimizer.groups for p in group.weights for h in holdings(p)]
        decayed = {h.spec.name: group.weight_decay > 0 for h, group in held}
        for name, spec in specs(built.config.model).items():
            expected = spec.role not in (Role.NORM, Role.BIAS) and (spec.role is not Role.EMBED or embeddings)
            assert decayed.pop(name) == expected, name
        assert not decayed


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_loaded_state_goes_on_bit_for_bit(precision: str) -> None:
    first, second = engine("llama", precision=precision), engine("llama", precision=precision, seed=9)
    for step in range(3):
        first.step([runs.batch(2, step)], 0.01)
    second.load_state(Memory(first), first.counters())  # type: ignore[arg-type]
    for step in range(3, 6):
        assert first.step([runs.batch(2, step)], 0.01) == second.step([runs.batch(2, step)], 0.01)
    mine, theirs = values(first), values(second)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_masters_are_made_of_the_loaded_weights(family: str, precision: str) -> None:
    """From fp32 weights nothing is rounded on the way to the masters; masters beside bf16 weights are not asked."""
    first = engine(family, precision=precision, seed=9)
    first.step([runs.batch(2, 0)], 0.01)
    source = Memory(first)
    second, third = engine(family, precision="bf16"), engine(family)
    second.load_weights(source)  # type: ignore[arg-type]
    third.load_weights(source)  # type: ignore[arg-type]
    held = values(second)
    lost = 0
    for spec, _, weight in pieces(second.model):
        master = held[f"optimizer/master/{spec.name}"]
        assert torch.equal(master, source.held[f"model/{spec.name}"].float())
        assert torch.equal(weight, master.bfloat16())
        assert not held[f"optimizer/exp_avg/{spec.name}"].any()
        lost += int((master != weight.float()).any())
    assert bool(lost) == (precision == "fp32")
    assert second.counters() == engine(family, precision="bf16").counters()
    assert all(
        torch.equal(weight, source.held[f"model/{spec.name}"].float()) for spec, _, weight in pieces(third.model)
    )


def test_masters_of_another_shape_are_refused() -> None:
    source = Memory(engine(precision="bf16"))
    name = "optimizer/master/norm.weight"
    source.specs[name] = TensorSpec("norm.weight", (8,), role=Role.NORM)
    with pytest.raises(CheckpointError, match=r"optimizer/master/norm\.weight is \[8\]"):
        engine(precision="bf16").load_state(source, {"kind": "adamw", "steps": 1})  # type: ignore[arg-type]


def test_weights_that_are_not_the_configurations_are_refused() -> None:
    source = Memory(engine())
    del source.held["model/norm.bias"]
    with pytest.raises(ConversionError, match=r"model/norm\.bias is missing"):
        engine().load_weights(source)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_begins_with_the_same_numbers_in_any_precision(family: str) -> None:
    """In fp32, as `nn.init.initialise` draws them; in bf16 the masters are these, and the weights their rounding."""
    whole, low = engine(family), values(engine(family, precision="bf16"))
    drawn = engine(family, seed=9)
    initialise(drawn.model, drawn.config.model, drawn.config.init, whole.config.seed)
    weights = {spec.name: value for spec, _, value in pieces(drawn.model)}
    for spec, _, weight in pieces(whole.model):
        assert torch.equal(weight, weights[spec.name])
        assert torch.equal(weight, low[f"optimizer/master/{spec.name}"])
        assert torch.equal(weight.bfloat16(), low[f"model/{spec.name}"])


def test_evaluation_changes_nothing() -> None:
    built = engine()
    before = values(built)
    total, count = built.evaluate([runs.batch(2, 1), runs.batch(1, 2)])
    assert count == 36
    assert 3 < total / count < 6
    assert not built.gradients
    assert all(torch.equal(value, before[name]) for name, value in values(built).items())


def test_a_loss_that_is_not_a_number_names_the_tensor() -> None:
    built = engine()
    lost = "layers.1.mlp.down.weight"
    next(value for spec, _, value in pieces(built.model) if spec.name == lost)[0, 0] = float("nan")
    before = values(built)
    with pytest.raises(TrainingError, match=f"the loss is nan: the weight of {re.escape(lost)} is not finite"):
        built.step([runs.batch(2, 0)], 0.01)
    assert all(torch.equal(v, before[n]) or v.isnan().any() for n, v in values(built).items())

"""muP: the numbers of the paper's table 3, the run of its table 8, and the coordinate check."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import tiny_runs as runs
import torch
from torch import Tensor

from neoxkit.config.optimizer import Mup
from neoxkit.config.run import RunConfig
from neoxkit.errors import ConfigError
from neoxkit.nn.decoder import holdings, specs
from neoxkit.nn.init import drawing, initial
from neoxkit.nn.mup import factors, rates
from neoxkit.spec import Role
from neoxkit.train.objectives.lm import NextToken
from neoxkit.train.plain import PlainEngine


def config(width: int, mup: dict[str, Any] | None = None, heads: int = 2, **options: Any) -> RunConfig:
    model = {"family": "gpt_neox", "depth": 2, "width": width, "vocab": 61, "context": 12, "mixer": {"heads": heads}}
    optimizer = {"lr": 0.01, "weight_decay": 0.0, "eps": 1e-12}
    return runs.config(model=model, mup=mup, optimizer=optimizer, clip=None, **options)


def engine(run: RunConfig) -> PlainEngine:
    built = PlainEngine(run, NextToken())
    built.initialise()
    return built


def test_factors_are_table_3() -> None:
    run, mup = config(64), Mup(base_width=16, base_head_dim=8)  # four times as wide, with heads of 32
    wanted = {Role.MATRIX: (0.5, 0.25), Role.OUTPUT: (0.5, 0.25), Role.HEAD: (0.25, 0.25)}
    for name, spec in specs(run.model).items():
        first, rate = wanted.get(spec.role, (1.0, 1.0))
        smaller = 0.5 if ".attn.q." in name else 1.0
        assert factors(spec, run.model, mup) == pytest.approx((first * smaller, rate * smaller)), name


def test_at_the_base_width_nothing_changes() -> None:
    run = config(32)
    mup = Mup(base_width=32, base_head_dim=16)
    plain, same = drawing(run.model, run.init), drawing(run.model, run.init, mup)
    for spec in specs(run.model).values():
        assert torch.equal(initial(spec, 0, plain), initial(spec, 0, same)), spec.name
    assert rates(run.model, specs(run.model), mup) == {}


def table_8(run: RunConfig, wider: float, smaller: float) -> PlainEngine:
    """The same run as table 8 has it, and gpt-neox: logits / m and scores / head, and the rates that go with these."""
    built = engine(run.model_copy(update={"mup": None}))
    mup = run.mup
    assert mup is not None
    draw = drawing(run.model, run.init, mup)

    def first(spec: Any) -> Any:
        method = draw(spec)
        undone = (wider if spec.role is Role.HEAD else 1.0) / (smaller if ".attn.q." in spec.name else 1.0)
        return method._replace(size=method.size * undone)

    for spec, box, value in built.optimizer.masters():
        value.copy_(initial(spec, run.seed, first, box))
    hidden = [name for name, spec in specs(run.model).items() if spec.role in (Role.MATRIX, Role.OUTPUT)]
    built.optimizer.scale(dict.fromkeys(hidden, 1 / wider))

    def less(multiply: Any, queries: int, *args: Any) -> Tensor:
        fused = multiply(*args)
        return torch.cat((fused[..., :queries] * smaller, fused[..., queries:]), -1)

    for block in built.model.layers:
        qkv = block.attn.qkv  # type: ignore[union-attr]
        qkv.multiply = partial(less, qkv.multiply, qkv.rows[0])  # type: ignore[union-attr]
    plain_hidden = built.model.hidden
    built.model.hidden = lambda *args: plain_hidden(*args) / wider
    return built


def test_table_3_is_the_run_of_table_8() -> None:
    """For Adam, dividing an output and dividing the weight and its rate are the same."""
    run = config(64, {"base_width": 16, "base_head_dim": 8}, init={"std": 0.1})
    ours, theirs = engine(run), table_8(run, wider=4.0, smaller=0.5)
    for step in range(8):
        batch = runs.batch(4, step)
        assert ours.step([batch], 0.01).loss == pytest.approx(theirs.step([batch], 0.01).loss, rel=2e-5), step


def moved(run: RunConfig) -> tuple[float, float]:
    """How far five steps move logits and the stream before the head: root mean squares."""
    built, batch = engine(run), runs.batch(4, 0)
    with torch.no_grad():
        hidden, logits = built.model.hidden(batch.ids), built.model(batch.ids)
    for _ in range(5):
        built.step([batch], 0.01)
    with torch.no_grad():
        now, said = built.model.hidden(batch.ids), built.model(batch.ids)
    return (now - hidden).square().mean().sqrt().item(), (said - logits).square().mean().sqrt().item()


def slope(widths: list[int], values: list[float]) -> float:
    """The power of the width that the values grow with."""
    xs, ys = [math.log(w) for w in widths], [math.log(v) for v in values]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)


def test_coordinate_check() -> None:
    """As models grow, what a step does to logits stays the same with muP, and grows without."""
    widths = [32, 64, 128, 256]
    for heads in (lambda width: 2, lambda width: width // 16):
        base = 16
        with_mup = [moved(config(w, {"base_width": 32, "base_head_dim": base}, heads(w))) for w in widths]
        without = [moved(config(w, None, heads(w))) for w in widths]
        for part in (0, 1):
            assert abs(slope(widths, [each[part] for each in with_mup])) < 0.15, with_mup
        assert slope(widths, [each[1] for each in without]) > 0.4, without


def test_rates_are_saved_and_taken_up_again() -> None:
    run = config(64, {"base_width": 16, "base_head_dim": 8})
    built = engine(run)
    told = {name: group for group in built.counters()["groups"] for name in group["names"]}
    assert told["layers.0.attn.q.weight"]["lr_scale"] == 0.125
    assert told["layers.0.attn.k.weight"]["lr_scale"] == 0.25
    assert "lr_scale" not in told["embed.weight"]
    apart = {h.spec.name for p in built.parameters for h in holdings(p) if len(holdings(p)) > 1}
    assert "layers.0.attn.q.weight" in apart, "the fused matrix learns at two rates"


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"model": runs.tree("llama", runs.Path("/nowhere"))["model"]}, "mup: a tied head cannot learn"),
        ({"optimizer": {"kind": "sgd", "lr": 0.1}}, r"mup with optimizer\.kind sgd"),
        ({"init": {"weights": "xavier_normal"}}, r"init\.weights xavier_normal knows no base width"),
    ],
)
def test_what_mup_cannot_do_is_refused(options: dict[str, Any], cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        runs.config(mup={"base_width": 8}, **options)

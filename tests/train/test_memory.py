"""The memory that is planned, against the tensors that a training step really holds."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_runs as runs
from torch.profiler import ProfilerActivity, profile
from watching import ROWS, activations

from neoxkit.config.run import RunConfig
from neoxkit.train import memory
from neoxkit.train.objectives.lm import NextToken
from neoxkit.train.plain import PlainEngine

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox": ("gpt_neox", {}),
    "sequential, relu": ("gpt_neox", {"residual": "sequential", "mlp": {"hidden": 40, "activation": "relu"}}),
    "shared norm": ("gpt_neox", {"residual": "shared"}),
    "post norm": ("llama", {"residual": "post"}),
    "post layer norm": ("gpt_neox", {"residual": "post"}),
    "parallel rms": ("llama", {"residual": "parallel", "mixer": {"heads": 4, "kv_heads": 4}}),
    "llama": ("llama", {}),
    "mistral": ("mistral", {}),
    "alibi": ("gpt_neox", {"position": {"kind": "alibi"}, "embed_norm": True}),
    "learned": ("gpt_neox", {"position": {"kind": "learned"}}),
    "no position, grouped": ("llama", {"position": {"kind": "none"}}),
    "qk norm": ("llama", {"mixer": {"heads": 4, "kv_heads": 4, "qk_norm": True}}),
    "qk norm, grouped": ("llama", {"mixer": {"heads": 4, "kv_heads": 2, "qk_norm": True}}),
    "qk norm over all heads": ("llama", {"mixer": {"heads": 4, "kv_heads": 2, "qk_norm": True, "qk_norm_span": "all"}}),
    "qk norm without rotation": (
        "llama",
        {"position": {"kind": "none"}, "mixer": {"heads": 4, "kv_heads": 4, "qk_norm": True}},
    ),
}
"""A family each, and what is different about its model."""


def run_of(name: str, **options: Any) -> RunConfig:
    family, changes = FAMILIES[name]
    model = {**runs.tree(family, runs.Path("/nowhere"))["model"], **changes}
    return runs.config(family, **{"model": model, **options})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_activations_are_those_that_autograd_keeps(name: str, precision: str) -> None:
    """All of them, layer by layer; the plan may count a little more (statistics of norms in fp32), not less."""
    config = run_of(name, precision=precision)
    engine = PlainEngine(config, NextToken())
    engine.initialise()
    planned, measured = memory.activations(config, ROWS, memory.stages_of(config)[0]), activations(engine)
    assert measured <= planned <= 1.03 * measured


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_state_is_that_of_the_engine(precision: str) -> None:
    config = run_of("llama", precision=precision)
    engine = PlainEngine(config, NextToken())
    (planned,) = memory.of_run(config)
    assert planned.weights == sum(p.nbytes for p in engine.model.parameters())
    held = {each.name: each.value.nbytes for each in engine.state() if not each.name.startswith("model/")}
    assert planned.optimizer == sum(held.values())
    engine.initialise()
    engine._sums([runs.batch(2, seed=0)], backward=True)
    assert planned.gradients == sum(gradient.nbytes for gradient in engine.gradients.values())


def wide(precision: str) -> RunConfig:
    model = {
        **runs.tree("llama", runs.Path("/nowhere"))["model"],
        "width": 64,
        "context": 128,
        "vocab": 2000,
        "depth": 3,
        "mlp": {"hidden": 256, "gated": True, "activation": "silu", "bias": False},
    }
    return runs.config("llama", model=model, precision=precision, batch={"size": 8, "micro": 4})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_peak_of_a_step_is_what_was_planned(precision: str) -> None:
    """Of the second micro-batch, when all gradients are there. Measured by torch's profiler, in a real step."""
    config = wide(precision)
    engine = PlainEngine(config, NextToken())
    engine.initialise()
    batches = [runs.batch(4, seed, length=128) for seed in (0, 1)]
    engine.step(batches, 0.0)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        engine.step(batches, 0.0)
    sizes = [event.nbytes() for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for size in sizes:
        now += size
        peak = max(peak, now)
    (planned,) = memory.of_run(config)
    expected = planned.gradients + planned.activations + planned.loss
    assert peak == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("options", [{"layers": "full"}, {"layers": "selective"}, {"layers": "full", "every": 2}])
@pytest.mark.parametrize("name", ["gpt_neox", "llama", "post norm", "qk norm"])
def test_activations_that_are_computed_again_are_not_kept(name: str, options: dict[str, Any]) -> None:
    """What is needed while one layer is computed again is planned beside what is kept all the time."""
    config = run_of(name, recompute=options)
    engine = PlainEngine(config, NextToken())
    engine.initialise()
    sizes = memory.Layers(config, ROWS)
    working = sizes.layer() if options["layers"] == "full" else sizes.attention()
    planned, measured = memory.activations(config, ROWS, memory.stages_of(config)[0]) - working, activations(engine)
    assert measured <= planned <= 1.05 * measured


OPTIMIZERS: list[dict[str, Any]] = [
    {"kind": "lion", "lr": 0.1},
    {"kind": "sgd", "lr": 0.1},
    {"kind": "sgd", "lr": 0.1, "momentum": 0.0},
    {"kind": "muon", "lr": 0.1},
    {"kind": "adafactor", "lr": 0.1},
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_the_state_of_every_optimizer_is_counted(optimizer: dict[str, Any]) -> None:
    config = run_of("llama", precision="bf16", optimizer=optimizer)
    engine = PlainEngine(config, NextToken())
    (planned,) = memory.of_run(config)
    assert planned.optimizer == sum(e.value.nbytes for e in engine.state() if not e.name.startswith("model/"))


def on(devices: int, name: str = "gpt_neox", **options: Any) -> RunConfig:
    model = {**run_of(name).model.model_dump(), "depth": 8, "vocab": 64}
    return runs.config("gpt_neox", **{"batch": {"size": 32, "micro": 1}, **options}, model=model).on(devices)


def test_tensor_parallel_divides_what_it_divides() -> None:
    (one,), (two,) = memory.of_run(on(1)), memory.of_run(on(2, mesh={"tp": 2}))
    assert 0.5 * one.weights < two.weights < 0.6 * one.weights
    assert 0.5 * one.activations < two.activations < one.activations
    (sequence,) = memory.of_run(on(2, mesh={"tp": 2, "sequence_parallel": True}))
    assert sequence.activations < two.activations
    assert sequence.weights == two.weights


def test_a_pipeline_divides_layers_and_its_first_stage_keeps_most() -> None:
    (one,) = memory.of_run(on(1))
    stages = memory.of_run(on(4, mesh={"pp": 4}))
    assert sum(each.weights for each in stages) == one.weights
    assert [each.loss > 0 for each in stages] == [False, False, False, True]
    kept = [each.activations for each in stages]
    assert kept[0] > kept[1] > kept[2]
    layers = [stage.layers for stage in memory.stages_of(on(4, mesh={"pp": 4}))]
    assert [layer for each in layers for layer in each] == list(range(8))


def test_a_tied_embedding_is_on_both_ends_of_a_pipeline() -> None:
    config = on(2, "llama", mesh={"pp": 2})
    (one,) = memory.of_run(on(1, "llama"))
    first, last = memory.of_run(config)
    assert config.model.tied
    assert first.weights + last.weights == one.weights + 64 * 16 * 4


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_divides_what_its_stage_says(stage: int) -> None:
    (whole,) = memory.of_run(on(8, precision="bf16"))
    (part,) = memory.of_run(on(8, precision="bf16", zero={"stage": stage}))
    assert part.optimizer == pytest.approx(whole.optimizer / 8, abs=1)
    assert part.gradients == pytest.approx(whole.gradients / (8 if stage > 1 else 1), abs=1)
    assert part.weights == pytest.approx(whole.weights / (8 if stage > 2 else 1), abs=1)
    (hosted,) = memory.of_run(on(8, zero={"stage": stage, "offload": "optimizer"}, precision="bf16"))
    assert (hosted.optimizer, hosted.host) == (0, part.optimizer)


def test_the_largest_micro_batch_fits_and_the_next_does_not() -> None:
    config = on(2)
    sizes = {
        micro: memory.of_run(config.model_copy(update={"batch": config.batch.model_copy(update={"micro": micro})}))[0]
        for micro in (1, 2, 4, 8, 16)
    }
    for micro in (1, 4, 16):
        assert memory.largest_micro(config, sizes[micro].total) == micro
    assert memory.largest_micro(config, sizes[8].total - 1) == 4
    assert memory.largest_micro(config, sizes[1].total - 1) == 0

"""What is measured of each step, against measurements made another way."""

from __future__ import annotations

import gzip
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_runs as runs
import torch

from neoxkit.data.rows.batch import Batch
from neoxkit.errors import ConfigError
from neoxkit.parallel.groups import LOCAL
from neoxkit.train.engine import StepReport
from neoxkit.train.flops import count
from neoxkit.train.noise import Average, NoiseScale, estimates
from neoxkit.train.objectives.lm import NextToken
from neoxkit.train.plain import PlainEngine
from neoxkit.train.watch import Watch, memory_of, norm_of

CPU = torch.device("cpu")


def engine_of(*overrides: str, **options: Any) -> PlainEngine:
    engine = PlainEngine(runs.config("llama", Path("/nowhere"), *overrides, **options), NextToken())
    engine.initialise()
    return engine


def watched(engine: PlainEngine, folder: Path, batches: list[Batch], step: int = 1, lr: float = 0.01) -> dict[str, Any]:
    with Watch(engine.config, engine.model, CPU, folder) as watch:
        watch.begin(step)
        report = engine.step(watch.batches(batches), lr)
        return watch.record(step, report, lr)


def test_a_step_is_measured(tmp_path: Path) -> None:
    engine = engine_of("logging.peak_tflops=0.001")
    batches = [runs.batch(2, seed) for seed in (0, 1)]

    def slowly() -> Iterator[Batch]:
        for batch in batches:
            time.sleep(0.02)
            yield batch

    begun = time.perf_counter()
    told = watched(engine, tmp_path, slowly())  # type: ignore[arg-type]
    took = time.perf_counter() - begun
    assert told["perplexity"] == math.exp(told["loss"])
    assert told["tokens"] == 48
    assert 0.04 <= told["data_seconds"] <= told["seconds"] <= took
    assert told["tokens_per_second"] == pytest.approx(48 / told["seconds"], rel=1e-3)
    useful = 4 * count(engine.config.model, 12).training
    assert told["mfu"] == told["hfu"] == pytest.approx(useful / told["seconds"] / 1e9, rel=1e-3)
    assert told["memory"] == pytest.approx(memory_of(CPU), rel=0.05)
    assert not {"wait_seconds", "parameter_norm", "noise_scale"} & told.keys()
    assert list(tmp_path.iterdir()) == []
    json.dumps(told)


def test_without_a_known_peak_there_is_no_utilisation(tmp_path: Path) -> None:
    told = watched(engine_of(), tmp_path, [runs.batch(2, 0)])
    assert not {"mfu", "hfu"} & told.keys()


def test_a_step_without_a_loss_has_no_perplexity(tmp_path: Path) -> None:
    engine = engine_of()
    with Watch(engine.config, engine.model, CPU, tmp_path) as watch:
        watch.begin(1)
        told = watch.record(1, StepReport(math.inf, math.nan, 48, 2.0, skipped=True), 0.1)
        assert (told["skipped"], told["loss_scale"]) == (True, 2.0)
        assert not {"loss", "perplexity", "norm"} & told.keys()
        assert "perplexity" not in watch.record(2, StepReport(800.0, 1.0, 48), 0.1)


def test_the_norm_of_the_weights_is_that_of_torch(tmp_path: Path) -> None:
    engine = engine_of("logging.parameter_norm=2")
    expected = torch.nn.utils.get_total_norm(engine.parameters).item()
    assert norm_of(engine.model, LOCAL) == pytest.approx(expected, rel=1e-6)
    batches = [runs.batch(2, 0)]
    assert "parameter_norm" not in watched(engine, tmp_path, batches, step=1)
    assert watched(engine, tmp_path, batches, step=2, lr=0.0)["parameter_norm"] == pytest.approx(
        torch.nn.utils.get_total_norm(engine.parameters).item(), rel=1e-6
    )


def gradient(engine: PlainEngine, batches: list[Batch]) -> torch.Tensor:
    """The gradient of the mean loss over all tokens of the batches, flat, by autograd alone."""
    total = sum(engine.objective.loss(engine.model.hidden(b.ids), engine.model.head, b).sum for b in batches)
    tokens = sum(b.labels.numel() for b in batches)
    found = torch.autograd.grad(total / tokens, engine.parameters)  # type: ignore[arg-type]
    return torch.cat([each.flatten() for each in found])


def test_the_noise_scale_is_that_of_gradients_taken_one_by_one(tmp_path: Path) -> None:
    """With the formulas of appendix A.1 spelled out; a step that is not asked for is not measured."""
    engine = engine_of("logging.noise_scale=2", "batch.size=8")
    batches = [runs.batch(2, seed) for seed in (0, 0, 0, 1)]  # alike, or the estimate would be below 0
    few, many = 24, 96
    small = sum(gradient(engine, [batch]).square().sum().item() for batch in batches) / 4
    big = gradient(engine, batches).square().sum().item()
    squared = (many * big - few * small) / (many - few)
    variance = (small - big) / (1 / few - 1 / many)
    assert estimates(small, big, few, many) == pytest.approx((squared, variance))
    assert squared > 0
    with Watch(engine.config, engine.model, CPU, tmp_path) as watch:
        for step in (1, 2):
            watch.begin(step)
            told = watch.record(step, engine.step(watch.batches(batches), 0.0), 0.0)
            assert ("noise_scale" in told) == (step == 2)
    assert told["noise_scale"] == pytest.approx(variance / squared, rel=1e-4)


def test_the_estimates_find_what_noise_was_put_in() -> None:
    """A gradient of known length with noise of known variance a token."""
    generator = torch.Generator().manual_seed(0)
    truth, deviation, few, parts = torch.full((50,), 0.3), 2.0, 16, 8
    squared, varied = Average(), Average()
    sums = [0.0, 0.0]
    for _ in range(400):
        each = truth + torch.randn(parts, 50, generator=generator) * deviation / few**0.5
        small, big = each.square().sum(1).mean().item(), each.mean(0).square().sum().item()
        found = estimates(small, big, few, few * parts)
        sums = [total + value for total, value in zip(sums, found, strict=True)]
        squared.add(found[0]), varied.add(found[1])
    assert sums[0] / 400 == pytest.approx(50 * 0.3**2, rel=0.02)
    assert sums[1] / 400 == pytest.approx(50 * deviation**2, rel=0.02)
    assert varied.value / squared.value == pytest.approx(deviation**2 / 0.3**2, rel=0.5)


def test_an_average_begins_with_its_first_value() -> None:
    average = Average()
    assert average.add(4.0) == 4.0
    assert average.add(2.0) == pytest.approx((0.9 * 4.0 + 2.0) / 1.9)


def test_listening_changes_no_step(tmp_path: Path) -> None:
    batches = [runs.batch(2, seed) for seed in (0, 1)]
    plain, listening = engine_of(), engine_of("logging.noise_scale=1")
    plain.step(batches, 0.1)
    watched(listening, tmp_path, batches, lr=0.1)
    for ours, theirs in zip(plain.parameters, listening.parameters, strict=True):
        assert torch.equal(ours, theirs)


def test_a_noise_scale_needs_more_than_one_micro_batch() -> None:
    assert NoiseScale([], LOCAL).measured(1.0, 8, 1) is None
    with pytest.raises(ConfigError, match="one micro-batch"):
        runs.config("llama", Path("/nowhere"), "logging.noise_scale=1", batch={"size": 4})


def test_a_trace_of_the_steps_that_are_named_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = engine_of("profile.first=2", "profile.last=3")
    with Watch(engine.config, engine.model, CPU, tmp_path) as watch:
        for step in (1, 2, 3, 4):
            watch.begin(step)
            watch.record(step, engine.step([runs.batch(2, 0)], 0.0), 0.0)
    (path,) = tmp_path.iterdir()
    assert path.name == "profile-2-3-rank0.json.gz"
    assert f"profile of steps 2 to 3: {path}" in capsys.readouterr().err
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    losses = [event for event in events if event.get("name") == "_SlicedCrossEntropy"]
    assert len(losses) == 2


def test_a_run_that_ends_early_leaves_what_it_recorded(tmp_path: Path) -> None:
    engine = engine_of("profile.first=1", "profile.last=5")
    watched(engine, tmp_path, [runs.batch(2, 0)])
    assert [path.name for path in tmp_path.iterdir()] == ["profile-1-1-rank0.json.gz"]


@pytest.mark.parametrize(("kind", "said"), [("memory", "the allocator of a GPU"), ("nsight", "CUDA's profiler")])
def test_what_a_cpu_cannot_record_is_refused(tmp_path: Path, kind: str, said: str) -> None:
    engine = engine_of("profile.first=1", "profile.last=2", f"profile.record={kind}")
    with pytest.raises(ConfigError, match=said):
        Watch(engine.config, engine.model, CPU, tmp_path)


def test_a_profile_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ConfigError, match="before first"):
        runs.config("llama", Path("/nowhere"), "profile.first=3", "profile.last=2")

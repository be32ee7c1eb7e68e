"""Precision: what is asked for, or what is measured; and fp16's scale against DeepSpeed's."""

from __future__ import annotations

import random
from typing import Any

import pytest
import tiny_runs as runs
import torch

from neoxkit.config.parallel import LossScale
from neoxkit.errors import ConfigError
from neoxkit.nn.decoder import pieces
from neoxkit.parallel import device
from neoxkit.train import begin
from neoxkit.train.engine import TrainingError
from neoxkit.train.objectives.lm import NextToken
from neoxkit.train.origin import Origin
from neoxkit.train.plain import PlainEngine
from neoxkit.train.precision import Scaler, check_precision, choose_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(("slower", "chosen"), [(0.1, "bf16"), (0.9, "fp32"), (20.0, "fp32")])
def test_auto_takes_the_faster_precision(monkeypatch: pytest.MonkeyPatch, slower: float, chosen: str) -> None:
    seconds = {torch.float32: 1.0, torch.bfloat16: slower}
    monkeypatch.setattr(device, "product", lambda dtype, *shape: seconds[dtype])
    config = runs.config(precision="auto")
    assert choose_precision(config, CPU) == chosen


def test_what_is_asked_for_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "product", lambda *shape: pytest.fail("measured"))
    assert choose_precision(runs.config(precision="bf16"), CPU) == "bf16"


def test_fp16_on_a_cpu_is_of_the_plain_engine() -> None:
    """DeepSpeed refuses it with a traceback, once its engine is built."""
    check_precision(runs.config(precision="fp16"), CPU)
    check_precision(runs.config(precision="fp16", zero={"stage": 1}), torch.device("cuda"))
    with pytest.raises(ConfigError, match="fp16 on a CPU"):
        check_precision(runs.config(precision="fp16", zero={"stage": 1}), CPU)


def test_what_is_chosen_is_compared_with_the_other_options() -> None:
    """Before an engine is built, so that --dry-run tells it too."""
    chosen = runs.config(mesh={"pp": 2}, zero={"stage": 0}).model_copy(update={"precision": "bf16"})
    with pytest.raises(ConfigError, match=r"zero.stage 0 with precision bf16"):
        check_precision(chosen, torch.device("cuda"))


@pytest.mark.parametrize(("chosen", "stage"), [("bf16", 1), ("fp32", 0)])
def test_a_pipeline_has_the_zero_stage_that_its_chosen_precision_needs(
    monkeypatch: pytest.MonkeyPatch, chosen: str, stage: int
) -> None:
    """On a GPU auto is bf16, which nobody stated; so nobody need state the stage."""
    monkeypatch.setattr(begin, "choose_precision", lambda config, device: chosen)
    config = begin.decide(runs.config(mesh={"pp": 2}, precision="auto"), {}, Origin(), torch.device("cuda"))
    assert (config.precision, config.zero.stage) == (chosen, stage)


@pytest.mark.parametrize(("window", "hysteresis"), [(4, 2), (3, 1), (7, 3), (1, 2)])
def test_the_scale_moves_as_deepspeeds(monkeypatch: pytest.MonkeyPatch, window: int, hysteresis: int) -> None:
    """Which is gpt-neox's, over 2000 steps of which one in six overflows; and any state goes on."""
    module = pytest.importorskip("deepspeed.runtime.fp16.loss_scaler")
    monkeypatch.setattr(module.dist, "get_rank", lambda: 1)
    theirs = module.DynamicLossScaler(2.0**16, window, 1.0, hysteresis, False, raise_error_at_min_scale=False)
    options = LossScale(window=window, hysteresis=hysteresis, most_skipped=5)
    ours, choose = Scaler(options), random.Random(0)
    for step in range(2000):
        finite = choose.random() > 1 / 6
        assert ours.judge(finite) == finite
        theirs.update_scale(not finite)
        assert ours.scale == theirs.cur_scale, step
        if ours.scale > 2.0**40:  # (they would go on for ever)
            ours.scale = theirs.cur_scale = 2.0**16
        again = Scaler(options)
        again.load(ours.state())
        ours = again


def test_a_fixed_scale_stays() -> None:
    options = LossScale(initial=8.0, fixed=True, most_skipped=3)
    scaler = Scaler(options.model_copy(update={"window": 1}))
    for finite in (True, True, False, False, False):
        assert not scaler.exhausted
        scaler.judge(finite)
    assert scaler.scale == 8.0
    assert scaler.exhausted


def engine(precision: str = "fp16", **options: Any) -> PlainEngine:
    built = PlainEngine(runs.config("llama", precision=precision, **options), NextToken())
    built.initialise()
    return built


def test_fp16_learns_as_fp32_does() -> None:
    """Losses of 20 steps, and the norms of their gradients, whatever the scale is."""
    ours, exact = engine(loss_scale={"initial": 1024.0, "window": 3}), engine("fp32")
    for step in range(20):
        batches = [runs.batch(2, step % 3), runs.batch(2, 50 + step % 3, masked=True)]
        low, high = ours.step(batches, 0.01), exact.step(batches, 0.01)
        assert not low.skipped
        assert low.loss == pytest.approx(high.loss, rel=0.02)
        assert low.norm == pytest.approx(high.norm, rel=0.05)
    assert ours.scaler is not None
    assert ours.scaler.scale == 1024.0 * 2**6
    assert {p.dtype for p in ours.parameters} == {torch.float16}
    assert high.loss < 3.9


def test_a_step_that_overflows_changes_nothing_but_the_scale() -> None:
    built = engine(loss_scale={"initial": 2.0**30, "hysteresis": 1})
    before = {held.name: held.value.clone() for held in built.state()}
    report = built.step([runs.batch(2, 0)], 0.01)
    assert (report.skipped, report.loss_scale) == (True, 2.0**30)
    assert "norm" not in report.record()
    assert report.record()["loss"] == pytest.approx(4.1, abs=0.2)
    assert built.counters()["loss_scale"]["scale"] == 2.0**29
    assert built.counters()["steps"] == 0
    assert not built.gradients
    assert all(torch.equal(held.value, before[held.name]) for held in built.state())


def test_too_many_skipped_steps_end_the_run() -> None:
    built = engine(loss_scale={"initial": 2.0**60, "most_skipped": 3})
    assert [built.step([runs.batch(2, 0)], 0.01).skipped for _ in range(2)] == [True, True]
    with pytest.raises(
        TrainingError, match=r"3 steps in a row were skipped, and the norm is (inf|nan): the gradient of \S+"
    ):
        built.step([runs.batch(2, 0)], 0.01)


def test_a_weight_that_is_lost_ends_the_run_at_once() -> None:
    built = engine()
    next(value for spec, _, value in pieces(built.model) if spec.name == "layers.1.attn.k.weight")[0, 0] = float("nan")
    with pytest.raises(TrainingError, match=r"the weight of layers\.1\.attn\.k\.weight is not finite"):
        built.step([runs.batch(2, 0)], 0.01)

"""The learning rate against gpt-neox's own numbers (start 1e-3, min 1e-4, 1000 steps, warmup 0.01), and what grows."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import tiny_runs as runs

from neoxkit.config.optimizer import Schedule
from neoxkit.errors import ConfigError
from neoxkit.train.schedule import batch_after, length_after, rate, samples_after

GOLDEN = {
    "linear": {
        0: 1e-4,
        1: 1e-4,
        5: 5e-4,
        10: 1e-3,
        11: 9.98989899e-4,
        100: 9.090909091e-4,
        505: 5e-4,
        990: 1e-4,
        1000: 1e-4,
        1100: 1e-4,
        2000: 1e-4,
    },
    "cosine": {
        0: 1e-4,
        1: 1e-4,
        5: 5e-4,
        10: 1e-3,
        11: 9.999977343e-4,
        100: 9.817718381e-4,
        505: 5.5e-4,
        990: 1.002265559e-4,
        1000: 1e-4,
        1100: 1.22467997e-4,
        2000: 9.997734441e-4,
    },
    "exponential": {
        0: 1e-4,
        1: 1e-4,
        5: 5e-4,
        10: 1e-3,
        11: 9.993002449e-4,
        100: 9.389434737e-4,
        505: 7.071588193e-4,
        990: 5.035863913e-4,
        1000: 5.000735957e-4,
        1100: 4.662655301e-4,
        2000: 2.483291984e-4,
    },
    "constant": {0: 1e-4, 5: 5e-4, 10: 1e-3, 11: 1e-3, 1000: 1e-3},
}


PYTHIA = {
    "linear": {0: 0, 1: 1e-4, 5: 5e-4, 10: 1e-3, 11: 9.99e-4, 100: 9.1e-4, 505: 5.05e-4, 990: 1e-4, 1000: 1e-4},
    "cosine": {
        0: 0,
        1: 1e-4,
        5: 5e-4,
        10: 1e-3,
        11: 9.999975326e-4,
        100: 9.801468428e-4,
        505: 5.078536587e-4,
        990: 1e-4,
        1000: 1e-4,
    },
    "exponential": {
        0: 0,
        1: 1e-4,
        5: 5e-4,
        10: 1e-3,
        11: 9.993072401e-4,
        100: 9.395351945e-4,
        505: 7.096133747e-4,
        990: 5.070528704e-4,
        1000: 5.070528704e-4,
    },
}
"""gpt-neox until August 2023, which trained Pythia and GPT-NeoX-20B."""


@pytest.mark.parametrize("decay", PYTHIA)
def test_golden_of_pythia(decay: str) -> None:
    schedule = Schedule(decay=decay, warmup=0.01, min_lr=1e-4, era="pythia")
    for step, expected in PYTHIA[decay].items():
        assert rate(step, schedule, 1e-3, 1000) == pytest.approx(expected, rel=1e-9), step
    assert rate(1500, schedule, 1e-3, 1000) == rate(990, schedule, 1e-3, 1000)


@pytest.mark.parametrize("decay", GOLDEN)
def test_from_2023_to_2026_only_the_first_step_differed(decay: str) -> None:
    then = Schedule(decay=decay, warmup=0.01, min_lr=1e-4, era="2023")
    assert rate(0, then, 1e-3, 1000) == 0
    for step, expected in GOLDEN[decay].items():
        assert step == 0 or rate(step, then, 1e-3, 1000) == pytest.approx(expected, rel=1e-9), step


@pytest.mark.parametrize("decay", GOLDEN)
def test_golden(decay: str) -> None:
    schedule = Schedule(decay=decay, warmup=0.01, min_lr=1e-4)
    for step, expected in GOLDEN[decay].items():
        assert rate(step, schedule, 1e-3, 1000) == pytest.approx(expected, rel=1e-9), step


def test_warmup_steps_say_the_same_as_a_part() -> None:
    part = Schedule(warmup=0.01, min_lr=1e-4)
    steps = Schedule(warmup_steps=10, min_lr=1e-4)
    assert [rate(i, part, 1e-3, 1000) for i in range(1000)] == [rate(i, steps, 1e-3, 1000) for i in range(1000)]


def test_warmup_may_go_below_the_lowest_rate() -> None:
    assert rate(0, Schedule(warmup_steps=100, min_lr=1e-4), 1e-3, 1000) == pytest.approx(1e-5)


def test_no_warmup_begins_at_the_peak() -> None:
    assert rate(0, Schedule(warmup=0.0), 1e-3, 1000) == 1e-3


def test_decay_may_end_before_the_run() -> None:
    schedule = Schedule(decay="linear", warmup=0.0, decay_steps=100, min_lr=1e-5)
    assert rate(500, schedule, 1e-3, 1000) == 1e-5


def test_a_run_that_only_warms_up() -> None:
    assert rate(10, Schedule(warmup=1.0), 1e-3, 10) == 1e-3


def test_no_rate_is_above_the_peak() -> None:
    """Least of all the first, where warmup is less than a step: in runs of under 100 steps, by default."""
    for warmup in (Schedule(), Schedule(warmup=0.003), Schedule(warmup_steps=3)):
        for steps in range(1, 201):
            assert max(rate(step, warmup, 1e-3, steps) for step in range(steps + 1)) <= 1e-3, steps
    assert rate(0, Schedule(), 1e-3, 1) == 1e-3


def test_inverse_sqrt_is_transformers() -> None:
    """get_inverse_sqrt_schedule of transformers, whose time scale is the warmup; and its floor."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    theirs = transformers.get_inverse_sqrt_schedule(optimizer, num_warmup_steps=40)
    schedule = Schedule(decay="inverse_sqrt", warmup_steps=40)
    for step in range(1000):
        if step:  # theirs begins at 0
            assert rate(step, schedule, 1e-3, 1000) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step
        optimizer.step()
        theirs.step()
    assert rate(999, Schedule(decay="inverse_sqrt", warmup_steps=40, min_lr=9e-4), 1e-3, 1000) == 9e-4


@pytest.mark.parametrize(("shape", "theirs"), [("linear", "linear"), ("cosine", "cosine"), ("sqrt", "1-sqrt")])
def test_warmup_stable_decay_is_transformers(shape: Any, theirs: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    other = transformers.get_wsd_schedule(
        optimizer, num_warmup_steps=50, num_decay_steps=200, num_training_steps=1000, decay_type=theirs
    )
    schedule = Schedule(decay="wsd", warmup_steps=50, cooldown=0.2, cooldown_shape=shape)
    for step in range(1100):
        if step:
            ours = rate(step, schedule, 1e-3, 1000)
            assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-18), step
        optimizer.step()
        other.step()


def test_an_exponential_cooldown_halves_as_often_in_equal_times() -> None:
    schedule = Schedule(decay="wsd", warmup=0.0, cooldown=0.5, cooldown_shape="exponential", min_lr=1e-5)
    rates = [rate(step, schedule, 1e-3, 100) for step in range(101)]
    assert set(rates[:51]) == {1e-3}
    assert rates[75] == pytest.approx(math.sqrt(1e-3 * 1e-5))
    assert rates[100] == 1e-5
    assert all(a > b for a, b in pairwise(rates[50:]))


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"cooldown": 0.2}, "cooldown belongs to decay wsd, and decay is cosine"),
        ({"cooldown_shape": "sqrt", "decay": "linear"}, "cooldown_shape belongs to decay wsd"),
        ({"decay": "wsd", "era": "pythia"}, "gpt-neox had no decay wsd in era pythia"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options: dict[str, Any], cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        runs.config(schedule=options)


GROWING = {"size": 32, "micro": 4, "warmup": {"start": 16, "increment": 8, "samples": 600}}


def test_batches_grow_as_megatrons_do() -> None:
    """Its own example, `--rampup-batch-size 16 8 300000` to a batch of 1024, and ours in numbers that can be read."""
    config = runs.config(batch={"size": 1024, "micro": 8, "warmup": {"start": 16, "increment": 8, "samples": 300000}})
    stages = (1024 - 16) // 8
    for samples in (0, 2380, 2381, 150000, 299999, 300000, 10**9):
        expected = 1024 if samples >= 300000 else 16 + 8 * int(samples / (300000 / stages))
        assert batch_after(config, samples) == expected, samples
    config = runs.config(batch=GROWING)
    seen, done = [], 0
    for step in range(60):
        assert samples_after(config, step) == done
        seen.append(batch_after(config, done))
        done += seen[-1]
    assert samples_after(config, 40, samples_after(config, 20)) == samples_after(config, 60) == done
    assert {size: seen.count(size) for size in seen} == {16: 19, 24: 13, 32: 28}


@pytest.mark.parametrize(
    ("batch", "cause"),
    [
        (GROWING | {"size": 36}, "from 16 by 8, which never is 36"),
        (GROWING | {"micro": 16}, "increment 8 is no multiple of the 16 samples"),
        (GROWING | {"micro": None}, "start 16 is no multiple of the 32 samples"),
    ],
)
def test_growth_that_does_not_come_out_is_refused(batch: dict[str, Any], cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        runs.config(batch=batch)


@pytest.mark.parametrize("root", [1, 2])
def test_lengths_grow_as_deepspeeds_curriculum(root: int) -> None:
    scheduler = pytest.importorskip("deepspeed.runtime.data_pipeline.curriculum_scheduler")
    curriculum = {"start": 16, "steps": 70, "multiple": 8, "root": root}
    config = runs.config(
        model=runs.tree("gpt_neox", runs.Path("/nowhere"))["model"] | {"context": 512},
        data={"train": "none", "curriculum": curriculum},
    )
    theirs = scheduler.CurriculumScheduler(
        {
            "min_difficulty": 16,
            "max_difficulty": 512,
            "schedule_type": "fixed_root",
            "schedule_config": {"total_curriculum_step": 70, "difficulty_step": 8, "root_degree": root},
        }
    )
    # DeepSpeed updates it with the number of the step, which counts from 1.
    assert [length_after(config, step) for step in range(100)] == [theirs.update_difficulty(n) for n in range(1, 101)]

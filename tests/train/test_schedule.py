"""The learning rate against gpt-neox's own numbers (start 1e-3, min 1e-4, 1000 steps, warmup 0.01)."""

from __future__ import annotations

import pytest

from neoxkit.config.optimizer import Schedule
from neoxkit.train.schedule import rate

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


@pytest.mark.parametrize("decay", GOLDEN)
def test_golden(decay: str) -> None:
    schedule = Schedule(decay=decay, warmup=0.01, min_lr=1e-4)  # type: ignore[arg-type]
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

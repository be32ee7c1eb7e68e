"""The learning rate of a step: pure arithmetic, number for number what gpt-neox does today."""

from __future__ import annotations

import math

from neoxkit.config.optimizer import Schedule
from neoxkit.config.run import RunConfig

_HALVING = 0.693  # gpt-neox's spelling of ln 2: at the end of an exponential decay the rate has halved


def rate(step: int, schedule: Schedule, peak: float, steps: int) -> float:
    """The learning rate of the step that follows `step` completed ones, in a run of `steps`.

    Warmup rises as peak * max(1, step) / warmup, so the first step is not idle, and never above the
    peak, also where warmup is less than a step; then the rate decays over the rest, never below
    `min_lr`. Example: peak 1e-3, 1000 steps, warmup 0.01, min_lr 1e-4: step 0 is 1e-4, step 10 is
    1e-3, step 505 of a cosine is 5.5e-4.
    """
    end = schedule.decay_steps or steps
    warmup = schedule.warmup * end if schedule.warmup_steps is None else schedule.warmup_steps
    if warmup > 0 and step <= warmup:
        return peak * min(1.0, max(1, step) / warmup)
    done = (step - warmup) / (end - warmup) if end > warmup else 1.0
    return max(_decayed(done, schedule, peak), schedule.min_lr)


def _decayed(done: float, schedule: Schedule, peak: float) -> float:
    """The rate when the part `done` of the decay is over. Past its end (done > 1) a cosine rises again."""
    if schedule.decay == "linear":
        return peak * (1 - done)
    if schedule.decay == "cosine":
        return schedule.min_lr + (peak - schedule.min_lr) / 2 * (math.cos(math.pi * done) + 1)
    if schedule.decay == "exponential":
        return peak * math.exp(-_HALVING * done)
    assert schedule.decay == "constant", schedule.decay
    return peak


def rate_of(config: RunConfig, step: int) -> float:
    """The learning rate that a run has after `step` completed steps."""
    return rate(step, config.schedule, config.optimizer.lr, config.steps)

"""What changes over a run: learning rate, batch, length of samples. Pure arithmetic, so resuming needs two numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from neoxkit.config.optimizer import Schedule
from neoxkit.config.run import RunConfig

_HALVING = 0.693  # gpt-neox's spelling of ln 2: at the end of an exponential decay the rate has halved


def rate(step: float, schedule: Schedule, peak: float, steps: int) -> float:
    """The learning rate of the step that follows `step` completed ones, in a run of `steps`.

    Warmup rises as peak * max(1, step) / warmup, so the first step is not idle, and never above the
    peak, also where warmup is less than a step; then the rate decays over the rest, never below
    `min_lr`. Example: peak 1e-3, 1000 steps, warmup 0.01, min_lr 1e-4: step 0 is 1e-4, step 10 is
    1e-3, step 505 of a cosine is 5.5e-4.
    """
    end = schedule.decay_steps or steps
    warmup = schedule.warmup * end if schedule.warmup_steps is None else schedule.warmup_steps
    if schedule.era == "pythia":
        step = min(step, end - warmup)
    if warmup > 0 and step <= warmup:
        return peak * step / warmup if schedule.era != "current" else peak * min(1.0, max(1, step) / warmup)
    if schedule.decay == "inverse_sqrt":
        return max(peak * math.sqrt(max(1.0, warmup) / max(1.0, warmup, step)), schedule.min_lr)
    if schedule.decay == "wsd":
        return _cooled(step, schedule, peak, warmup, end)
    if schedule.era == "pythia":
        return max(_decayed((step - warmup) / end, schedule, peak, 0.0), schedule.min_lr)
    done = (step - warmup) / (end - warmup) if end > warmup else 1.0
    return max(_decayed(done, schedule, peak, schedule.min_lr), schedule.min_lr)


def _decayed(done: float, schedule: Schedule, peak: float, low: float) -> float:
    """The rate when the part `done` of the decay is over. Past its end (done > 1) a cosine rises again."""
    if schedule.decay == "linear":
        return peak * (1 - done)
    if schedule.decay == "cosine":
        return low + (peak - low) / 2 * (math.cos(math.pi * done) + 1)
    if schedule.decay == "exponential":
        return peak * math.exp(-_HALVING * done)
    assert schedule.decay == "constant", schedule.decay
    return peak


def _cooled(step: float, schedule: Schedule, peak: float, warmup: float, end: int) -> float:
    """The rate of warmup, stable, decay: the peak, until the last part of the steps takes it to `min_lr`."""
    length = min(end * (schedule.cooldown or 0.1), end - warmup)
    low = schedule.min_lr
    done = 1.0 if step >= end else max(0.0, (step - (end - length)) / length)
    shape = schedule.cooldown_shape or "linear"
    if shape == "linear":
        left = 1 - done
    elif shape == "cosine":
        left = (math.cos(math.pi * done) + 1) / 2
    elif shape == "sqrt":
        left = 1 - math.sqrt(done)
    else:
        assert shape == "exponential", shape
        # Geometric from the peak to min_lr; to a thousandth of the peak where that is 0.
        lowest = low or peak / 1000
        return peak * (lowest / peak) ** done if done < 1 else low
    return low + (peak - low) * left


def rate_of(config: RunConfig, step: int) -> float:
    """The learning rate that a run has after `step` completed steps."""
    return rate(step, config.schedule, config.optimizer.lr, config.steps)


def batch_after(config: RunConfig, samples: int) -> int:
    """The samples of the step that follows `samples`.

    With `batch.warmup` they grow from its start by its increment, at equal distances, as Megatron's
    `--rampup-batch-size` does. Example: size 32, start 16, increment 8, samples 600: 16 samples a
    step below 300, 24 below 600, then 32.
    """
    warmup, size = config.batch.warmup, config.batch.size
    if warmup is None or samples >= warmup.samples:
        return size
    stages = (size - warmup.start) // warmup.increment
    return warmup.start + samples * stages // warmup.samples * warmup.increment


def samples_after(config: RunConfig, steps: int, samples: int = 0) -> int:
    """The samples that a run has learned from when it has made so many steps after `samples`."""
    warmup = config.batch.warmup
    while steps and warmup is not None and samples < warmup.samples:
        samples, steps = samples + batch_after(config, samples), steps - 1
    return samples + steps * config.batch.size


def length_after(config: RunConfig, step: int) -> int:
    """The tokens that a sample predicts in the step that follows `step` completed ones.

    With `data.curriculum` samples are cut short, and their length grows in multiples, number for number
    as with the `fixed_linear` and `fixed_root` curricula of gpt-neox (DeepSpeed's): the first step is 1.
    """
    curriculum, whole = config.data.curriculum, config.sequence
    if curriculum is None or step + 1 >= curriculum.steps:
        return whole
    done = float((step + 1) / curriculum.steps) ** (1.0 / curriculum.root)
    length = math.floor(done * (whole - curriculum.start) + curriculum.start)
    return length - length % curriculum.multiple


def samples_by_length(config: RunConfig, steps: int, step: int = 0, samples: int = 0) -> Mapping[int, int]:
    """How many samples of each length the `steps` learn from that follow `step` completed ones and `samples`.

    Example: size 2, 4 steps, samples of 8 tokens after a step of 4: {4: 2, 8: 6}.
    """
    warmup, curriculum, end = config.batch.warmup, config.data.curriculum, step + steps
    found: Counter[int] = Counter()
    while step < end and ((warmup and samples < warmup.samples) or (curriculum and step + 1 < curriculum.steps)):
        size = batch_after(config, samples)
        found[length_after(config, step)] += size
        step, samples = step + 1, samples + size
    if step < end:
        found[config.sequence] += (end - step) * config.batch.size
    return found

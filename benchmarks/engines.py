"""A training step of size S on one CPU thread: the DeepSpeed engine at ZeRO-0 and 1 against the plain engine.

The model and the batches are those of train_step.py. The engines live in one process and take turns, a
few steps each, in another order every round, from the same initial weights; their losses must agree
to 1e-4.

    python benchmarks/engines.py [--rounds 15] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from train_step import LR, ROWS, STEPS_A_TURN, TOLERANCE, config

from neoxkit.config.parallel import Zero
from neoxkit.config.run import RunConfig
from neoxkit.data.rows.batch import Batch
from neoxkit.nn.decoder import form_groups
from neoxkit.train.begin import build_engine
from neoxkit.train.engine import Engine

LIMITS = {0: 1.04, 1: 1.10}
"""CPU time of the DeepSpeed engine, times that of the plain one, at most, by ZeRO stage."""


def engine(run: RunConfig, stage: int | None) -> Engine:
    """The plain engine, or DeepSpeed's at a ZeRO stage."""
    kind = {"engine": "plain"} if stage is None else {"engine": "deepspeed", "zero": Zero(stage=stage)}
    run = run.model_copy(update=kind).on(1)
    made = build_engine(run, torch.device("cpu"), form_groups(run.model, run.placed))
    made.initialise()
    return made


def step_of(made: Engine) -> Callable[[torch.Tensor], float]:
    """A step on rows of ids [8, 257], to the loss."""
    return lambda rows: made.step([Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())], LR).loss


def main() -> None:
    """Take turns, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true", help="Fail when a limit is broken.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run = config(Path(folder))
    steps = {"plain": step_of(engine(run, None))}
    steps |= {f"deepspeed, ZeRO-{stage}": step_of(engine(run, stage)) for stage in LIMITS}
    generator = torch.Generator().manual_seed(1)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(options.rounds + 2):  # the first two warm up
        batches = [
            torch.randint(0, run.model.vocab, (ROWS, run.model.context + 1), generator=generator)
            for _ in range(STEPS_A_TURN)
        ]
        losses = {}
        for name, step in random.sample(list(steps.items()), len(steps)):
            begun = time.process_time()
            losses[name] = [step(rows) for rows in batches]
            if number >= 2:
                seconds[name].append((time.process_time() - begun) / STEPS_A_TURN)
        for name, found in losses.items():
            assert all(abs(a - b) < TOLERANCE for a, b in zip(found, losses["plain"], strict=True)), (name, losses)
    tokens = ROWS * run.model.context
    plain = statistics.median(seconds["plain"])
    ratios = {name: statistics.median(taken) / plain for name, taken in seconds.items()}
    if options.json:
        rates = {name: tokens / statistics.median(taken) for name, taken in seconds.items()}
        print(json.dumps({"tokens_per_cpu_second": rates, "time_to_plain": ratios}))
    else:
        for name, taken in seconds.items():
            rate = tokens / statistics.median(taken)
            print(f"{name:<20} {rate:8.0f} tokens per CPU-second  {ratios[name]:.3f} of the plain engine's time")
    if options.check:
        for stage, limit in LIMITS.items():
            assert ratios[f"deepspeed, ZeRO-{stage}"] <= limit, (stage, ratios)


if __name__ == "__main__":
    main()

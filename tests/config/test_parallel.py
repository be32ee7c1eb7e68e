"""Meshes: what they leave to data parallelism, and what does not go together."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_runs as runs

from neoxkit.errors import ConfigError


def test_data_parallelism_is_what_is_left() -> None:
    run = runs.config("llama", mesh={"tp": 2, "cp": 2}).on(8)
    assert (run.dp, run.placed.cp, run.placed.world) == (2, 2, 8)
    assert run.accumulation == 1, "ranks that share samples do not count"
    with pytest.raises(ConfigError, match="tp 2 x pp 1 x cp 2 does not divide 6 devices"):
        runs.config("llama", mesh={"tp": 2, "cp": 2}).on(6)


NOISE = {"batch": {"size": 4, "micro": 1}, "logging": {"every": 1, "noise_scale": 1}}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mesh": {"cp": 3}}, "4 heads do not divide over tp 1 x cp 3"),
        ({"mesh": {"cp": 4, "tp": 2}}, "4 heads do not divide over tp 2 x cp 4"),
        ({"mesh": {"cp": 4}, "data": {"sequence": 10}}, "divides 10 tokens over cp 4"),
        ({"mesh": {"cp": 2, "tp": 2, "sequence_parallel": True}, "data": {"sequence": 10}}, "over tp 2 x cp 2"),
        ({"mesh": {"tp": 2, "sequence_parallel": True}, "data": {"sequence": 9}}, "divides 9 tokens over tp 2"),
        ({"mesh": {"tp": 8}}, "mesh.tp 8 does not divide the model's 4 heads"),  # it would count each of them twice
        ({"mesh": {"dp": 3}, "batch": {"size": 4}}, "batch.size 4 does not divide over dp 3"),
        ({"mesh": {"tp": 3}}, "mesh.tp 3 does not divide the model's 4 heads"),
        ({"mesh": {"pp": 9}}, "mesh.pp 9 is more stages than the model's 2 layers"),
        ({"profile": {"first": 2, "last": 2000}}, "profile.last 2000 is after the last step"),
        ({"mesh": {"cp": 2, "pp": 2}}, "mesh.cp 2 with mesh.pp 2"),
        ({"mesh": {"cp": 2, "sequence_parallel": True}}, "mesh.sequence_parallel divides tokens over tp, and mesh.tp"),
        ({"recompute": {"every": 2}}, "recompute: every is of the layers that are recomputed, and layers is none; set"),
        ({"loss_scale": {"initial": 8.0}}, "loss_scale is of precision fp16, and precision is fp32"),
        ({"loss_scale": {"initial": 8.0}, "precision": "auto"}, "loss_scale is of precision fp16"),
        ({"loss_scale": {"fixed": True, "window": 2}, "precision": "fp16"}, "loss_scale: window says how"),
        ({"loss_scale": {"initial": 2.0, "lowest": 4.0}, "precision": "fp16"}, "lowest 4 is above initial 2"),
        ({"faults": {"window": 5}}, "faults: window is of the mean that spike is measured from"),
        ({"data": {"valid": None}, "evaluation": {"batches": 2}}, "evaluation.batches is given without data.valid"),
        ({"mesh": {"cp": 2}, **NOISE}, "logging.noise_scale with mesh.cp 2"),
        (
            {"mesh": {"cp": 4}, "data": {"curriculum": {"start": 2, "steps": 2, "multiple": 2}}},
            "multiple 2 does not divide over 4 ranks",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], said: str) -> None:
    data = {"train": "tokens", **options.get("data", {})}
    with pytest.raises(ConfigError) as caught:
        runs.config("llama", **{**options, "data": data})
    assert said in caught.value.cause


@pytest.mark.parametrize(
    ("save", "said"),
    [
        ({"steps": [2, -1]}, "must each be at least 0"),
        ({"log_last": 5}, "log_factor, which is not given"),
        ({"keep_every": 5}, "save: keep_every is what stays beside keep_last, which is not given"),
    ],
)
def test_saves_that_never_come_are_refused(save: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        runs.config("llama", save={"folder": "run", **save})
    assert said in caught.value.cause

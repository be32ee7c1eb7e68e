"""Precision: what is asked for, or what is measured."""

from __future__ import annotations

import pytest
import tiny_runs as runs
import torch

from neoxkit.parallel import device
from neoxkit.train.precision import choose_precision

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

"""The dtype that a model runs in when nobody names one."""

from __future__ import annotations

import pytest
import torch

from neoxkit.parallel import device
from neoxkit.parallel.device import beats_fp32, product, running_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize("kept", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("seconds", "wins"), [(0.1, True), (0.6, True), (0.9, False), (20.0, False)])
def test_half_precision_must_win(
    monkeypatch: pytest.MonkeyPatch, kept: torch.dtype, seconds: float, wins: bool
) -> None:
    monkeypatch.setattr(device, "product", lambda dtype, *shape: {torch.float32: 1.0, kept: seconds}[dtype])
    assert beats_fp32(kept, 1, 1, 1) == wins
    assert running_dtype(kept, CPU, 64, 64) == (kept if wins else torch.float32)


@pytest.mark.parametrize(
    ("kept", "where"), [(torch.float32, "cpu"), (torch.float64, "cpu"), (torch.bfloat16, "cuda"), (torch.half, "mps")]
)
def test_nothing_is_measured_where_nothing_is_gained(
    monkeypatch: pytest.MonkeyPatch, kept: torch.dtype, where: str
) -> None:
    monkeypatch.setattr(device, "product", lambda *shape: pytest.fail("measured"))
    assert running_dtype(kept, torch.device(where), 64, 64) == kept


def test_a_product_is_measured() -> None:
    small, large = (product(torch.float32, size, 64, 64) for size in (64, 8192))
    assert 0 < small < large < 10

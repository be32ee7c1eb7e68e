"""The sliced cross entropy against torch's own: value, gradients, masks, half precision."""

import pytest
import torch
import torch.nn.functional as F

from neoxkit.nn import loss
from neoxkit.nn.loss import cross_entropy
from neoxkit.parallel.layers import Head


def head(weight: torch.Tensor) -> Head:
    """A head with this weight, which it shares."""
    found = Head("head", *weight.shape)
    del found.weight
    found.weight = weight  # type: ignore[assignment]
    return found


@pytest.mark.parametrize("slice_elements", [1, 37 * 5, 2**22])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_torch(monkeypatch: pytest.MonkeyPatch, slice_elements: int, masked: bool) -> None:
    monkeypatch.setattr(loss, "SLICE_ELEMENTS", slice_elements)
    torch.manual_seed(0)
    hidden, weight = torch.randn(23, 8) * 3, torch.randn(37, 8) * 3
    labels = torch.randint(0, 37, (23,))
    mask = (torch.rand(23) < 0.5).float() if masked else None
    ours = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    theirs = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    total, count = cross_entropy(ours[0], head(ours[1]), labels, mask)
    (total / 7).backward()
    nats = F.cross_entropy(theirs[0] @ theirs[1].T, labels, reduction="none")
    wanted = nats.sum() if mask is None else (nats * mask).sum()
    (wanted / 7).backward()
    assert count.item() == (23 if mask is None else mask.sum().item())
    assert total.item() == pytest.approx(wanted.item(), rel=1e-6)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=2e-6, rtol=1e-5)


def test_large_logits_do_not_overflow() -> None:
    hidden, weight = torch.tensor([[1000.0]]), torch.tensor([[1.0], [-1.0]])
    total, _ = cross_entropy(hidden, head(weight), torch.tensor([1]))
    assert total.item() == 2000.0


def test_no_gradient_is_computed_without_need() -> None:
    weight = torch.randn(5, 3)
    total, _ = cross_entropy(torch.randn(4, 3), head(weight), torch.tensor([0, 1, 2, 3]))
    assert not total.requires_grad


def test_bf16_is_close_to_fp32() -> None:
    torch.manual_seed(1)
    hidden, weight = torch.randn(64, 32), torch.randn(50, 32) * 0.1
    labels = torch.randint(0, 50, (64,))
    exact, _ = cross_entropy(hidden, head(weight), labels)
    half = weight.bfloat16().requires_grad_()
    rough, _ = cross_entropy(hidden.bfloat16(), head(half), labels)
    rough.backward()
    assert rough.dtype == torch.float32
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16
    assert rough.item() == pytest.approx(exact.item(), rel=1e-2)

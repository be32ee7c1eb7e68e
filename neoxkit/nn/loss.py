"""The cross entropy of next tokens, computed with the head in slices so that logits never exist whole.

Shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SLICE = 512
"""Tokens whose logits exist at a time: 512 x 50,000 in fp32 is 100 MB; the whole of a batch would be GBs."""


class _SlicedCrossEntropy(torch.autograd.Function):
    """Sum of nats; both gradients are computed on the way forward, while a slice's logits are at hand.

    With softmax p and label y, d loss / d logits = p - onehot(y). Since the loss is a sum, its
    incoming gradient is one number, by which the stored gradients are scaled on the way back.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:  # type: ignore[no-untyped-def, override]
        needs = any(ctx.needs_input_grad[:2])
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        hidden_grad = torch.empty_like(hidden) if needs else None
        weight_grad = None
        for rows in (slice(first, first + SLICE) for first in range(0, len(hidden), SLICE)):
            logits = F.linear(hidden[rows], weight).float()
            kept = None if mask is None else mask[rows].float()
            log_p = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
            nats = log_p.gather(1, labels[rows, None]).squeeze(1)
            total -= nats.sum() if kept is None else (nats * kept).sum()
            if hidden_grad is None:
                continue
            grad = log_p.exp_()
            grad[torch.arange(len(grad), device=grad.device), labels[rows]] -= 1
            if kept is not None:
                grad *= kept[:, None]
            grad = grad.to(weight.dtype)
            torch.mm(grad, weight, out=hidden_grad[rows])
            if weight_grad is None:
                weight_grad = torch.mm(grad.t(), hidden[rows]).float()
            elif weight.dtype == torch.float32:
                weight_grad.addmm_(grad.t(), hidden[rows])
            else:
                weight_grad += torch.mm(grad.t(), hidden[rows])
        if weight_grad is not None:
            ctx.save_for_backward(hidden_grad, weight_grad.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx, scale: Tensor):  # type: ignore[no-untyped-def, override]
        hidden_grad, weight_grad = ctx.saved_tensors
        return hidden_grad * scale, weight_grad * scale, None, None


def cross_entropy(
    hidden: Tensor, head_weight: Tensor, labels: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The summed cross entropy in nats, fp32, and the number of tokens it counts.

    `hidden` [N, width] and `head_weight` [V, width] give the logits; `labels` [N] are token ids and
    `mask` [N], 0 or 1, says which count. Divide by the count of the whole batch, over all
    micro-batches, so that uneven masks do not change the gradient.
    """
    total: Tensor = _SlicedCrossEntropy.apply(hidden, head_weight, labels, mask)
    count = torch.tensor(len(labels), device=hidden.device) if mask is None else mask.sum()
    return total, count

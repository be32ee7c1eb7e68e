"""The cross entropy of next tokens, computed with the head in slices so that logits never exist whole.

Shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from neoxkit.parallel.collectives import highest, summed
from neoxkit.parallel.layers import Head

SLICE_ELEMENTS = 2**22
"""Logits that exist at a time: 16 MB in fp32, which a CPU's cache holds while they are used."""


Chances = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Of logits [n, V], a buffer [n, V] in fp32 and labels [n, 1]: fills the buffer with probabilities.

Gives the nats of each token [n, 1], and which probability the label's 1 is taken from, and with what sign: an
index and a number, both [n, 1].
"""


def _chances(logits: Tensor, p: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of all logits.

    The log of the sum of exponentials is taken from the largest logit m and its probability,
    m - log p(m), so that exponentials are computed once; p(m) is at least 1 / V.
    """
    torch.softmax(logits, dim=-1, dtype=torch.float32, out=p)
    normaliser = logits.amax(1, keepdim=True).float() - p.amax(1, keepdim=True).log()
    return normaliser - logits.gather(1, label), label, p.new_full(label.shape, -1.0)


def _divided_chances(
    here: tuple[int, int], group: ProcessGroup, logits: Tensor, p: Tensor, label: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same where each rank of a group has the rows [first, stop) of the head's weight, and perhaps padding.

    Logits are never gathered: for each token the largest logit, the sum of exponentials and the
    label's logit go round, 12 bytes.
    """
    rows = here[1] - here[0]
    logits[:, rows:] = float("-inf")
    label = label - here[0]
    mine = (label >= 0) & (label < rows)
    label = label.masked_fill(~mine, 0)
    torch.sub(logits, highest(logits.amax(1, keepdim=True).float(), group), out=p)
    chosen = p.gather(1, label).masked_fill_(~mine, 0)
    torch.exp(p, out=p)
    sums, chosen = summed(torch.stack((p.sum(1, keepdim=True), chosen)), group)
    p /= sums
    return sums.log() - chosen, label, mine.to(p.dtype).neg_()


class _SlicedCrossEntropy(torch.autograd.Function):
    """Sum of nats; both gradients are computed on the way forward, while a slice's logits are at hand.

    With softmax p and label y, d loss / d logits = p - onehot(y). Since the loss is a sum, its
    incoming gradient is one number, by which the stored gradients are scaled on the way back. Of a
    divided head the gradient of `hidden` is this rank's part of a sum.

    The buffers are made once and used again for every slice: fresh memory costs a page fault for
    each 4 KB.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor | None, chances: Chances) -> Tensor:  # type: ignore[no-untyped-def]
        tokens, vocab = len(hidden), len(weight)
        assert tokens, "a loss of no tokens has no gradient"
        needs = any(ctx.needs_input_grad[:2])
        size = max(1, min(tokens, SLICE_ELEMENTS // vocab))
        product = hidden.new_empty(size, vocab)
        chance = product.new_empty(size, vocab, dtype=torch.float32)
        total = chance.new_zeros(())
        hidden_grad = torch.empty_like(hidden) if needs else None
        weight_grad = torch.empty_like(weight, dtype=torch.float32) if needs else None
        for first in range(0, tokens, size):
            rows = slice(first, min(first + size, tokens))
            logits, p = product[: rows.stop - first], chance[: rows.stop - first]
            torch.mm(hidden[rows], weight.t(), out=logits)
            nats, place, one = chances(logits, p, labels[rows, None])
            kept = None if mask is None else mask[rows, None].float()
            total += nats.sum() if kept is None else (nats * kept).sum()
            if hidden_grad is None or weight_grad is None:
                continue
            p.scatter_add_(1, place, one)
            if kept is not None:
                p *= kept
            grad = p if logits.dtype == p.dtype else logits.copy_(p)
            torch.mm(grad, weight, out=hidden_grad[rows])
            if grad.dtype == torch.float32:
                weight_grad.addmm_(grad.t(), hidden[rows], beta=min(first, 1))  # beta 0 overwrites
            else:
                part = torch.mm(grad.t(), hidden[rows])
                weight_grad.copy_(part) if first == 0 else weight_grad.add_(part)
        if weight_grad is not None:
            ctx.save_for_backward(hidden_grad, weight_grad.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx, scale: Tensor):  # type: ignore[no-untyped-def]
        hidden_grad, weight_grad = ctx.saved_tensors
        return hidden_grad * scale, weight_grad * scale, None, None, None


def cross_entropy(hidden: Tensor, head: Head, labels: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The summed cross entropy in nats, fp32, and the number of tokens it counts.

    `hidden` [N, width] and the head's weight [V, width] give the logits; `labels` [N] are token ids
    and `mask` [N], 0 or 1, says which count. Divide by the count of the whole batch, over all
    micro-batches, so that uneven masks do not change the gradient. Every rank of a divided head has
    the same result.
    """
    chances: Chances = _chances
    if (group := head.division.tp) is not None:
        hidden, chances = head.division.enter_whole(hidden), partial(_divided_chances, head.here, group)
    total: Tensor = _SlicedCrossEntropy.apply(hidden, head.weight, labels, mask, chances)
    count = torch.tensor(len(labels), device=hidden.device) if mask is None else mask.sum()
    return total, count

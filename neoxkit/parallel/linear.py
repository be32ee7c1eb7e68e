"""Linear layers into a divided region and out of it, which send while they multiply.

On the way back a column layer sends the gradient of its input while it computes the gradient of its
weight. On a divided stream it keeps this rank's tokens only, and gathers the others' once more: that
is what sequence parallelism saves memory by (arXiv 2205.05198).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from neoxkit.parallel.collectives import begin_joined, begin_summed, begin_summed_part, joined, summed, summed_part

TOKENS = 1
"""The dimension of the stream that is divided: it is [B, T, width]."""


class _Column(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, group: ProcessGroup, divided: bool) -> Tensor:
        ctx.group, ctx.divided = group, divided
        ctx.save_for_backward(x, weight)
        return F.linear(joined(x, TOKENS, group) if divided else x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad[:3]
        whole = begin_joined(x, TOKENS, ctx.group) if ctx.divided and for_weight else None
        sent = None
        if for_x:
            part = torch.matmul(gradient, weight)
            sent = begin_summed_part(part, TOKENS, ctx.group) if ctx.divided else begin_summed(part, ctx.group)
        for_w = _for_weight(gradient, x if whole is None else whole()) if for_weight else None
        for_b = gradient.flatten(0, -2).sum(0) if for_bias else None
        return None if sent is None else sent(), for_w, for_b, None, None


class _Row(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, group: ProcessGroup, divided: bool) -> Tensor:
        ctx.group, ctx.divided = group, divided
        ctx.save_for_backward(x, weight)
        product = F.linear(x, weight)
        return summed_part(product, TOKENS, group) if divided else summed(product, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight = ctx.needs_input_grad[:2]
        if ctx.divided:
            gradient = joined(gradient, TOKENS, ctx.group)
        return (
            torch.matmul(gradient, weight) if for_x else None,
            _for_weight(gradient, x) if for_weight else None,
            None,
            None,
        )


def _for_weight(gradient: Tensor, x: Tensor) -> Tensor:
    """The gradient of W in y = x W^T."""
    return gradient.flatten(0, -2).t() @ x.flatten(0, -2)


def column(group: ProcessGroup, divided: bool, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b of a stream x, for this rank's rows of W."""
    return _Column.apply(x, weight, bias, group, divided)


def row(group: ProcessGroup, divided: bool, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The sum over all ranks of x W^T, for this rank's columns of W, as a stream; then b, once."""
    y: Tensor = _Row.apply(x, weight, group, divided)
    return y if bias is None else y + bias

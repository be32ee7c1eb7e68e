"""The autograd crossings between what every rank of a group holds and what is divided among them.

Each is a pair: what it does on the way forward decides what its gradient needs on the way back.

| crossing  | forward                    | backward                   | where                                    |
|-----------|----------------------------|----------------------------|------------------------------------------|
| `enter`   | nothing                    | sum                        | into a divided region                    |
| `leave`   | sum                        | nothing                    | out of it                                |
| `combine` | sum                        | sum                        | inside it: a mean over all ranks         |
| `scatter` | sum, keep this rank's part | join along a dimension     | out of it, to a divided sequence         |
| `collect` | join along a dimension     | keep this rank's part      | for what all ranks compute alike         |
| `trade`   | part r goes to rank r      | the same                   | from some tokens to some heads, and back |

A group of one is None, and then nothing is done. `linear.py` has the layers that cross borders
themselves, and the way from a divided sequence into a divided region.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

# torch 2.13 renamed both; the older names warn there.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

Begun = Callable[[], Tensor]
"""What has begun and goes on beside other work; call it for the result, before its input is touched."""


class Waited:
    """How long this process has waited for others: on a CPU all of it, on a GPU nothing, which waits by itself."""

    seconds = 0.0

    def wait(self, work: Any) -> None:
        """Wait for what has begun."""
        begun = time.perf_counter()
        work.wait()
        self.seconds += time.perf_counter() - begun


WAITED = Waited()


def begin_summed(x: Tensor, group: ProcessGroup) -> Begun:
    """Begin `summed`."""
    work = dist.all_reduce(x, group=group, async_op=True)

    def finish() -> Tensor:
        WAITED.wait(work)
        return x

    return finish


def summed(x: Tensor, group: ProcessGroup) -> Tensor:
    """The sum over a group, written into x, which must be contiguous. No autograd."""
    return begin_summed(x, group)()


def highest(x: Tensor, group: ProcessGroup) -> Tensor:
    """The maximum over a group, written into x, which must be contiguous. No autograd."""
    dist.all_reduce(x, dist.ReduceOp.MAX, group=group)
    return x


def begin_joined(x: Tensor, dim: int, group: ProcessGroup) -> Begun:
    """Begin `joined`."""
    ranks, dim = dist.get_world_size(group), dim % x.dim()
    given, found = x.contiguous(), x.new_empty(ranks, *x.shape)
    work = _all_gather(found.view(ranks * x.shape[0], *x.shape[1:]), given, group=group, async_op=True)

    def finish() -> Tensor:
        WAITED.wait(work)
        return found.movedim(0, dim).flatten(dim, dim + 1)

    return finish


def joined(x: Tensor, dim: int, group: ProcessGroup) -> Tensor:
    """What the ranks hold, in their order along a dimension. No autograd."""
    return begin_joined(x, dim, group)()


def part(x: Tensor, dim: int, group: ProcessGroup) -> Tensor:
    """This rank's part of a dimension that the ranks divide equally. No autograd."""
    return x.chunk(dist.get_world_size(group), dim)[dist.get_rank(group)].contiguous()


def begin_summed_part(x: Tensor, dim: int, group: ProcessGroup) -> Begun:
    """Begin `summed_part`."""
    ranks, dim = dist.get_world_size(group), dim % x.dim()
    parts = x.unflatten(dim, (ranks, -1)).movedim(dim, 0).contiguous()
    found = torch.empty_like(parts[0])
    work = _reduce_scatter(found, parts.flatten(0, 1), group=group, async_op=True)

    def finish() -> Tensor:
        WAITED.wait(work)
        return found

    return finish


def summed_part(x: Tensor, dim: int, group: ProcessGroup) -> Tensor:
    """This rank's part of the sum over a group. No autograd."""
    return begin_summed_part(x, dim, group)()


def traded(x: Tensor, group: ProcessGroup) -> Tensor:
    """What the ranks have for this one, [ranks, ...], where each gives x[r] to rank r. No autograd."""
    given = x.contiguous()
    found = torch.empty_like(given)
    WAITED.wait(dist.all_to_all_single(found, given, group=group, async_op=True))
    return found


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # A copy: autograd may have given the same tensor to others.
        return summed(gradient.clone(memory_format=torch.contiguous_format), ctx.group), None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        return summed(x.clone(memory_format=torch.contiguous_format), group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: ProcessGroup) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return summed_part(x, dim, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return joined(gradient, ctx.dim, ctx.group), None, None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: ProcessGroup) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return joined(x, dim, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return part(gradient, ctx.dim, ctx.group), None, None


class _Trade(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return traded(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return traded(gradient, ctx.group), None


def enter(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """x, which every rank holds; its gradient is summed, since each rank sees only part of what x does."""
    return x if group is None else _Enter.apply(x, group)


def leave(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """The sum of what the ranks hold, which is then on every rank."""
    return x if group is None else _Leave.apply(x, group)


def combine(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """The sum of what the ranks hold, of which each rank uses only what concerns its own part."""
    return enter(leave(x, group), group)


def scatter(x: Tensor, dim: int, group: ProcessGroup | None) -> Tensor:
    """This rank's part of the sum of what the ranks hold."""
    return x if group is None else _Scatter.apply(x, dim, group)


def collect(x: Tensor, dim: int, group: ProcessGroup | None) -> Tensor:
    """The parts of a dimension joined, to be used in the same way by every rank."""
    return x if group is None else _Collect.apply(x, dim, group)


def trade(x: Tensor, group: ProcessGroup) -> Tensor:
    """What the ranks have for this one, [ranks, ...], where each gives x[r] to rank r."""
    return _Trade.apply(x, group)

"""How a model is divided: which boxes are held here, and what layers do at the borders of a divided region.

Layers ask their division when they are built, so that a forward pass has no branches on the mesh, and in
one process nothing is called that one process does not need.

The *stream* is what passes from layer to layer, [B, T, width]. Every rank of a tensor parallel group
holds all of it; with sequence parallelism (arXiv 2205.05198) each holds T / tp tokens.

With context parallelism T is this rank's share of every sample: the rank of index i along it has the
tokens from i T on. Whatever treats each token by itself needs not know; attention asks `by_heads`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from neoxkit.errors import ConfigError
from neoxkit.parallel import collectives
from neoxkit.parallel.context import Attend, by_heads
from neoxkit.parallel.groups import LOCAL, Groups
from neoxkit.parallel.linear import TOKENS, column, row
from neoxkit.spec import Axis, Coord

Crossing = Callable[[Tensor], Tensor]
Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
RmsNorm = Callable[[Tensor, Sequence[int], Tensor | None, float], Tensor]
ByHeads = Callable[[Attend, int, int], Attend]


def same(x: Tensor) -> Tensor:
    """x: the crossing where nothing is divided."""
    return x


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """torch's, as it is when it is called: profilers that count operations put theirs in its place."""
    return F.linear(x, weight, bias)


def as_it_is(attend: Attend, heads: int, kv_heads: int) -> Attend:
    """Attention where every rank has all tokens."""
    return attend


@dataclass(frozen=True)
class Division:
    """A place on a mesh, and the crossings there; in one process each is the plain function of torch.

    `share` is this rank's part [B, T / tp, ...] of what all ranks know of T tokens. `whole` joins the
    stream for what all ranks compute alike, and `enter_whole` goes from there into a divided region.
    `leave` takes partial sums to the stream. `column` is a linear layer into a divided region, `row`
    one out of it. `rms_norm` is over a dimension that is divided, `join_last` joins a divided last one.
    `inside` and `stream` are the axes over which gradients of whole parameters must be summed that are
    used inside a divided region, and on the stream. `by_heads` makes attention, for so many heads and
    key/value heads, where samples are divided; `whole_samples` joins what has no gradient there, [B, T].
    """

    groups: Groups = LOCAL
    share: Crossing = same
    whole: Crossing = same
    enter_whole: Crossing = same
    leave: Crossing = same
    column: Linear = linear
    row: Linear = linear
    rms_norm: RmsNorm = F.rms_norm
    join_last: Crossing = same
    inside: tuple[Axis, ...] = ()
    stream: tuple[Axis, ...] = ()
    by_heads: ByHeads = as_it_is
    whole_samples: Crossing = same

    @property
    def at(self) -> Coord:
        """The coordinate."""
        return self.groups.mesh.coord()

    @property
    def tp(self) -> ProcessGroup | None:
        """The tensor parallel group; None in a group of one."""
        return self.groups.along.get(Axis.TP)

    @property
    def samples(self) -> tuple[int, int]:
        """Which share of every sample is here, of how many."""
        return self.at[Axis.CP]

    def positions(self, tokens: int, device: torch.device) -> Tensor:
        """Those of the tokens of a sample that are here, so many, [1, T]."""
        first = self.samples[0] * tokens
        return torch.arange(first, first + tokens, device=device)[None]


UNDIVIDED = Division()
"""That of a model in one process."""

CROSSINGS = ("share", "whole", "enter_whole", "leave", "column", "row", "rms_norm", "join_last")
"""What layers call to send something, where something is divided."""


def divide(groups: Groups, sequence: bool = False, compiled: bool = False) -> Division:
    """How a model is divided at the place of `groups`; with `sequence`, tokens of the stream are divided as well.

    With `compiled` the crossings stay out of the compiled code that calls them: what is sent cannot be traced.
    """
    found = _divide_layers(groups, sequence)
    outside: Callable[..., Any] = torch.compiler.disable if compiled else _unchanged
    crossings = {name: getattr(found, name) for name in CROSSINGS}
    made: dict[str, Any] = {name: outside(it) for name, it in crossings.items() if it is not getattr(UNDIVIDED, name)}
    found = replace(found, **made)
    if (ranks := groups.mesh.cp) == 1:
        return found
    cp = groups.along.get(Axis.CP)
    trade = _unconnected if cp is None else outside(partial(collectives.trade, group=cp))
    return replace(
        found,
        by_heads=partial(by_heads, trade, ranks),
        whole_samples=_unconnected if cp is None else partial(collectives.joined, dim=TOKENS, group=cp),
    )


def _unchanged(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return function


def _divide_layers(groups: Groups, sequence: bool) -> Division:
    """How heads, rows and the stream are divided over tensor parallelism."""
    if groups.mesh.tp == 1:
        return Division(groups)
    axes, group = (Axis.TP,), groups.along.get(Axis.TP)
    if group is None:
        return Division(groups, *(_unconnected,) * 8, inside=axes, stream=axes if sequence else ())
    return Division(
        groups,
        share=partial(_share_tokens, group=group) if sequence else same,
        whole=partial(collectives.collect, dim=TOKENS, group=group) if sequence else same,
        enter_whole=partial(collectives.enter, group=group),
        leave=partial(_scatter_tokens if sequence else collectives.leave, group=group),
        column=partial(column, group, sequence),
        row=partial(row, group, sequence),
        rms_norm=partial(_rms_norm, group),
        join_last=partial(collectives.collect, dim=-1, group=group),
        inside=axes,
        stream=axes if sequence else (),
    )


def _unconnected(*_: object) -> Tensor:
    raise AssertionError("this model has a place on a mesh, and no groups: it can be described, not run")


def _rms_norm(group: ProcessGroup, x: Tensor, shape: Sequence[int], weight: Tensor | None, eps: float) -> Tensor:
    """RMS norm over the last dimension, of which every rank has as much; key heads that ranks share weigh alike."""
    assert weight is None, "the weight is applied after rounding"
    assert len(shape) == 1
    mean = collectives.combine(x.square().mean(-1, keepdim=True), group) / group.size()
    return x * torch.rsqrt(mean + eps)


def _share_tokens(x: Tensor, group: ProcessGroup) -> Tensor:
    _check_tokens(x, group)
    return collectives.part(x, TOKENS, group)


def _scatter_tokens(x: Tensor, group: ProcessGroup) -> Tensor:
    _check_tokens(x, group)
    return collectives.scatter(x, TOKENS, group)


def _check_tokens(x: Tensor, group: ProcessGroup) -> None:
    if x.shape[TOKENS] % group.size():
        raise ConfigError(
            f"sequence parallelism cannot divide {x.shape[TOKENS]} tokens over tp {group.size()}",
            "choose a context that tp divides, or do without sequence parallelism",
        )

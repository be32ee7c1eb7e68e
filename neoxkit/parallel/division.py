"""How a model is divided: which boxes are held here, and what layers do at the borders of a divided region.

Layers ask their division when they are built, so that a forward pass has no branches on the mesh, and in
one process nothing is called that one process does not need.

The *stream* is what passes from layer to layer, [B, T, width]. Every rank of a tensor parallel group
holds all of it; with sequence parallelism (arXiv 2205.05198) each holds T / tp tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from neoxkit.errors import ConfigError
from neoxkit.parallel import collectives
from neoxkit.parallel.groups import LOCAL, Groups
from neoxkit.parallel.linear import TOKENS, column, row
from neoxkit.spec import Axis, Coord

Crossing = Callable[[Tensor], Tensor]
Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
RmsNorm = Callable[[Tensor, Sequence[int], Tensor | None, float], Tensor]


def same(x: Tensor) -> Tensor:
    """x: the crossing where nothing is divided."""
    return x


@dataclass(frozen=True)
class Division:
    """A place on a mesh, and the crossings there; in one process each is the plain function of torch.

    `share` is this rank's part [B, T / tp, ...] of what all ranks know of T tokens. `whole` joins the
    stream for what all ranks compute alike, and `enter_whole` goes from there into a divided region.
    `leave` takes partial sums to the stream. `column` is a linear layer into a divided region, `row`
    one out of it. `rms_norm` is over a dimension that is divided, `join_last` joins a divided last one.
    `inside` and `stream` are the axes over which gradients of whole parameters must be summed that are
    used inside a divided region, and on the stream.
    """

    groups: Groups = LOCAL
    share: Crossing = same
    whole: Crossing = same
    enter_whole: Crossing = same
    leave: Crossing = same
    column: Linear = F.linear
    row: Linear = F.linear
    rms_norm: RmsNorm = F.rms_norm
    join_last: Crossing = same
    inside: tuple[Axis, ...] = ()
    stream: tuple[Axis, ...] = ()

    @property
    def at(self) -> Coord:
        """The coordinate."""
        return self.groups.mesh.coord()

    @property
    def tp(self) -> ProcessGroup | None:
        """The tensor parallel group; None in a group of one."""
        return self.groups.along.get(Axis.TP)


UNDIVIDED = Division()
"""That of a model in one process."""


def divide(groups: Groups, sequence: bool = False) -> Division:
    """How a model is divided at the place of `groups`; with `sequence`, tokens of the stream are divided as well."""
    if groups.mesh.tp == 1:
        return Division(groups)
    axes, group = (Axis.TP,), groups.along.get(Axis.TP)
    if group is None:
        return Division(groups, *(_unconnected,) * 8, inside=axes, stream=axes if sequence else ())  # type: ignore[arg-type]
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

"""The norm of gradients that are spread over processes, each element counted once."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from neoxkit.mesh import counts
from neoxkit.parallel.collectives import summed
from neoxkit.parallel.groups import Groups
from neoxkit.parallel.layers import Held
from neoxkit.spec import Axis, Coord

SPREAD = (Axis.TP, Axis.PP)
"""The axes over which a model is spread. (Ranks along the others hold the same gradients, once these are summed.)"""


def counted(held: Iterable[Held], at: Coord) -> list[slice]:
    """The rows of a parameter which this rank counts, of those that others hold too; adjacent ones joined.

    In one process that is each parameter as a whole.
    """
    found: list[slice] = []
    for spec, _, rows in held:
        if rows.start == rows.stop or not counts(spec, at, [Axis.TP]):
            continue
        if found and found[-1].stop == rows.start:
            rows = slice(found.pop().start, rows.stop)
        found.append(rows)
    return found


def total_norm(gradients: Iterable[tuple[Tensor, Tensor]], groups: Groups) -> Tensor:
    """The norm over all processes of the gradients, each given with its parameter; the same on every rank."""
    at = groups.mesh.coord()
    mine = [
        gradient if rows == slice(0, len(gradient)) else gradient[rows]
        for parameter, gradient in gradients
        for rows in counted(parameter.held, at)  # type: ignore[attr-defined]
    ]
    norm: Tensor = torch.nn.utils.get_total_norm(mine)
    for axis in SPREAD:
        if (group := groups.along.get(axis)) is not None:
            norm = summed(norm.square(), group).sqrt()
    return norm

"""fp32 masters and the weights that they round to.

Where all ranks hold the same, or one holds all, a master is what lies in the files. Of a bias that is
the sum of the ranks' own, and of replicas that have drifted apart, the master is the sum or the mean of
theirs; its rounding can differ from the weight, which is the sum or mean of roundings, in the last bit.
There the weight is taken: so importing the weights alone gives the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from neoxkit.convert.neox.layout import Place, Replicas, Sum, Warn
from neoxkit.convert.pickles.storage import Files


@dataclass(frozen=True)
class Master:
    """The masters of a tensor, which round to the weights of `weight`."""

    master: Place
    weight: Place

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole tensor."""
        return self.master.shape

    @property
    def dtype(self) -> str:
        """As safetensors spells it."""
        return self.master.dtype

    def read(self, files: Files, start: int, stop: int, differs: Warn) -> Tensor:
        """Rows. Whether each rank's own round to its weights is not asked here."""
        value = self.master.read(files, start, stop, differs)
        if len(list(ranks(self.master))) == 1:
            return value
        weight = self.weight.read(files, start, stop, lambda most: None)
        return torch.where(stale(value, weight), weight.to(value.dtype), value)


def ranks(place: Place) -> Iterator[Place]:
    """The places of each rank's own values, where those of several are joined to one by arithmetic; else `place`."""
    if isinstance(place, Replicas | Sum):
        yield from (Replicas((part,)) for part in place.parts)
    else:
        yield place


def rounds(master: Tensor, weight: Tensor) -> bool:
    """Whether weights are plainly their masters rounded: one pass, which is nearly always enough."""
    return torch.equal(master.to(weight.dtype), weight)


def stale(master: Tensor, weight: Tensor) -> Tensor:
    """Where weights are not their masters rounded; NaN is NaN's."""
    rounded = master.to(weight.dtype)
    return (rounded != weight) & ~(rounded.isnan() & weight.isnan())

"""The mesh of processes: its sizes, the coordinate of a rank, the stage of a layer. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

from neoxkit.errors import ConfigError
from neoxkit.spec import Axis, Coord, TensorSpec


class Ends(Enum):
    """The parts of a decoder that lie before its first layer and after its last."""

    FIRST = "first"
    LAST = "last"


@dataclass(frozen=True, slots=True)
class Mesh:
    """How many ways each axis divides the work, and which of the processes this one is.

    Ranks count tensor parallel fastest and pipeline slowest: rank = ((pp * DP + dp) * CP + cp) * TP
    + tp. `ep` is a factor of dp x cp and adds no processes.

    Raises ConfigError when a size is below 1 or `ep` does not divide dp x cp.
    """

    pp: int = 1
    dp: int = 1
    cp: int = 1
    tp: int = 1
    ep: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        for axis in Axis:
            if self.size(axis) < 1:
                raise ConfigError(f"mesh: {axis.value} is {self.size(axis)}", "give a size of at least 1")
        if (self.dp * self.cp) % self.ep:
            raise ConfigError(f"mesh: ep {self.ep} does not divide dp x cp = {self.dp * self.cp}", "lower ep")

    def size(self, axis: Axis) -> int:
        """Processes along an axis."""
        value: int = getattr(self, axis.value)
        return value

    @property
    def world(self) -> int:
        """Processes in all."""
        return self.pp * self.dp * self.cp * self.tp

    def coord(self, rank: int | None = None) -> Coord:
        """The place of a rank (this process's, when None)."""
        rest = self.rank if rank is None else rank
        place: dict[Axis, tuple[int, int]] = {}
        for axis in (Axis.TP, Axis.CP, Axis.DP, Axis.PP):
            rest, index = divmod(rest, self.size(axis))
            place[axis] = (index, self.size(axis))
        expert = place[Axis.DP][0] * self.cp + place[Axis.CP][0]
        place[Axis.EP] = (expert % self.ep, self.ep)
        return place

    def along(self, axes: Collection[Axis]) -> list[tuple[int, ...]]:
        """All ranks, in groups that differ only on these axes (not `ep`); each group, and their list, in order.

        Example: of pp 2 x tp 2, along tp (0, 1) and (2, 3), along pp (0, 2) and (1, 3).
        """
        found: dict[tuple[int, ...], list[int]] = {}
        for rank in range(self.world):
            place = self.coord(rank)
            others = tuple(place[axis][0] for axis in Axis if axis is not Axis.EP and axis not in axes)
            found.setdefault(others, []).append(rank)
        return [tuple(ranks) for ranks in found.values()]

    def stage_of(self, layer: int | Ends, depth: int) -> int:
        """The pipeline stage, of 0 to pp - 1, that runs a layer of a decoder `depth` layers deep.

        Layers are dealt in equal runs, the first stages taking one more when they do not divide.
        Raises ConfigError when there are more stages than layers.
        """
        if self.pp > depth:
            raise ConfigError(f"pp {self.pp} is more stages than the model's {depth} layers", "lower pp")
        if isinstance(layer, Ends):
            return 0 if layer is Ends.FIRST else self.pp - 1
        short, long = divmod(depth, self.pp)
        if layer < long * (short + 1):
            return layer // (short + 1)
        return long + (layer - long * (short + 1)) // short


ONE = Mesh()
"""The mesh of a single process."""


def holders(spec: TensorSpec, at: Coord, axis: Axis) -> range:
    """The indices along an axis which hold the same box of a tensor as this place does.

    All of them when the axis does not divide it; this one alone when it does; neighbours when there
    are more ranks than units (see `spec.span`): of 2 key/value heads over 4 ranks, rank 3 holds what
    rank 2 does.
    """
    index, size = at.get(axis, (0, 1))
    split = next((split for split in spec.splits if split.axis is axis), None)
    if split is None:
        return range(size)
    units = spec.shape[split.dim] // split.unit
    alike = 1 if split.ragged or units >= size else size // units
    first = index - index % alike
    return range(first, first + alike)


def counts(spec: TensorSpec, at: Coord, axes: Collection[Axis]) -> bool:
    """Whether, of the places along these axes that hold the same box of a tensor, this is the first.

    So a norm over all processes, or a save, takes each element once, and no process asks another.
    """
    return all(holders(spec, at, axis)[0] == at.get(axis, (0, 1))[0] for axis in axes)


_LAYER = re.compile(r"layers\.(\d+)\.")


def layer_of(name: str) -> int | Ends:
    """Where in the decoder a logical tensor belongs, read from its name."""
    if match := _LAYER.match(name):
        return int(match.group(1))
    return Ends.FIRST if name.startswith(("embed.", "position.")) else Ends.LAST

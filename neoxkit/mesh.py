"""The mesh of processes: its sizes, the coordinate of a rank, the stage of a layer. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from neoxkit.errors import ConfigError
from neoxkit.spec import Axis, Coord


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

_LAYER = re.compile(r"layers\.(\d+)\.")


def layer_of(name: str) -> int | Ends:
    """Where in the decoder a logical tensor belongs, read from its name."""
    if match := _LAYER.match(name):
        return int(match.group(1))
    return Ends.FIRST if name.startswith(("embed.", "position.")) else Ends.LAST

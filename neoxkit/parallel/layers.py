"""Linear layers and embeddings that declare their logical tensors where they create parameters.

A running model may fuse what a checkpoint keeps apart: one parameter is then several logical
tensors stacked on dimension 0, and `held` lists them. Nothing else in neoxkit states a shape.

Shapes: B batch, T tokens, width, out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from neoxkit.errors import ConfigError
from neoxkit.mesh import holders
from neoxkit.parallel.collectives import summed
from neoxkit.parallel.division import UNDIVIDED, Crossing, Division, Linear, linear, same
from neoxkit.parallel.packed import Make, Product
from neoxkit.spec import Axis, Box, Role, Split, TensorSpec, box, extent


class Held(NamedTuple):
    """A logical tensor, or this process's box of it, and the rows of the parameter where it lies."""

    spec: TensorSpec
    box: Box
    rows: slice


def declare(
    specs: Sequence[TensorSpec], division: Division = UNDIVIDED, rows: int = 0, sums: Sequence[Axis] = ()
) -> nn.Parameter:
    """An uninitialised parameter that holds this place's boxes of logical tensors, stacked on dimension 0.

    The parameter carries `.held`, a list of Held. It has at least `rows` rows; those that hold nothing
    are zero, and stay so. `sums` are axes whose ranks each see a part of the gradient, because they
    use the same values for different heads or tokens; ranks that share a unit do so too. These parts
    are summed as they arrive, so that a gradient is complete whichever engine takes it.

    Device and dtype are torch's defaults of the moment: build under `torch.device("meta")` to learn
    shapes without memory. Raises ConfigError as `spec.span` does.
    """
    held: list[Held] = []
    first = 0
    for spec in specs:
        here = box(spec, division.at)
        last = first + here[0][1] - here[0][0]
        held.append(Held(spec, here, slice(first, last)))
        first = last
    values = torch.empty(max(first, rows), *extent(held[0].box)[1:])
    values[first:].zero_()
    parameter = nn.Parameter(values)
    parameter.held = held  # type: ignore[attr-defined]
    if parts := list(_partial(held, division, sums)):
        parameter.register_hook(partial(_complete, parts))
    return parameter


def _partial(held: Sequence[Held], division: Division, sums: Sequence[Axis]) -> list[tuple[slice, ProcessGroup]]:
    """The rows whose gradients are parts of a sum, and the group that has the other parts."""
    groups = division.groups
    found = [(slice(None), groups.along[axis]) for axis in sums if axis in groups.along]
    for spec, _, rows in held:
        alike = len(holders(spec, division.at, Axis.TP)) if any(s.axis is Axis.TP for s in spec.splits) else 1
        if alike == 1 or not groups.along:
            continue
        assert not found or not sums, f"{spec.name}: shared by neighbours, and whole"
        group = groups.sharing[groups.mesh.tp // alike]
        if found and found[-1][1] is group and found[-1][0].stop == rows.start:
            rows = slice(found.pop()[0].start, rows.stop)
        found.append((rows, group))
    return found


def _complete(parts: Sequence[tuple[slice, ProcessGroup]], gradient: Tensor) -> Tensor:
    """The whole gradient; parts are summed in fp32, to be rounded once."""
    whole = gradient.clone(memory_format=torch.contiguous_format)
    for rows, group in parts:
        whole[rows] = summed(whole[rows].float().contiguous(), group)
    return whole


class Column(nn.Module):
    """y = x W^T + b for one or several matrices at once, whose output rows tensor parallelism divides.

    `outputs` maps each logical name ("layers.0.attn.q") to its output rows; one matrix product
    computes them all. `rows` is how many of each are computed here. Input [..., width], output
    [..., sum of rows].
    """

    def __init__(
        self, outputs: dict[str, int], width: int, unit: int = 1, bias: bool = False, division: Division = UNDIVIDED
    ) -> None:
        super().__init__()
        split = (Split(0, Axis.TP, unit),)
        weights = [TensorSpec(f"{name}.weight", (out, width), split) for name, out in outputs.items()]
        biases = [TensorSpec(f"{name}.bias", (out,), split, Role.BIAS) for name, out in outputs.items()]
        self.weight = declare(weights, division)
        self.bias = declare(biases, division) if bias else None
        self.rows = [extent(box(spec, division.at))[0] for spec in weights]
        self.multiply = division.column

    def multiply_by(self, make: Make) -> Product:
        """Multiply with what `make` makes of weight and bias from now on, and let go of them: learning is over."""
        product = make(self.weight, self.bias)
        self.multiply = lambda x, _weight, _bias: product(x)
        self.weight, self.bias = _gone(), None
        return product

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., sum of rows]."""
        return self.multiply(x, self.weight, self.bias)


class Row(nn.Module):
    """y = x W^T + b whose input columns tensor parallelism divides; it writes to the residual stream.

    Input [..., hidden], output [..., width]. The bias belongs to the sum and is not divided. Raises
    ConfigError where there are more ranks than units: what two ranks hold would be added twice.
    """

    def __init__(
        self, name: str, hidden: int, width: int, unit: int = 1, bias: bool = False, division: Division = UNDIVIDED
    ) -> None:
        super().__init__()
        spec = TensorSpec(f"{name}.weight", (width, hidden), (Split(1, Axis.TP, unit),), Role.OUTPUT)
        if len(holders(spec, division.at, Axis.TP)) > 1:
            units = hidden // unit
            raise ConfigError(
                f"{name}.weight: tp {division.at[Axis.TP][1]} is more ranks than the {units} units to divide",
                f"choose a tp that divides {units}",
            )
        self.weight = declare([spec], division)
        added = TensorSpec(f"{name}.bias", (width,), role=Role.BIAS)
        self.bias = declare([added], division, sums=division.stream) if bias else None
        self.multiply = division.row
        self.leave = division.leave

    def multiply_by(self, make: Make) -> Product:
        """As that of Column. Where there is a sum the bias stays: it is added afterwards, perhaps by another."""
        alone = self.leave is same
        product = make(self.weight, self.bias if alone else None)
        if alone or self.multiply is _part:
            self.multiply = lambda x, _weight, _bias: product(x)
        else:
            self.multiply = lambda x, _weight, bias: _biased(self.leave(product(x)), bias)
        self.weight = _gone()
        return product

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] -> [..., width]."""
        return self.multiply(x, self.weight, self.bias)


def _biased(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias


def _gone() -> nn.Parameter:
    """What is left of a weight that was made into something else."""
    return nn.Parameter(torch.empty(0), requires_grad=False)


def join_rows(first: Row, second: Row, division: Division) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """x + a + b, of a stream x and what two rows say, as a function of the three.

    Where they are divided both then give this rank's part, and are sent as one sum: half as much.
    """
    if division.groups.mesh.tp == 1:
        return _add
    first.multiply = second.multiply = _part
    return partial(_add_parts, division.leave, first, second)


def _add(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return x + a + b


def _part(x: Tensor, weight: Tensor, _: Tensor | None) -> Tensor:
    return F.linear(x, weight)


def _add_parts(leave: Crossing, first: Row, second: Row, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    y = x + leave(a + b)
    for row in (first, second):
        y = y if row.bias is None else y + row.bias
    return y


Read = Callable[[Tensor, Tensor], Tensor]
"""Rows [..., width] of a table [rows, width], by their indices [...]."""


class Embed(nn.Module):
    """Rows of a table by index; the rows of a vocabulary are divided over tensor parallelism.

    Ranks then hold equally many rows, of which the last rank's may be padding; a file has none.
    """

    def __init__(self, name: str, rows: int, width: int, divided: bool = True, division: Division = UNDIVIDED) -> None:
        super().__init__()
        splits = (Split(0, Axis.TP, ragged=True),) if divided else ()
        spec = TensorSpec(f"{name}.weight", (rows, width), splits, Role.EMBED)
        self.read: Read = F.embedding
        self.join: Callable[[Read, Tensor, Tensor], Tensor] | None = None
        if divided:
            self.weight = declare([spec], division, rows=_share(rows, division))
            if division.groups.mesh.tp > 1:
                self.join = partial(_look_up, box(spec, division.at)[0], division)
        else:
            self.weight = declare([spec], division, sums=division.stream)

    def forward(self, ids: Tensor) -> Tensor:
        """[B, T] integers -> [B, T, width]; of a divided table, what this place has of the stream."""
        return self.read(ids, self.weight) if self.join is None else self.join(self.read, ids, self.weight)


class Head(nn.Module):
    """Logits from hidden states. A tied head shares the embedding's parameter and declares nothing."""

    def __init__(
        self, name: str, vocab: int, width: int, tied: Embed | None = None, division: Division = UNDIVIDED
    ) -> None:
        super().__init__()
        spec = TensorSpec(f"{name}.weight", (vocab, width), (Split(0, Axis.TP, ragged=True),), Role.HEAD)
        self.weight = declare([spec], division, rows=_share(vocab, division)) if tied is None else tied.weight
        self.here = box(spec, division.at)[0]
        self.division = division
        self.join: Crossing = same if division.groups.mesh.tp == 1 else partial(_join, division, vocab)

        self.multiply: Linear = linear

    def multiply_by(self, make: Make) -> Product:
        """As that of Column; a table that it shares stays."""
        product = make(self.weight, None)
        self.multiply = lambda x, _weight, _bias: product(x)
        self.weight = _gone()
        return product

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., width] -> [..., vocab]: all logits, on every rank. A loss does better without them."""
        return self.join(self.multiply(self.division.enter_whole(hidden), self.weight, None))


def _share(rows: int, division: Division) -> int:
    """Rows of a ragged dimension that each rank has room for."""
    return -(-rows // division.groups.mesh.tp)


def _look_up(here: tuple[int, int], division: Division, read: Read, ids: Tensor, weight: Tensor) -> Tensor:
    """The rows of the table which this rank has, zero for others; then the sum, to which one rank adds."""
    elsewhere = (ids < here[0]) | (ids >= here[1])
    found = read((ids - here[0]).masked_fill(elsewhere, 0), weight)
    return division.leave(found.masked_fill(elsewhere[..., None], 0))


def _join(division: Division, vocab: int, logits: Tensor) -> Tensor:
    """The logits of all ranks; the last ranks' padding is at the end."""
    return division.join_last(logits)[..., :vocab]

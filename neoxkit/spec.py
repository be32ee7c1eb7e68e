"""Logical tensors and the boxes they are cut into: pure arithmetic, no torch.

A *box* is a half-open (start, stop) for each dimension. A *run* is a half-open span of a box's
elements in row-major order. Example: of a [4, 6] tensor at tensor-parallel size 2, split on
dimension 0, rank 1 holds the box ((2, 4), (0, 6)); its run (3, 9) is the second half of row 2 and
the first half of row 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import product
from math import prod

from neoxkit.errors import ConfigError

Box = tuple[tuple[int, int], ...]
Run = tuple[int, int]


class Axis(str, Enum):
    """An axis of the mesh of processes. (A tensor has dimensions, never axes.)"""

    PP = "pp"
    DP = "dp"
    CP = "cp"
    TP = "tp"
    EP = "ep"


Coord = Mapping[Axis, tuple[int, int]]
"""A place on the mesh: for each axis the index there and the axis's size. Absent axes have size 1."""


class Role(str, Enum):
    """What a tensor is for. Initialisation, weight decay and learning rate are chosen by it."""

    MATRIX = "matrix"
    OUTPUT = "output"  # the matrix that writes to the residual stream: attn.o and mlp.down
    EMBED = "embed"
    HEAD = "head"
    NORM = "norm"
    BIAS = "bias"


@dataclass(frozen=True, slots=True)
class Split:
    """One dimension divided over one mesh axis.

    A cut never falls inside a `unit` (a head is head_dim rows). A `ragged` dimension may leave the
    last rank less than the others, or nothing: the vocabulary.
    """

    dim: int
    axis: Axis
    unit: int = 1
    ragged: bool = False


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A logical tensor: its whole, unpadded shape, and how it may be divided."""

    name: str
    shape: tuple[int, ...]
    splits: tuple[Split, ...] = ()
    role: Role = Role.MATRIX


@dataclass(frozen=True, slots=True)
class Piece:
    """Where part of a logical tensor lies: entry `key` of `file` holds `run` of `box`."""

    box: Box
    file: str
    key: str
    run: Run | None = None


def whole(shape: Sequence[int]) -> Box:
    """The box that covers a tensor of this shape."""
    return tuple((0, length) for length in shape)


def volume(box: Box) -> int:
    """Elements in a box; 1 for the box of a 0-dimensional tensor."""
    return prod(stop - start for start, stop in box)


def extent(box: Box) -> tuple[int, ...]:
    """The shape of a box."""
    return tuple(stop - start for start, stop in box)


def overlap(a: Box, b: Box) -> Box | None:
    """The elements in both boxes, or None. Two 0-dimensional boxes overlap."""
    common = tuple((max(i, k), min(j, m)) for (i, j), (k, m) in zip(a, b, strict=True))
    return common if all(start < stop for start, stop in common) else None


def within(inner: Box, outer: Box) -> bool:
    """Whether one box lies in another."""
    return all(k <= i and j <= m for (i, j), (k, m) in zip(inner, outer, strict=True))


def relative(inner: Box, outer: Box) -> Box:
    """`inner` in coordinates that start at the corner of `outer`."""
    return tuple((i - k, j - k) for (i, j), (k, _) in zip(inner, outer, strict=True))


def span(length: int, split: Split, index: int, size: int, name: str = "tensor") -> tuple[int, int]:
    """The (start, stop) of a dimension of `length` that rank `index` of `size` holds.

    With more ranks than units, neighbours hold the same unit: 2 key/value heads over 4 ranks are
    held as 0, 0, 1, 1. A ragged dimension gives each rank ceil(units / size): 10 rows over 4 ranks
    are 3, 3, 3, 1.

    Raises ConfigError when the units of a dimension that is not ragged do not divide evenly.
    """
    units = length // split.unit
    if split.ragged:
        share = -(-units // size)
        first, last = min(index * share, units), min((index + 1) * share, units)
    elif units % size == 0:
        share = units // size
        first, last = index * share, (index + 1) * share
    elif size % units == 0:
        first = index * units // size
        last = first + 1
    else:
        what = f"{units} units of {split.unit} rows" if split.unit > 1 else f"{units} rows"
        raise ConfigError(
            f"{name}: dimension {split.dim} has {what}, which do not divide over {split.axis.value} {size}",
            f"choose a {split.axis.value} that divides {units}",
        )
    return first * split.unit, last * split.unit


def box(spec: TensorSpec, at: Coord) -> Box:
    """The part of a logical tensor that belongs at a place on the mesh. Raises as `span` does."""
    spans = list(whole(spec.shape))
    for split in spec.splits:
        index, size = at.get(split.axis, (0, 1))
        if size > 1:
            spans[split.dim] = span(spec.shape[split.dim], split, index, size, spec.name)
    return tuple(spans)


def boxes(spec: TensorSpec, sizes: Mapping[Axis, int]) -> dict[Box, list[dict[Axis, int]]]:
    """Each distinct box of a tensor on a mesh of these sizes, with the places that hold it.

    A place names an index on each axis that splits the tensor. Places which share a box hold
    replicas of it (more ranks than key/value heads). Empty boxes are left out.
    """
    axes = [s.axis for s in spec.splits]
    held: dict[Box, list[dict[Axis, int]]] = {}
    for indices in product(*(range(sizes.get(axis, 1)) for axis in axes)):
        place = dict(zip(axes, indices, strict=True))
        here = box(spec, {axis: (place[axis], sizes.get(axis, 1)) for axis in axes})
        if volume(here) or not volume(whole(spec.shape)):
            held.setdefault(here, []).append(place)
    return held


def rows(box: Box, most: int) -> Iterator[Box]:
    """Cut a box along dimension 0 into boxes of at most `most` elements, or one row each; an empty one is not cut."""
    if not box or not volume(box):
        yield box
        return
    (start, stop), rest = box[0], box[1:]
    step = max(1, most // max(1, volume(rest)))
    for first in range(start, stop, step):
        yield ((first, min(first + step, stop)), *rest)


def blocks(box: Box, most: int) -> Iterator[Box]:
    """Cut a box into row-major boxes of at most `most` elements (or one), each contiguous in it."""
    if not box or volume(box[1:]) <= most:
        yield from rows(box, most)
        return
    start, stop = box[0]
    for index in range(start, stop):
        for rest in blocks(box[1:], most):
            yield ((index, index + 1), *rest)


def run_boxes(box: Box, run: Run) -> list[Box]:
    """The boxes that a run of a box's elements consists of, in row-major order.

    Example: the run (3, 9) of a [2, 6] box is ((0, 1), (3, 6)) and ((1, 2), (0, 3)).
    """
    first, last = run
    if first >= last:
        return []
    if not box:
        return [box]
    (start, _), rest = box[0], box[1:]
    row = volume(rest)
    head, tail = -(-first // row), last // row  # the whole rows inside the run are head:tail
    if head > tail:  # the run lies inside one row
        at = start + tail
        return [((at, at + 1), *b) for b in run_boxes(rest, (first - tail * row, last - tail * row))]
    found: list[Box] = []
    if first < head * row:
        at = start + head - 1
        found += [((at, at + 1), *b) for b in run_boxes(rest, (first - (head - 1) * row, row))]
    if head < tail:
        found.append(((start + head, start + tail), *rest))
    if tail * row < last:
        at = start + tail
        found += [((at, at + 1), *b) for b in run_boxes(rest, (0, last - tail * row))]
    return found


def gaps(shape: Sequence[int], parts: Iterable[Box], most: int | None = None) -> list[Box] | None:
    """The boxes of a tensor that no part covers; None when there may be more than `most` of them.

    Their number can grow with the power of the dimensions: 200 boxes in 4 dimensions make millions.
    """
    missing = [whole(shape)] if volume(whole(shape)) else []
    for part in parts:
        missing = [rest for hole in missing for rest in _subtract(hole, part)]
        if most is not None and len(missing) > most:
            return None
    return missing


def collisions(parts: Sequence[Box]) -> Iterator[Box]:
    """The boxes that two parts both cover, as they are found."""
    ordered = sorted(part for part in parts if volume(part))
    active: list[Box] = []
    for part in ordered:
        if part:
            active = [other for other in active if other[0][1] > part[0][0]]
        yield from (common for other in active if (common := overlap(other, part)) is not None)
        active.append(part)


def _subtract(hole: Box, part: Box) -> list[Box]:
    """What is left of `hole` without `part`, as disjoint boxes."""
    common = overlap(hole, part)
    if common is None:
        return [hole]
    left: list[Box] = []
    for dim, ((start, stop), (first, last)) in enumerate(zip(hole, common, strict=True)):
        before, after = common[:dim], hole[dim + 1 :]
        if start < first:
            left.append((*before, (start, first), *after))
        if last < stop:
            left.append((*before, (last, stop), *after))
    return left

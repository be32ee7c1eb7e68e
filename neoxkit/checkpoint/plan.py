"""How a model is cut into files: which piece of which tensor goes where. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple

from neoxkit.checkpoint.format import ITEM_BYTES, MOST_FILE, bare
from neoxkit.errors import ConfigError
from neoxkit.mesh import Mesh, counts, layer_of
from neoxkit.spec import Axis, Box, Run, TensorSpec, boxes, volume, whole

Layout = Literal["sharded", "whole"]


@dataclass(frozen=True, slots=True)
class Part:
    """A piece that will be written: `run` of `box` of the tensor `name`, into `file`."""

    name: str  # with its component: "model/layers.0.attn.q.weight"
    spec: TensorSpec
    dtype: str  # "BF16"
    box: Box
    file: str  # "model/pp00-tp00.safetensors"
    run: Run | None = None

    @property
    def elements(self) -> int:
        """Elements in the piece."""
        return volume(self.box) if self.run is None else self.run[1] - self.run[0]

    @property
    def bytes(self) -> int:
        """Bytes of the piece."""
        return self.elements * ITEM_BYTES[self.dtype]


def cut(
    specs: Mapping[str, TensorSpec], dtypes: Mapping[str, str], mesh: Mesh, layout: Layout | None = None
) -> list[Part]:
    """The pieces of a model for a mesh's tensor, expert and pipeline parallelism.

    `specs` and `dtypes` go by name with component. What several ranks hold alike is written by the
    one that has the least to write so far, taking tensors in order: each rank finds the same plan
    alone. The layout `whole` has whole tensors, in files of at most 5 GB; `sharded` has a file for each
    place of the mesh. It is `whole` on one process, unless told otherwise.

    Raises ConfigError when a tensor does not divide, there are more stages than layers, or whole
    tensors are to be cut.
    """
    one = mesh.tp == mesh.pp == mesh.ep == 1
    if layout == "whole" and not one:
        raise ConfigError(
            f"the layout of whole tensors has no tp {mesh.tp}, pp {mesh.pp}, ep {mesh.ep}", "give either, not both"
        )
    if one and layout != "sharded":
        return list(_whole(specs, dtypes))
    layers = [layer for name in specs if isinstance(layer := layer_of(bare(name)), int)]
    depth = max(layers, default=-1) + 1
    sizes = {Axis.TP: mesh.tp, Axis.EP: mesh.ep}
    load: dict[tuple[str, int, int, int], int] = {}
    parts = []
    for name, spec in specs.items():
        component, stage = name.partition("/")[0], mesh.stage_of(layer_of(bare(name)), depth)
        for box, places in boxes(spec, sizes).items():
            holders = sorted({holder for place in places for holder in _holders(place, sizes)})
            tp, ep = min(holders, key=lambda at: load.get((component, stage, *at), 0))
            size = volume(box) * ITEM_BYTES[dtypes[name]]
            load[component, stage, tp, ep] = load.get((component, stage, tp, ep), 0) + size
            parts.append(Part(name, spec, dtypes[name], box, _file(component, stage, tp, ep, mesh)))
    return parts


def _holders(place: Mapping[Axis, int], sizes: Mapping[Axis, int]) -> Iterable[tuple[int, int]]:
    """The (tp, ep) places that agree with `place`; an axis that it does not name is free."""
    free = [[place[axis]] if axis in place else range(size) for axis, size in sizes.items()]
    yield from ((tp, ep) for tp, ep in product(*free))


def _file(component: str, stage: int, tp: int, ep: int, mesh: Mesh) -> str:
    if component == "optimizer":
        return f"optimizer/r{(stage * mesh.ep + ep) * mesh.tp + tp:05d}.safetensors"
    expert = f"-ep{ep:02d}" if mesh.ep > 1 else ""
    return f"{component}/pp{stage:02d}-tp{tp:02d}{expert}.safetensors"


def _whole(specs: Mapping[str, TensorSpec], dtypes: Mapping[str, str]) -> Iterable[Part]:
    """Whole tensors, each component in files of at most MOST_FILE bytes (but for a larger tensor)."""
    filled: dict[str, tuple[int, int]] = {}
    for name, spec in specs.items():
        component = name.partition("/")[0]
        number, used = filled.get(component, (0, 0))
        size = volume(whole(spec.shape)) * ITEM_BYTES[dtypes[name]]
        if used and used + size > MOST_FILE:
            number, used = number + 1, 0
        filled[component] = number, used + size
        stem = f"r{number:05d}" if component == "optimizer" else f"whole-{number:05d}"
        yield Part(name, spec, dtypes[name], whole(spec.shape), f"{component}/{stem}.safetensors")


class Holding(NamedTuple):
    """What a process holds of a tensor: a box of it, or a run of the box's elements."""

    name: str  # with its component
    dtype: str
    box: Box
    run: Run | None = None


def deal(held: Sequence[Sequence[Holding]], specs: Mapping[str, TensorSpec], mesh: Mesh) -> list[list[Part]]:
    """For each rank of a mesh, what it writes of what it holds. `specs` go by name with component.

    What several ranks hold alike is written by the first along tensor parallelism, and along data
    parallelism by the one that has the least to write so far. Nothing is sent from rank to rank.
    """
    parts: list[list[Part]] = [[] for _ in held]
    load = [0] * len(held)
    holders: dict[Holding, list[int]] = {}
    for rank, holdings in enumerate(held):
        at = mesh.coord(rank)
        for each in holdings:
            size = volume(each.box) if each.run is None else each.run[1] - each.run[0]
            if size and counts(specs[each.name], at, [Axis.TP]):
                holders.setdefault(each, []).append(rank)
    for each, ranks in holders.items():
        rank = min(ranks, key=load.__getitem__)
        file = _rank_file(each.name.partition("/")[0], rank, mesh)
        part = Part(each.name, specs[each.name], each.dtype, each.box, file, each.run)
        parts[rank].append(part)
        load[rank] += part.bytes
    return parts


def _rank_file(component: str, rank: int, mesh: Mesh) -> str:
    """The file of a rank: of its own, since no two write to one."""
    if component == "optimizer":
        return f"optimizer/r{rank:05d}.safetensors"
    at = mesh.coord(rank)
    rest = "".join(f"-{axis.value}{at[axis][0]:02d}" for axis in (Axis.DP, Axis.CP) if mesh.size(axis) > 1)
    return f"{component}/pp{at[Axis.PP][0]:02d}-tp{at[Axis.TP][0]:02d}{rest}.safetensors"

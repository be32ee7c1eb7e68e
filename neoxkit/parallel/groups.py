"""The process groups of a mesh: who talks to whom. The only place that makes one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from neoxkit.errors import ConfigError
from neoxkit.mesh import ONE, Mesh
from neoxkit.spec import Axis

AXES = (Axis.TP, Axis.CP, Axis.DP, Axis.PP)


@dataclass(frozen=True, slots=True)
class Groups:
    """The place of this process on a mesh, and the groups through which it talks to others.

    `along` has the group of each axis longer than 1. `sharing` has, by number of units, the tensor
    parallel neighbours that hold the same unit: key/value heads, where they are fewer than the ranks.
    `alike` are those that have the same part of the model, and learn from other tokens: data and context
    parallel together. Without groups it only tells a place: enough to say what a rank holds, not to run there.
    """

    mesh: Mesh = ONE
    along: Mapping[Axis, ProcessGroup] = field(default_factory=dict)
    sharing: Mapping[int, ProcessGroup] = field(default_factory=dict)
    alike: ProcessGroup | None = None


LOCAL = Groups()
"""One process, which talks to nobody and needs no torch.distributed."""


def form(
    mesh: Mesh, device: torch.device | str = "cpu", units: Collection[int] = (), timeout: timedelta | None = None
) -> Groups:
    """The groups of this process; every process of the mesh must call it, with the same arguments.

    NCCL on GPUs, gloo elsewhere. `units` are the numbers of units below tp whose holders must sum
    gradients. The rank is torch.distributed's own, whatever `mesh.rank` says.

    Raises ConfigError when torch.distributed was not started, or with another number of processes.
    """
    if mesh.world == 1:
        return LOCAL
    running = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if running != mesh.world:
        raise ConfigError(
            f"the mesh has {mesh.world} processes, and {running} {'is' if running == 1 else 'are'} running",
            f"start {mesh.world} processes, or choose another mesh",
        )
    mesh = replace(mesh, rank=dist.get_rank())
    backend = "nccl" if torch.device(device).type == "cuda" else "gloo"

    def mine(groups: Collection[tuple[int, ...]]) -> ProcessGroup:
        """Make these groups, in the order that every process makes them in; the one that this process is in."""
        made = {ranks: dist.new_group(list(ranks), timeout=timeout, backend=backend) for ranks in groups}
        found = next(group for ranks, group in made.items() if mesh.rank in ranks)
        assert isinstance(found, ProcessGroup)
        return found

    along = {axis: mine(mesh.along([axis])) for axis in AXES if mesh.size(axis) > 1}
    # A group of its own beside that of cp: on a GPU, gradients then do not stand in the way of attention.
    alike = along.get(Axis.DP) if mesh.cp == 1 else mine(mesh.along([Axis.DP, Axis.CP]))
    sharing = {}
    for count in sorted(count for count in set(units) if count < mesh.tp):
        each = mesh.tp // count
        runs = [ranks[i : i + each] for ranks in mesh.along([Axis.TP]) for i in range(0, mesh.tp, each)]
        sharing[count] = mine(runs)
    return Groups(mesh, along, sharing, alike)


def group_of(mesh: Mesh, axes: Collection[Axis], device: torch.device | str = "cpu") -> ProcessGroup:
    """The group of those that differ from this process on these axes only; of itself alone, if they are of size 1.

    For libraries that want what `Groups` leaves out. Every process must call it.
    """
    backend = "nccl" if torch.device(device).type == "cuda" else "gloo"
    made = {ranks: dist.new_group(list(ranks), backend=backend) for ranks in mesh.along(axes)}
    found = next(group for ranks, group in made.items() if dist.get_rank() in ranks)
    assert isinstance(found, ProcessGroup)
    return found

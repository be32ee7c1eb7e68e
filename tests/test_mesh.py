"""The place of each rank in a mesh, against numpy's arithmetic of indices."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from neoxkit.errors import ConfigError
from neoxkit.mesh import Mesh, counts, holders
from neoxkit.spec import Axis, Split, TensorSpec, box, gaps, volume


@pytest.mark.parametrize("sizes", list(product((1, 2), (1, 3), (1, 2), (1, 4))), ids=str)
def test_ranks_count_tensor_parallel_fastest_and_pipeline_slowest(sizes: tuple[int, int, int, int]) -> None:
    pp, dp, cp, tp = sizes
    mesh = Mesh(pp=pp, dp=dp, cp=cp, tp=tp)
    assert mesh.world == pp * dp * cp * tp
    for rank in range(mesh.world):
        place = mesh.coord(rank)
        assert [place[axis][0] for axis in (Axis.PP, Axis.DP, Axis.CP, Axis.TP)] == list(np.unravel_index(rank, sizes))
        assert all(place[axis][1] == mesh.size(axis) for axis in Axis)


def test_experts_are_dealt_over_data_and_context() -> None:
    mesh = Mesh(dp=3, cp=2, tp=2, ep=2)
    places = [mesh.coord(rank)[Axis.EP] for rank in range(mesh.world)]
    assert places == [(index, 2) for index in (0, 0, 1, 1) * 3]
    assert {mesh.coord(rank)[Axis.EP][0] for rank in range(mesh.world) if mesh.coord(rank)[Axis.DP][0] == 0} == {0, 1}


def test_a_process_knows_its_own_place() -> None:
    assert Mesh(pp=2, dp=2, cp=1, tp=3, rank=10).coord() == {
        Axis.PP: (1, 2),
        Axis.DP: (1, 2),
        Axis.CP: (0, 1),
        Axis.TP: (1, 3),
        Axis.EP: (0, 1),
    }


@pytest.mark.parametrize("sizes", [{"tp": 0}, {"pp": -1}, {"dp": 3, "cp": 1, "ep": 2}], ids=str)
def test_sizes_that_are_no_mesh(sizes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="mesh: "):
        Mesh(**sizes)


@pytest.mark.parametrize("sizes", list(product((1, 2), (1, 3), (1, 2), (1, 4))), ids=str)
def test_groups_along_axes(sizes: tuple[int, int, int, int]) -> None:
    """As numpy groups ranks: by fixing the indices of all other axes."""
    mesh = Mesh(**dict(zip(("pp", "dp", "cp", "tp"), sizes, strict=True)))
    ranks, order = np.arange(mesh.world).reshape(sizes), (Axis.PP, Axis.DP, Axis.CP, Axis.TP)
    for axes in ([Axis.TP], [Axis.DP, Axis.CP], [Axis.PP, Axis.TP], list(order), []):
        chosen = [order.index(axis) for axis in axes]
        last = np.moveaxis(ranks, chosen, range(4 - len(chosen), 4)) if chosen else ranks
        wanted = last.reshape(-1, int(np.prod([sizes[i] for i in chosen], dtype=int)))
        assert sorted(mesh.along(axes)) == sorted(tuple(sorted(row)) for row in wanted.tolist())
        assert mesh.along(axes) == sorted(mesh.along(axes))


SPECS = {
    "whole": TensorSpec("norm.weight", (10,)),
    "rows": TensorSpec("up.weight", (24, 3), (Split(0, Axis.TP),)),
    "columns": TensorSpec("down.weight", (3, 24), (Split(1, Axis.TP, 2),)),
    "two heads": TensorSpec("k.weight", (10, 3), (Split(0, Axis.TP, 5),)),
    "one head": TensorSpec("v.weight", (5, 3), (Split(0, Axis.TP, 5),)),
    "vocabulary": TensorSpec("embed.weight", (9, 3), (Split(0, Axis.TP, ragged=True),)),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("tp", [1, 2, 4, 6])
def test_who_holds_the_same_and_who_counts_it(spec: TensorSpec, tp: int) -> None:
    """Ranks that `holders` puts together have equal boxes, others have not; those that count cover all, once."""
    mesh = Mesh(tp=tp)
    at = [mesh.coord(rank) for rank in range(tp)]
    held = [box(spec, place) for place in at]
    for rank, place in enumerate(at):
        alike = [other for other in range(tp) if held[other] == held[rank]]
        assert list(holders(spec, place, Axis.TP)) == alike or not volume(held[rank])
    counted = [held[rank] for rank, place in enumerate(at) if counts(spec, place, [Axis.TP])]
    assert gaps(spec.shape, counted) == []
    assert sum(volume(each) for each in counted) == volume(tuple((0, length) for length in spec.shape))


def test_over_other_axes_the_first_rank_counts() -> None:
    mesh = Mesh(dp=2, tp=2)
    counting = [rank for rank in range(4) if counts(SPECS["rows"], mesh.coord(rank), [Axis.DP, Axis.TP, Axis.PP])]
    assert counting == [0, 1]

"""The place of each rank in a mesh, against numpy's arithmetic of indices."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from neoxkit.errors import ConfigError
from neoxkit.mesh import Mesh
from neoxkit.spec import Axis


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

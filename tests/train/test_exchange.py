"""What processes tell each other before a save: whole, and in few bytes."""

from __future__ import annotations

import pickle

import tiny_runs as runs

from neoxkit.checkpoint.plan import Holding
from neoxkit.mesh import Mesh
from neoxkit.nn.decoder import specs
from neoxkit.spec import Axis, TensorSpec, box, volume
from neoxkit.train.saving.exchange import pack, unpack

MESH = Mesh(tp=2, dp=8)


def holdings(rank: int) -> tuple[list[Holding], dict[str, TensorSpec]]:
    """Weights that data-parallel ranks have alike, and moments that they divide."""
    at, found, known = MESH.coord(rank), list[Holding](), dict[str, TensorSpec]()
    dp, ranks = at[Axis.DP]
    for name, spec in specs(runs.config("llama").model).items():
        place = box(spec, at)
        part = -(-volume(place) // ranks)
        run = (min(dp * part, volume(place)), min((dp + 1) * part, volume(place)))
        found += [Holding(f"model/{name}", "BF16", place), Holding(f"optimizer/exp_avg/{name}", "F32", place, run)]
        known |= {f"model/{name}": spec, f"optimizer/exp_avg/{name}": spec}
    return found, known


def test_what_is_packed_is_unpacked_on_every_process() -> None:
    told = [holdings(rank) for rank in range(MESH.world)]
    packed = [pickle.loads(pickle.dumps(pack(*each))) for each in told]
    found, known = unpack(packed)
    assert [sorted(each, key=repr) for each in found] == [sorted(each, key=repr) for each, _ in told]
    assert known == told[0][1]
    assert 4 * len(pickle.dumps(packed)) < len(pickle.dumps(told))


def test_equal_parts_are_kept_once() -> None:
    """A thousand processes have millions of holdings between them."""
    found, _ = unpack([pack(*holdings(rank)) for rank in range(MESH.world)])
    alike = [each for each in found if each[0] is found[0][0]]
    assert len(alike) == MESH.size(Axis.DP)
    assert all(mine.box is theirs.box for each in alike for mine, theirs in zip(each, found[0], strict=True))

"""What one process knows of a place on a mesh without anybody to talk to, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from neoxkit.config.model import ModelConfig
from neoxkit.errors import ConfigError
from neoxkit.mesh import ONE, Mesh
from neoxkit.nn.decoder import Decoder, pieces, specs
from neoxkit.parallel.groups import LOCAL, Groups, form
from neoxkit.spec import Axis, box, gaps

CONFIG = ModelConfig.model_validate(
    {
        "family": "llama",
        "depth": 2,
        "width": 24,
        "vocab": 9,
        "context": 16,
        "mixer": {"heads": 4, "kv_heads": 2, "qk_norm": True, "qk_norm_span": "all"},
    }
)


def test_one_process_needs_no_groups() -> None:
    assert form(ONE) is LOCAL
    assert not LOCAL.along
    assert not torch.distributed.is_initialized()


def test_a_mesh_of_more_processes_than_run_is_refused() -> None:
    with pytest.raises(ConfigError, match="the mesh has 4 processes, and 1 is running"):
        form(Mesh(tp=2, dp=2))


@pytest.mark.parametrize("tp", [2, 4])
def test_every_place_can_be_described_without_memory(tp: int) -> None:
    """Its boxes are those of the specs, and together they are every tensor."""
    known, held = specs(CONFIG), {}
    for rank in range(tp):
        mesh = Mesh(tp=tp, rank=rank)
        model = Decoder(CONFIG, "meta", groups=Groups(mesh))
        for spec, here, value in pieces(model):
            assert spec == known[spec.name], "a spec is whole wherever it is declared"
            assert here == box(spec, mesh.coord())
            assert value.shape == tuple(stop - start for start, stop in here)
            held.setdefault(spec.name, []).append(here)
    assert {name: gaps(spec.shape, held[name]) for name, spec in known.items()} == {name: [] for name in known}


def test_a_place_without_groups_is_not_run() -> None:
    model = Decoder(CONFIG, groups=Groups(Mesh(tp=2)))
    with pytest.raises(AssertionError, match="it can be described, not run"):
        model(torch.zeros(1, 4, dtype=torch.int64))


def test_heads_that_the_mesh_does_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"layers\.0\.attn\.q\.weight: .* 4 units of 6 rows.* over tp 3"):
        Decoder(CONFIG, "meta", groups=Groups(Mesh(tp=3)))


@pytest.mark.parametrize(("mesh", "said"), [(Mesh(cp=3), "4 heads over cp 3"), (Mesh(tp=2, cp=4), "2 heads over cp 4")])
def test_heads_that_context_parallelism_does_not_divide_are_refused(mesh: Mesh, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Decoder(CONFIG, "meta", groups=Groups(mesh))


def test_a_share_of_a_sample_is_neither_run_alone_nor_decoded() -> None:
    model = Decoder(CONFIG, groups=Groups(Mesh(cp=2)))
    assert model.division.positions(4, torch.device("cpu")).tolist() == [[0, 1, 2, 3]]
    with pytest.raises(AssertionError, match="it can be described, not run"):
        model(torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(AssertionError, match="all tokens of a text"):
        model.new_state(1, 8)


def test_padding_is_zero_and_in_no_piece() -> None:
    """9 rows over 4 ranks are 3, 3, 3 and none; the last has room for 3."""
    model = Decoder(CONFIG, groups=Groups(Mesh(tp=4, rank=3)))
    assert model.embed.weight.shape == (3, 24)
    assert not model.embed.weight.any()
    here, value = next((here, value) for spec, here, value in pieces(model) if spec.name == "embed.weight")
    assert (here, value.shape) == (((9, 9), (0, 24)), (0, 24))
    assert Axis.TP in model.division.inside

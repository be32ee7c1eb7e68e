"""Initial values: gpt-neox's own deviations, torch's own initialisers, and the same numbers however they are cut."""

from __future__ import annotations

import hashlib
from typing import Any, get_args

import pytest
import torch

from neoxkit.config.model import ModelConfig
from neoxkit.config.optimizer import Drawn, Init
from neoxkit.nn import init
from neoxkit.nn.decoder import Decoder, specs
from neoxkit.nn.init import Method, drawing, initial, initialise, method_of
from neoxkit.spec import Role, TensorSpec

NAMES = list(get_args(Drawn))

GOLDEN = {
    (6, 512): (0.02795085, 0.01473139, 0.00577350),
    (24, 1024): (0.01976424, 0.00260417, 0.00288675),
    (24, 2048): (0.01397542, 0.00184142, 0.00288675),
    (32, 2560): (0.0125, 0.00123526, 0.0025),
    (44, 6144): (0.00806872, 0.00057990, 0.00213201),
}
"""small, wang and scaled, by depth and width, of Pythia 70M, 410M, 1.4B and 2.8B and GPT-NeoX-20B in gpt-neox."""


def config(depth: int = 2, width: int = 32) -> ModelConfig:
    tree = {"family": "gpt_neox", "depth": depth, "width": width, "vocab": 50, "context": 32, "mixer": {"heads": 4}}
    return ModelConfig.model_validate(tree)


@pytest.mark.parametrize(("depth", "width"), GOLDEN)
def test_deviations_are_gpt_neoxs(depth: int, width: int) -> None:
    found = [method_of(name, (8, 8), config(depth, width), 0.02) for name in ("small", "wang", "scaled")]
    assert [kind for kind, _ in found] == ["normal"] * 3
    assert [size for _, size in found] == pytest.approx(GOLDEN[depth, width], abs=6e-9)
    residual = method_of("single_residual", (8, 8), config(depth, width), 0.02)
    assert residual.size == pytest.approx(0.02 / depth**0.5)
    assert method_of("scaled_orthogonal", (8, 8), config(depth, width), 0.02).size == pytest.approx((2 / depth) ** 0.5)


@pytest.mark.parametrize("name", NAMES)
def test_values_are_torchs(name: str) -> None:
    """The same generator through torch's own initialiser gives the same numbers; for small tensors, in one go."""
    spec = TensorSpec("layers.0.mlp.up.weight", (96, 40))
    drawn = initial(spec, 7, drawing(config(), Init(weights=name)))
    seed = int.from_bytes(hashlib.sha256(b"7/layers.0.mlp.up.weight").digest()[:8], "little", signed=True)
    generator, wanted = torch.Generator().manual_seed(seed), torch.empty(96, 40)
    if name == "xavier_uniform":
        torch.nn.init.xavier_uniform_(wanted, generator=generator)
    elif name == "xavier_normal":
        torch.nn.init.xavier_normal_(wanted, generator=generator)
    elif name.endswith("orthogonal"):
        torch.nn.init.orthogonal_(wanted, 1.0, generator=generator)
    else:
        std = {"normal": 0.02, "scaled": 0.01, "small": (2 / 160) ** 0.5, "wang": 2 / (2 * 32**0.5)}
        torch.nn.init.normal_(wanted, 0.0, std.get(name, 0.02 / 2**0.5), generator=generator)
    torch.testing.assert_close(drawn, wanted, rtol=1e-6, atol=1e-9)


def test_orthogonal_is_orthogonal() -> None:
    drawn = initial(TensorSpec("a.weight", (24, 60)), 1, lambda spec: Method("orthogonal", 1.5))
    torch.testing.assert_close(drawn @ drawn.T, 2.25 * torch.eye(24), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_box_is_part_of_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever blocks it lies in: rows, columns, corners, nothing."""
    monkeypatch.setattr(init, "BLOCK", 100)  # 14 rows of 7
    spec, draw = TensorSpec("embed.weight", (50, 7), role=Role.EMBED), drawing(config(), Init(weights=name))
    whole = initial(spec, 3, draw)
    assert len({tuple(row.tolist()) for row in whole}) == 50, "blocks repeat"
    boxes: list[Any] = [
        ((0, 50), (0, 7)),
        ((13, 29), (0, 7)),
        ((0, 50), (2, 5)),
        ((14, 15), (6, 7)),
        ((50, 50), (0, 7)),
    ]
    for box in boxes:
        part = whole[tuple(slice(*span) for span in box)]
        assert torch.equal(initial(spec, 3, draw, box), part), box


def test_small_tensors_are_as_they_always_were() -> None:
    """The first numbers of a seed, which runs of earlier versions began with."""
    drawn = initial(TensorSpec("head.weight", (4, 4), role=Role.HEAD), 1234, drawing(config(), Init()))
    wanted = [
        0.030481897,
        0.011990131,
        -0.00080459978,
        -0.017850284,
        0.0063195708,
        0.03955546,
        0.021434138,
        0.013054197,
    ]
    assert drawn.flatten()[:8].tolist() == pytest.approx(wanted, rel=1e-6)


def test_each_role_has_its_own() -> None:
    tree = config(depth=3, width=64)
    model = Decoder(tree)
    initialise(model, tree, Init(weights="small", output="wang"), seed=0)
    known = specs(tree)
    for parameter in model.parameters():
        for spec, _, rows in parameter.held:  # type: ignore[attr-defined]
            value, role = parameter.detach()[rows], known[spec.name].role
            if role in (Role.NORM, Role.BIAS):
                assert value.eq(1.0 if role is Role.NORM else 0.0).all(), spec.name
            else:
                wanted = 2 / (3 * 8) if role is Role.OUTPUT else (2 / 320) ** 0.5
                assert value.std().item() == pytest.approx(wanted, rel=0.05), spec.name

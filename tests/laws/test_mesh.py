"""Law 6: logits and every gradient box equal one process's, however a model is divided over ranks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import lcm
from pathlib import Path
from typing import Any

import divided
import pytest
import torch
from divided import Case, Finding
from tiny import TINY, Tiny

from neoxkit.config.model import ModelConfig
from neoxkit.families import by_name
from neoxkit.families.spelling import read_config
from neoxkit.mesh import Mesh
from neoxkit.parallel.groups import LOCAL

BASE = {"family": "llama", "depth": 2, "width": 24, "vocab": 33, "context": 16, "mlp": {"hidden": 40}}
RMS = {"kind": "rms"}
MADE: dict[str, dict[str, Any]] = {
    # 9 rows over 4 ranks are 3, 3, 3 and none
    "vocab": {"vocab": 9, "mixer": {"heads": 4}},
    "vocab-tied": {"vocab": 9, "tied": True, "mixer": {"heads": 4, "kv_heads": 1, "window": 3}},
    "vocab-even": {"vocab": 32, "mixer": {"heads": 4, "kv_heads": 2}, "residual": "shared"},
    "wide-norm": {"mixer": {"heads": 8, "head_dim": 4, "kv_heads": 2, "qk_norm": True, "qk_norm_span": "all"}}
    | {"norm": RMS, "residual": "post", "mlp": {"hidden": 40, "gated": True}, "position": {"kind": "learned"}},
    "head-norm": {"mixer": {"heads": 12, "head_dim": 4, "kv_heads": 1, "qk_norm": True}, "embed_norm": True}
    | {"position": {"kind": "alibi"}, "residual": "parallel", "tied": True},
    "none": {"position": {"kind": "none"}, "mixer": {"heads": 4, "kv_heads": 4, "bias": False, "out_bias": True}}
    | {"norm": {"kind": "layer", "bias": False}, "mlp": {"hidden": 8, "bias": False, "activation": "relu"}},
}


def divisible(tiny: Tiny) -> ModelConfig:
    """The configuration of a tiny model with heads that 4 ranks can divide, fewer layers, and a prime vocabulary."""
    config = read_config(by_name(tiny.family), tiny.config().to_dict()).model_dump()
    mixer = config["mixer"]
    heads, kv_heads = lcm(mixer["heads"], 4), mixer["kv_heads"]
    kv_heads = heads if kv_heads == mixer["heads"] else 4 if 4 % kv_heads else kv_heads
    return ModelConfig.model_validate({**config, "depth": 2, "mixer": {**mixer, "heads": heads, "kv_heads": kv_heads}})


def structure(tiny: Tiny) -> str:
    """What a mesh sees of a model: not how its positions turn, nor the numbers of its norms."""
    config = divisible(tiny).model_dump(
        exclude={"norm": {"eps"}, "tokens": True, "mlp": {"activation"}, "position": True}
    )
    return str({**config, "position": divisible(tiny).position.kind})


TINIES = list({structure(tiny): tiny for tiny in TINY}.values())
"""Every family, and every variant that is divided otherwise than another of its family."""

NAMES = [f"made-{name}" for name in MADE] + ["segments", "segments-learned"] + [str(tiny) for tiny in TINIES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every case, what one process says of it, and checkpoints of some."""
    here = tmp_path_factory.mktemp("divided")
    configs = {f"made-{name}": ModelConfig.model_validate({**BASE, **options}) for name, options in MADE.items()}
    configs |= {"segments": configs["made-head-norm"], "segments-learned": configs["made-wide-norm"]}
    configs |= {str(tiny): divisible(tiny) for tiny in TINIES}
    cases = [
        divided.prepare(name, config, seed, segmented=name.startswith("segments"))
        for seed, (name, config) in enumerate(configs.items())
    ]
    for case in cases[: len(MADE)]:
        divided.save_cuts(case, here, [Mesh(), Mesh(tp=2, pp=2), Mesh(tp=4)])
    torch.save(cases, here / "cases.pt")
    return here


@pytest.fixture(scope="module")
def found(folder: Path) -> Callable[[int], list[Finding]]:
    """What is found at each size; the ranks of a size are started once."""

    @cache
    def at(tp: int) -> list[Finding]:
        if tp == 1:
            cases: list[Case] = torch.load(folder / "cases.pt", weights_only=False)
            return list(divided.everything(cases, LOCAL, folder))
        return divided.run(tp, folder)

    return at


def assert_none(found: list[Finding], case: str, *topics: str) -> None:
    wrong = [each.what for each in found if each.case == case and each.topic in topics]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stream", ["whole", "divided"])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_logits_loss_and_every_gradient(found: Callable[[int], list[Finding]], tp: int, stream: str, name: str) -> None:
    """Those of one process, with the stream whole and divided (sequence parallelism)."""
    assert_none(found(tp), name, f"{stream} stream")


@pytest.mark.parametrize(
    ("world", "mesh", "name"),
    [(w, mesh, name) for w, meshes in divided.CONTEXT.items() for mesh in meshes for name in divided.chosen(NAMES, w)],
)
def test_divided_samples(found: Callable[[int], list[Finding]], world: int, mesh: str, name: str) -> None:
    """Logits, loss and every gradient where each rank has some tokens of every sample; of some, two steps and bf16."""
    assert_none(found(world), name, mesh)


@pytest.mark.parametrize("name", [f"made-{name}" for name in MADE])
@pytest.mark.parametrize("topic", ["decoding", "initial", "loading"])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_more_of_models_that_have_everything(
    found: Callable[[int], list[Finding]], tp: int, topic: str, name: str
) -> None:
    assert_none(found(tp), name, topic)


@pytest.mark.parametrize("name", [f"made-{name}" for name in MADE])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_half_precision(found: Callable[[int], list[Finding]], tp: int, name: str) -> None:
    assert_none(found(tp), name, "bf16", "bf16, divided stream")


@pytest.mark.parametrize("name", [f"made-{name}" for name in MADE])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_two_steps_of_the_plain_engine(found: Callable[[int], list[Finding]], tp: int, name: str) -> None:
    """Clipped by the norm of all ranks: a rank that clips by its own part goes another way."""
    assert_none(found(tp), name, "training", "training, divided stream", "training by Muon")


@pytest.mark.parametrize("tp", [2, 4])
def test_groups_are_those_of_the_mesh(found: Callable[[int], list[Finding]], tp: int) -> None:
    assert_none(found(tp), "", "groups")

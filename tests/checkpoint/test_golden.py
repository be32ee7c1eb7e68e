"""A checkpoint that version 1 wrote, in tests/fixtures/golden-v1. Every later version reads it to the last bit.

Never written again: where this test fails, the reader is wrong. It has tensor parallel rows and columns
over two stages, a ragged vocabulary, ZeRO runs, a scalar, an empty tensor, and five dtypes.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from sound import damaged

from neoxkit.checkpoint import dtypes
from neoxkit.checkpoint.format import dump
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.spec import Axis, Role, Split

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden-v1"
EXPECTED = json.loads((GOLDEN / "expected.json").read_bytes())


@pytest.fixture
def checkpoint() -> Checkpoint:
    return Checkpoint.open(GOLDEN / "checkpoint")


def test_every_number(checkpoint: Checkpoint) -> None:
    assert set(checkpoint.names()) == set(EXPECTED["tensors"])
    for name, expected in EXPECTED["tensors"].items():
        value = checkpoint.read(name)
        assert (checkpoint.dtype(name), list(value.shape)) == (expected["dtype"], expected["shape"])
        assert value.dtype == dtypes.TORCH[expected["dtype"]]
        assert value.double().reshape(-1).tolist() == expected["values"]
        assert f"{checkpoint.manifest.tensors[name].crc:016x}" == expected["crc"]
        joined = torch.cat(
            [block.double().reshape(-1) for _, block in checkpoint.stream(name, most_bytes=8)] or [value]
        )
        assert joined.reshape(-1).tolist() == expected["values"]
    assert damaged(checkpoint.path) == []


def test_everything_else(checkpoint: Checkpoint) -> None:
    manifest = checkpoint.manifest
    assert checkpoint.fingerprint == EXPECTED["fingerprint"] == "2eb59ec04c5fe356"
    assert (manifest.step, manifest.samples, manifest.tokens) == (5, 40, 320)
    assert manifest.mesh == {"pp": 2, "tp": 2, "ep": 1, "dp": 2, "zero": 1}
    assert manifest.lineage == ({"event": "train", "from_step": 0, "to_step": 5},)
    assert (checkpoint.config.family, checkpoint.config.width, checkpoint.config.mixer.heads) == ("gpt_neox", 4, 2)
    assert checkpoint.run_yaml == "steps: 5\n"
    assert checkpoint.trainer_state() == {"step": 5}
    assert checkpoint.rng() == {"torch": bytes(range(16))}
    assert checkpoint.tokenizer is not None
    assert (checkpoint.tokenizer / "tokenizer.json").read_bytes() == b'{"golden": true}\n'
    embed = checkpoint.spec("model/embed.weight")
    assert (embed.splits, embed.role) == ((Split(0, Axis.TP, 1, ragged=True),), Role.EMBED)
    assert checkpoint.spec("model/layers.1.attn.o.weight").splits == (Split(1, Axis.TP, 2),)
    assert len(manifest.tensors["optimizer/exp_avg/layers.0.attn.o.weight"].pieces) == 4


def test_a_rewrite_says_the_same(checkpoint: Checkpoint) -> None:
    text = (GOLDEN / "checkpoint" / "manifest.json").read_bytes()
    assert json.loads(dump(checkpoint.manifest)) == json.loads(text)

"""Operations counted from a configuration, against torch's own count and gpt-neox's formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_runs as runs
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from neoxkit.config.load import load_tree
from neoxkit.config.model import ModelConfig
from neoxkit.config.parallel import Recompute
from neoxkit.nn.decoder import Decoder
from neoxkit.nn.recompute import recompute
from neoxkit.train.flops import DEVICES, count, device_of, pairs, peak_of, recomputed

SHAPES: dict[str, dict[str, Any]] = {
    "gpt_neox": {},
    "llama": {},
    "gated and biased": {"mlp": {"hidden": 40, "gated": True}, "mixer": {"heads": 2, "kv_heads": 1}},
    "post norm": {"residual": "post"},
    "wide heads": {"mixer": {"heads": 2, "head_dim": 16}, "residual": "shared"},
}
LENGTH = 9

MODELS = Path(__file__).parents[2] / "configs" / "models"


def model_of(name: str) -> ModelConfig:
    family = name if name in runs.MODELS else "gpt_neox"
    tree = runs.config(family).model.model_dump()
    tree.update(SHAPES[name])
    return ModelConfig.model_validate(tree)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("rows", [1, 3])
def test_the_count_is_that_of_torch(name: str, rows: int) -> None:
    """torch counts the masked half of the scores too. Its counter does not know the fused kernel of a CPU."""
    config = model_of(name)
    model = Decoder(config, "cpu")
    ids = torch.zeros(rows, LENGTH, dtype=torch.int64)
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward, torch.no_grad():
            model(ids)
        with FlopCounterMode(display=False) as both:
            model(ids).sum().backward()
    ours = count(config, LENGTH, causal=False)
    assert forward.get_total_flops() == rows * ours.forward
    assert both.get_total_flops() == rows * ours.training


@pytest.mark.parametrize("name", SHAPES)
def test_each_part_is_that_of_torch(name: str) -> None:
    config = model_of(name)
    model = Decoder(config, "cpu")
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, LENGTH, dtype=torch.int64))
    found = {module: sum(by.values()) for module, by in counter.get_flop_counts().items()}
    layers, ours = range(config.depth), count(config, LENGTH, causal=False)
    assert sum(found[f"Decoder.layers.{layer}.attn"] for layer in layers) == ours.projections + ours.scores
    assert sum(found[f"Decoder.layers.{layer}.mlp"] for layer in layers) == ours.mlp
    assert found["Decoder.head"] == ours.head


@pytest.mark.parametrize("size", ["14m", "70m", "160m", "410m", "1b"])
def test_the_count_is_that_of_gpt_neox_for_its_shapes(size: str) -> None:
    """24 c B s L h^2 (1 + s / 6h + V / 16Lh), where c is 4 when all layers are computed again, else 3.

    Its last term is 6 s h V, the head's, for c = 4 alone (arXiv 2104.04473); for 3 it is 4.5 s h V.
    """
    model = ModelConfig.model_validate(load_tree([MODELS / f"pythia-{size}.yaml"]).values["model"])
    s, layers, h, vocab = model.context, model.depth, model.width, model.vocab
    theirs = 24 * s * layers * h**2 * (1 + s / (6 * h) + vocab / (16 * layers * h))
    ours = count(model, s, causal=False)
    assert ours.training + ours.forward - ours.head == pytest.approx(4 * theirs, rel=1e-12)
    assert ours.training == pytest.approx(3 * theirs + 1.5 * s * h * vocab, rel=1e-12)


def test_causal_attention_sees_the_pairs_of_its_mask() -> None:
    for tokens in (1, 2, 7):
        seen = torch.ones(tokens, tokens).tril()
        assert pairs(tokens) == seen.sum()
        for window in (1, 3, 7, 9):
            assert pairs(tokens, window) == (seen - seen.tril(-window)).sum()
    model = runs.config("mistral").model
    assert model.mixer.window == 5
    half = count(model, 12)
    assert half.scores / count(model, 12, causal=False).scores == pairs(12, 5) / 144
    assert half.mlp == count(model, 12, causal=False).mlp


@pytest.mark.parametrize("options", [{"layers": "full"}, {"layers": "selective"}, {"layers": "full", "every": 2}])
@pytest.mark.parametrize("name", SHAPES)
def test_what_is_computed_again_is_what_torch_counts(name: str, options: dict[str, Any]) -> None:
    config = model_of(name).model_copy(update={"depth": 3})
    model = Decoder(config, "cpu")
    recompute(enumerate(model.layers), Recompute(**options))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, LENGTH, dtype=torch.int64)).sum().backward()
    assert counter.get_total_flops() == count(config, LENGTH, Recompute(**options), causal=False).executed


def test_layers_are_computed_again_by_their_number() -> None:
    assert [recomputed(Recompute(layers="full", every=n), 5) for n in (1, 2, 3, 9)] == [5, 3, 2, 1]
    assert [recomputed(Recompute(layers="full", every=2), stop, start) for start, stop in ((0, 3), (3, 5))] == [2, 1]
    assert recomputed(Recompute(), 5) == 0


@pytest.mark.parametrize(
    ("name", "half"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756.5e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("Tesla V100-SXM2-32GB", 125e12),
        ("AMD Instinct MI250X", 191.5e12),
        ("h100", 989.4e12),
    ],
)
def test_a_device_is_known_by_its_name(name: str, half: float) -> None:
    assert peak_of(name, "bf16") == half
    full = peak_of(name, "fp32")
    assert full is not None
    assert full < half


def test_a_device_that_is_not_known_has_no_peak_unless_it_is_stated() -> None:
    assert device_of("NVIDIA A1000") is None
    assert peak_of("cpu", "fp32") is None
    assert peak_of("cpu", "fp32", stated=0.5) == 0.5e12
    assert peak_of("NVIDIA H100 80GB HBM3", "bf16", stated=1.0) == 1e12
    assert all(device_of(name) is device for name, device in DEVICES.items())

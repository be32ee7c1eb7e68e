"""Activations that are computed again on the way back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_runs as runs
import torch

from neoxkit.nn.decoder import Decoder
from neoxkit.train.objectives.lm import NextToken
from neoxkit.train.plain import PlainEngine


def engine(family: str, **recompute: Any) -> PlainEngine:
    """An engine with drawn weights."""
    model = runs.tree(family, Path("/nowhere"))["model"] | {"depth": 4}
    built = PlainEngine(runs.config(family, model=model, recompute=recompute), NextToken())
    built.initialise()
    return built


def kept(built: PlainEngine) -> int:
    """Bytes that a pass over a batch keeps for the way back, weights not counted."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in built.parameters}
    found: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if (where := x.untyped_storage().data_ptr()) not in weights:
            found[where] = x.untyped_storage().nbytes()
        return x

    assert isinstance(built.model, Decoder)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        hidden = built.model.hidden(runs.batch(4, 0).ids)
    assert hidden.requires_grad
    return sum(found.values())


@pytest.mark.parametrize("family", list(runs.MODELS))
@pytest.mark.parametrize("options", [{"layers": "full"}, {"layers": "full", "every": 3}, {"layers": "selective"}])
def test_the_same_is_learned(family: str, options: dict[str, Any]) -> None:
    """Bit for bit, and less is kept."""
    plain, again = engine(family), engine(family, **options)
    batches = [runs.batch(2, seed, masked=True) for seed in range(2)]
    for _ in range(2):
        assert plain.step(batches, 0.01) == again.step(batches, 0.01)
    for ours, theirs in zip(plain.state(), again.state(), strict=True):
        assert torch.equal(ours.value, theirs.value), ours.name
    assert plain.evaluate(batches) == again.evaluate(batches)


def test_the_more_layers_the_less_is_kept() -> None:
    all_of_them, third = engine("llama", layers="full"), engine("llama", layers="full", every=3)
    attention, none = engine("llama", layers="selective"), engine("llama")
    sizes = [kept(built) for built in (all_of_them, third, attention, none)]
    assert sizes[0] < sizes[1] < sizes[3], sizes
    assert sizes[0] < sizes[2] < sizes[3], sizes
    assert sizes[0] < sizes[3] / 4, sizes

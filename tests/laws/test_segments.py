"""Documents that are packed into a row learn what they do alone: loss, norm and every gradient, in every engine.

Over processes: `test_engine.py` and `test_mesh.py`, by the same rows. Against transformers: `test_parity.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_runs as runs
import torch

from neoxkit.config.run import RunConfig
from neoxkit.train.engine import Engine
from neoxkit.train.objectives.lm import NextToken
from neoxkit.train.plain import PlainEngine

MODELS: dict[str, dict[str, Any]] = {
    **{family: runs.tree(family, Path("/nowhere"))["model"] for family in runs.MODELS},
    "learned": {"family": "gpt2", "position": {"kind": "learned"}, "tied": True, "mixer": {"heads": 4}},
    "alibi": {"family": "gpt_neox", "position": {"kind": "alibi"}, "embed_norm": True, "mixer": {"heads": 4}},
    "alibi-window": {"family": "llama", "position": {"kind": "alibi"}}
    | {"mixer": {"heads": 4, "kv_heads": 2, "window": 3}},
}


def config(model: str, **options: Any) -> RunConfig:
    """A tiny run of a model. (With a smaller eps a gradient that is rounding alone would be a step of its own.)"""
    sizes = {"depth": 2, "width": 16, "vocab": runs.VOCAB, "context": 12}
    init, optimizer = {"std": 0.3}, {"lr": 0.01, "eps": 0.01}
    return runs.config(model={**sizes, **MODELS[model]}, init=init, optimizer=optimizer, **options)


def engine(model: str, **options: Any) -> PlainEngine:
    """The plain engine with drawn weights."""
    built = PlainEngine(config(model, **options), NextToken())
    built.initialise()
    return built


def assert_alike(packed: Engine, alone: Engine) -> None:
    """Two steps, whose moments have every gradient, and an evaluation; some rows are one document."""
    for step in range(2):
        rows = runs.packed(3, step, masked=step == 1)
        ours = packed.step([rows, runs.batch(2, 10)], 0.01)
        theirs = alone.step([*runs.alone(rows), runs.batch(2, 10)], 0.01)
        assert ours.tokens == theirs.tokens
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
        assert ours.norm == pytest.approx(theirs.norm, rel=1e-5)
    for held, wanted in zip(packed.state(), alone.state(), strict=True):
        torch.testing.assert_close(
            held.value, wanted.value, rtol=1e-4, atol=1e-6, msg=lambda m, n=held.name: f"{n}: {m}"
        )
    rows = runs.packed(2, 20)
    nats, count = packed.evaluate([rows])
    assert (nats, count) == (pytest.approx(alone.evaluate(runs.alone(rows))[0], rel=1e-5), 24)
    crossed, _ = packed.evaluate([runs.batch(2, 20)])
    assert crossed != pytest.approx(nats, rel=1e-3), "the same ids without documents are something else"


@pytest.mark.parametrize("kernel", ["auto", "reference"])
@pytest.mark.parametrize("model", MODELS)
def test_documents_in_a_row_learn_what_they_do_alone(model: str, kernel: str) -> None:
    assert_alike(engine(model, kernels={"attention": kernel}), engine(model))


@pytest.mark.parametrize("layers", ["full", "selective"])
def test_documents_in_layers_that_are_recomputed(layers: str) -> None:
    assert_alike(engine("llama", recompute={"layers": layers}), engine("llama"))


def test_documents_in_bf16() -> None:
    """Near to it: sums are of the same numbers, and kernels round where they divide a row."""
    ours, theirs = engine("gpt_neox", precision="bf16"), engine("gpt_neox", precision="bf16")
    rows = runs.packed(4, 1)
    packed, alone = ours.step([rows], 0.01), theirs.step(runs.alone(rows), 0.01)
    assert packed.loss == pytest.approx(alone.loss, rel=3e-3)
    assert packed.norm == pytest.approx(alone.norm, rel=2e-2)

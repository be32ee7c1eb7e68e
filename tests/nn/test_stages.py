"""The decoder as a row of layers, and where it is cut."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import tiny_runs as runs
import torch

from neoxkit.config.kernels import DEFAULT
from neoxkit.config.model import ModelConfig
from neoxkit.config.parallel import Recompute
from neoxkit.errors import ConfigError
from neoxkit.nn.decoder import Decoder, holdings, specs
from neoxkit.nn.init import initialise
from neoxkit.nn.stages import Contexts, Layer, balance, layers
from neoxkit.parallel.division import UNDIVIDED

NONE = Recompute()


def model(**options: object) -> ModelConfig:
    """A small model."""
    given = {"family": "llama", "depth": 4, "width": 16, "vocab": 61, "context": 12, "mixer": {"heads": 4}}
    return ModelConfig.model_validate({**given, **options})


@pytest.mark.parametrize(
    "config",
    [
        model(tied=True),
        model(position={"kind": "learned"}, embed_norm=True),
        model(position={"kind": "alibi"}, residual="parallel"),
        model(mixer={"heads": 4, "kv_heads": 2, "window": 5}, norm={"kind": "rms"}),
    ],
    ids=["tied", "learned", "alibi", "window"],
)
def test_a_row_of_layers_is_the_decoder(config: ModelConfig) -> None:
    """The same parameters, and from the same weights the same stream, at two lengths."""
    options = runs.config().init
    whole = Decoder(config)
    initialise(whole, config, options, 3)
    built = [layer.kind(*layer.arguments) for layer in layers(config, UNDIVIDED, NONE, 12)]
    parts = built[:-1] if config.tied else built
    for module in parts:
        initialise(module, config, options, 3)
    names = [held.spec.name for module in parts for p in module.parameters() for held in holdings(p)]
    assert names == list(specs(config))
    for length in (12, 7):
        ids = runs.batch(2, 0, length).ids
        x = ids
        for module in built[:-1]:
            x = module(x)
        torch.testing.assert_close(x, whole.hidden(ids), rtol=0, atol=0)


def test_a_stage_is_told_where_documents_begin() -> None:
    """Pass after pass: other documents, none, other ones; and what was told before holds for its own pass alone."""
    config = model(position={"kind": "learned"}, mixer={"heads": 4, "window": 3})
    whole, contexts = Decoder(config), Contexts(config, UNDIVIDED, DEFAULT)
    initialise(whole, config, runs.config().init, 3)
    built = [layer.kind(*layer.arguments) for layer in layers(config, UNDIVIDED, NONE, 12, contexts=contexts)]
    for module in built:
        initialise(module, config, runs.config().init, 3)
    for batch in (runs.packed(2, 0), runs.packed(2, 1), runs.batch(2, 0), runs.packed(2, 0)):
        contexts.begin(batch.positions, batch.segments)
        x = batch.ids
        for module in built[:-1]:
            x = module(x)
        torch.testing.assert_close(x, whole.hidden(batch.ids, batch.positions, batch.segments), rtol=0, atol=0)


def row(costs: list[float]) -> list[Layer]:
    """Blocks of these costs, between an embedding that costs nothing and a norm."""
    ends = Layer(torch.nn.Identity, ())
    return [ends, *(Layer(torch.nn.Identity, (), cost, block=True) for cost in costs), ends]


@pytest.mark.parametrize("costs", [[1.0] * 7, [1, 1, 1, 1, 6], [5, 1, 1, 1, 1, 1], [3, 1, 4, 1, 5, 9, 2, 6]])
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_the_dearest_stage_is_as_cheap_as_can_be(costs: list[float], stages: int) -> None:
    given = row(costs)
    bounds = balance(given, stages)
    assert bounds[0] == 0
    assert bounds[-1] == len(given)
    parts = [given[start:stop] for start, stop in pairwise(bounds)]
    assert all(any(layer.block for layer in part) for part in parts)
    every = [[0, *cut, len(costs)] for cut in combinations(range(1, len(costs)), stages - 1)]
    best = min(max(sum(costs[a:b]) for a, b in pairwise(cut)) for cut in every)
    assert max(sum(layer.cost for layer in part) for part in parts) == best


def test_a_large_head_takes_layers_from_the_last_stage() -> None:
    """Equal runs of layers would leave the last stage with the head besides."""
    config = model(depth=8, vocab=100_000)
    given = layers(config, UNDIVIDED, NONE, 12)
    blocks = [sum(layer.block for layer in given[a:b]) for a, b in pairwise(balance(given, 2))]
    assert blocks == [7, 1]
    even = layers(model(depth=8), UNDIVIDED, NONE, 12)
    assert [sum(layer.block for layer in even[a:b]) for a, b in pairwise(balance(even, 2))] == [4, 4]


def test_costs_are_those_of_the_matrices_and_of_attention() -> None:
    config = model()
    given = layers(config, UNDIVIDED, NONE, 12)
    width, hidden = config.width, config.mlp.hidden
    assert [layer.cost for layer in given if layer.block] == [4 * width**2 + 2 * width * hidden + 12 * width] * 4
    assert given[-1].cost == 61 * width
    again = layers(config, UNDIVIDED, Recompute(layers="full", every=2), 12)
    plain = given[1].cost
    assert [layer.cost for layer in again if layer.block] == [plain * 4 / 3, plain, plain * 4 / 3, plain]


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match="pp 5 is more stages than the model's 4 layers"):
        balance(layers(model(), UNDIVIDED, NONE, 12), 5)

"""What training holds and measures, in one process or in several: for the tests of plans and metrics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tiny_runs as runs
import torch
from torch import Tensor

from neoxkit.config.run import RunConfig
from neoxkit.nn.decoder import form_groups
from neoxkit.spec import Axis
from neoxkit.train import memory
from neoxkit.train.objectives.lm import NextToken
from neoxkit.train.plain import PlainEngine
from neoxkit.train.watch import Watch

ROWS = 2
"""Of a micro-batch."""


@contextmanager
def kept(engine: PlainEngine) -> Iterator[dict[int, int]]:
    """The bytes of each storage that autograd keeps, but for the parameters'. They are never freed meanwhile."""
    own = {parameter.untyped_storage().data_ptr() for parameter in engine.model.parameters()}
    found: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


def activations(engine: PlainEngine) -> int:
    """The bytes that autograd keeps of a forward pass, with the stream that the loss is computed from."""
    with kept(engine) as found:
        hidden = engine.model.hidden(engine.own(runs.batch(ROWS, seed=0)).ids)
    found[hidden.untyped_storage().data_ptr()] = hidden.untyped_storage().nbytes()
    return sum(found.values())


def measure(config: RunConfig, folder: Path) -> dict[str, Any]:
    """A step of a run on as many processes as there are: its record; and bytes, as planned and as they are."""
    groups = form_groups(config.model, config.placed)
    engine = PlainEngine(config, NextToken(), groups=groups, sequence_parallel=config.mesh.sequence_parallel)
    engine.initialise()
    place, size = groups.mesh.coord()[Axis.DP]
    seeds = (0, 0, 0, 1)  # alike, or the estimate of |G|^2 might be below 0
    mine = [runs.batch(ROWS, seed) for seed in seeds[place::size]]
    with Watch(config, engine.model, torch.device("cpu"), folder, groups) as watch:
        watch.begin(1)
        told = watch.record(1, engine.step(watch.batches(mine), 0.0), 0.0)
    (planned,) = memory.of_run(config)
    real = {
        "weights": sum(parameter.nbytes for parameter in engine.model.parameters()),
        "optimizer": sum(e.value.nbytes for e in engine.state() if not e.name.startswith("model/")),
        "activations": activations(engine),
    }
    return {"told": told, "planned": planned._asdict(), "real": real}

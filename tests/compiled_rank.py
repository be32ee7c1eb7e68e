"""One rank of two whose layers are compiled, in a process of its own; the other rank is taken to hold the same.

`python compiled_rank.py` prints what differs from the layers as they are, as JSON; torch.distributed is replaced, so
that nothing waits while the other compiles.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import tiny_runs as runs
import torch
import torch.distributed as dist
from torch import Tensor
from torch._dynamo.utils import counters
from torch.testing._internal.distributed.fake_pg import FakeStore

from neoxkit.mesh import Mesh
from neoxkit.nn import compiling, decoder
from neoxkit.nn.decoder import pieces
from neoxkit.parallel import collectives
from neoxkit.parallel.groups import LOCAL, Groups
from neoxkit.spec import Axis
from neoxkit.train.deepspeed.engine import DeepSpeedEngine
from neoxkit.train.engine import Engine
from neoxkit.train.objectives.lm import NextToken
from neoxkit.train.plain import PlainEngine

CASES: list[tuple[str, Mesh, bool, dict[str, Any]]] = [
    ("gpt_neox", Mesh(tp=2), True, {"layers": "full"}),
    ("mistral", Mesh(cp=2), False, {"layers": "selective", "every": 2}),
]


class Done:
    """What has been sent."""

    def wait(self) -> None:
        """Nothing is awaited."""


def reduce(x: Tensor, op: Any = dist.ReduceOp.SUM, **_: Any) -> Done:
    """As if two ranks gave the same."""
    x.mul_(2 if op == dist.ReduceOp.SUM else 1)
    return Done()


def gather(found: Tensor, x: Tensor, **_: Any) -> Done:
    """As if two ranks gave the same."""
    found.copy_(x.repeat(2, *[1] * (x.dim() - 1)))
    return Done()


def reduce_scatter(found: Tensor, x: Tensor, **_: Any) -> Done:
    """As if two ranks gave the same."""
    found.copy_(2 * x.chunk(2)[0])
    return Done()


def trade(found: Tensor, x: Tensor, **_: Any) -> Done:
    """As if two ranks gave the same."""
    found.copy_(x[:1].expand_as(x))
    return Done()


def engine(family: str, mesh: Mesh, sequence: bool, recompute: dict[str, Any], compiled: bool) -> Engine:
    """The plain engine, of ten layers with drawn weights."""
    model = runs.tree(family, Path("/nowhere"))["model"] | {"depth": 10}
    config = runs.config(family, model=model, recompute=recompute, kernels={"compile": compiled})
    groups, group = LOCAL, dist.group.WORLD
    if mesh.world > 1:
        assert group is not None
        axis = Axis.TP if mesh.tp > 1 else Axis.CP
        groups = Groups(mesh, {axis: group}, alike=group if axis is Axis.CP else None)
    built = PlainEngine(config, NextToken(), groups=groups, sequence_parallel=sequence)
    built.initialise()
    return built


def deepspeed(family: str, mesh: Mesh, sequence: bool, recompute: dict[str, Any], compiled: bool) -> Engine:
    """DeepSpeed's engine with ZeRO's first stage; compiled, or the plain engine."""
    if not compiled:
        return engine(family, mesh, sequence, recompute, compiled)
    model = runs.tree(family, Path("/nowhere"))["model"] | {"depth": 10}
    config = runs.config(family, model=model, zero={"stage": 1}, kernels={"compile": True})
    built = DeepSpeedEngine(config, NextToken(), torch.device("cpu"), LOCAL)
    built.initialise()
    return built


Build = Callable[[str, Mesh, bool, dict[str, Any], bool], Engine]


def compare(family: str, mesh: Mesh, sequence: bool, recompute: dict[str, Any], build: Build = engine) -> list[str]:
    """What differs after three steps, and whether graphs were made after the first."""
    torch._dynamo.reset()
    counters.clear()
    plain, compiled = (build(family, mesh, sequence, recompute, wanted) for wanted in (False, True))
    found, graphs = [], []
    for step in range(3):
        ours, theirs = (each.step([runs.batch(2, step), runs.batch(2, 9)], 0.01) for each in (compiled, plain))
        if abs(ours.loss - theirs.loss) > 1e-5 or abs(ours.norm - theirs.norm) > 1e-5 * theirs.norm:
            found.append(f"step {step}: {ours} and not {theirs}")
        graphs.append(counters["stats"]["unique_graphs"])
    for (spec, _, mine), (_, _, wanted) in zip(pieces(compiled.model), pieces(plain.model), strict=True):
        if not torch.allclose(mine, wanted, rtol=1e-4, atol=1e-4):  # a step is 1e-2
            found.append(f"{spec.name} is off by {float((mine - wanted).detach().abs().max()):.3g}")
    if not 0 < graphs[0] == graphs[-1] < 10:
        found.append(f"graphs after each step: {graphs}")
    return found


def main() -> None:
    """Compare every case."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())

    def traced(layers: Any, wanted: bool) -> None:
        compiling.compile_layers(layers, wanted, "aot_eager")

    with (
        patch.object(dist, "all_reduce", reduce),
        patch.object(dist, "all_to_all_single", trade),
        patch.object(collectives, "_all_gather", gather),
        patch.object(collectives, "_reduce_scatter", reduce_scatter),
        patch.object(decoder, "compile_layers", traced),
    ):
        found = {f"{case[0]} {case[1]}, {case[2]}, {case[3]}": compare(*case) for case in CASES}
    dist.destroy_process_group()
    with patch.object(decoder, "compile_layers", traced):
        found["deepspeed"] = compare("llama", Mesh(), False, {}, deepspeed)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

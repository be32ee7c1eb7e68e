"""Two processes of one thread each: tensor, pipeline and data parallel against one process, and torch's DDP.

The model and the batches are those of train_step.py. All live in the same two processes and take turns, a few steps
each, in another order every round; what one process does alone, the first does while the other waits. They begin
with the same weights, and their losses must agree to 1e-4. torch's DDP wraps neoxkit's own decoder in a plain loop
with torch's AdamW and clipping, so what differs is how the work is divided.

Efficiency is the tokens per second of wall time on two processes, over twice those of the same kind on one; CPU time
is that of both processes over that of one. gpt-neox's own tokens per second, measured elsewhere, stand beside.

    python benchmarks/efficiency.py [--rounds 15] [--micro 2] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from train_step import CLIP, LR, ROWS, STEPS_A_TURN, TOLERANCE, config

from neoxkit.config.parallel import Zero
from neoxkit.config.run import RunConfig
from neoxkit.data.rows.batch import Batch
from neoxkit.nn.decoder import Decoder, form_groups
from neoxkit.nn.init import initialise
from neoxkit.parallel.groups import LOCAL
from neoxkit.parallel.world import World, join
from neoxkit.spec import Axis
from neoxkit.train.begin import build_engine
from neoxkit.train.objectives.lm import NextToken
from neoxkit.train.optim import build, groups_of
from neoxkit.train.plain import PlainEngine

RANKS = 2

ALONE = {"neoxkit, tp 2": "neoxkit", "neoxkit, pp 2": "neoxkit", "neoxkit, dp 2": "neoxkit"}
ALONE |= {"neoxkit, dp 2, ZeRO-1": "neoxkit", "torch DDP, dp 2": "torch"}
"""What each is compared with: the same on one process."""

PEER = "torch DDP, dp 2"

GPT_NEOX = {"neoxkit, tp 2": 2534, "neoxkit, pp 2": 2407, "neoxkit, dp 2, ZeRO-1": 2200}
"""gpt-neox (ea7aefd8), tokens per second on two processes at this size; on another machine, with AVX-512, and busy."""

Step = Callable[[Tensor], float]  # all rows of ids [8, 257] to the loss


class Micro:
    """A run's engine on a mesh, and which rows of a step are this process's, in micro-batches."""

    def __init__(self, run: RunConfig, **options: Any) -> None:
        """`options` replace those of the run."""
        mesh = run.mesh.model_copy(update=options.pop("mesh"))
        batch = run.batch.model_copy(update={"micro": options.pop("micro", ROWS // (mesh.dp or 1))})
        self.run = run.model_copy(update={"mesh": mesh, "batch": batch, **options}).on(RANKS)
        self.engine = build_engine(self.run, torch.device("cpu"), form_groups(self.run.model, self.run.placed))
        self.engine.initialise()
        self.at = self.run.placed.coord(dist.get_rank())[Axis.DP]

    def __call__(self, rows: Tensor) -> float:
        """A step."""
        own = rows.chunk(self.at[1])[self.at[0]]
        return self.engine.step([batch_of(each) for each in own.split(self.run.micro)], LR).loss


def batch_of(rows: Tensor) -> Batch:
    """Ids and labels."""
    return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())


def alone(run: RunConfig) -> Step:
    """A step of the plain engine in this process."""
    engine = PlainEngine(run.on(1), NextToken(), groups=LOCAL)
    engine.initialise()
    return lambda rows: engine.step([batch_of(rows)], LR).loss


class Whole(nn.Module):
    """A decoder and the mean loss, as DDP wants to call it."""

    def __init__(self, run: RunConfig) -> None:
        super().__init__()
        self.model = Decoder(run.model)
        initialise(self.model, run.model, run.init, run.seed)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        """The mean loss."""
        loss = NextToken().loss(self.model.hidden(ids), self.model.head, Batch(ids, labels))
        return loss.sum / loss.count


def torch_loop(run: RunConfig, ranks: int) -> Step:
    """A plain loop, in DDP on more than one process. (Of two, DDP takes the mean of equally many tokens each.)"""
    task = Whole(run)
    wrapped = DistributedDataParallel(task, gradient_as_bucket_view=True) if ranks > 1 else task
    parameters = list(task.parameters())
    optimizer = build(run.optimizer, groups_of(parameters, run.optimizer))

    def step(rows: Tensor) -> float:
        batch = batch_of(rows.chunk(ranks)[dist.get_rank() if ranks > 1 else 0])
        loss = wrapped(batch.ids, batch.labels)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        for group in optimizer.param_groups:
            group["lr"] = LR * group["lr_scale"]
        optimizer.step()
        optimizer.zero_grad()
        told = loss.detach()
        if ranks > 1:
            dist.all_reduce(told)
        return told.item() / ranks

    return step


def ways(run: RunConfig, micro: int) -> dict[str, Step]:
    """All that take turns."""
    return {
        "neoxkit": alone(run),
        "torch": torch_loop(run, 1),
        "neoxkit, tp 2": Micro(run, mesh={"tp": 2}, engine="plain"),
        "neoxkit, pp 2": Micro(run, mesh={"pp": 2}, engine="deepspeed", micro=micro, zero=Zero(stage=0)),
        "neoxkit, dp 2": Micro(run, mesh={"dp": 2}, engine="plain"),
        "neoxkit, dp 2, ZeRO-1": Micro(run, mesh={"dp": 2}, engine="deepspeed", zero=Zero(stage=1)),
        PEER: torch_loop(run, RANKS),
    }


def turns(world: World, run: RunConfig, options: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """Seconds of a step, of wall and of CPU time over both processes, in each round."""
    steps, order = ways(run, options.micro), random.Random(0)
    generator = torch.Generator().manual_seed(1)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for number in range(options.rounds + 2):  # the first two warm up
        shape = (STEPS_A_TURN, ROWS, run.model.context + 1)
        batches = torch.randint(0, run.model.vocab, shape, generator=generator)
        losses: dict[str, list[float]] = {}
        for name in order.sample(list(steps), len(steps)):
            world.meet()
            begun, cpu = time.perf_counter(), time.process_time()
            if name in ALONE or world.first:
                losses[name] = [steps[name](rows) for rows in batches]
            world.meet()
            wall = time.perf_counter() - begun
            spent = sum(world.gather(time.process_time() - cpu))
            if number >= 2:
                taken[name].append((wall / STEPS_A_TURN, spent / STEPS_A_TURN))
        for name, found in losses.items() if world.first else ():
            assert all(abs(a - b) < TOLERANCE for a, b in zip(found, losses["neoxkit"], strict=True)), (name, losses)
    return taken


def rank(number: int, port: int, options: argparse.Namespace, folder: Path) -> None:
    """One of the two processes."""
    os.environ.update(
        RANK=str(number), WORLD_SIZE=str(RANKS), LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    world = join("cpu")
    taken = turns(world, config(folder / str(number)), options)
    if world.first:
        (folder / "taken.json").write_text(json.dumps(taken))
    world.meet()
    os._exit(0)


def main() -> None:
    """Start both processes, and print what the first one measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--micro", type=int, default=2, help="Rows of a micro-batch of the pipeline.")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as name:
        for number in range(RANKS):
            (Path(name) / str(number)).mkdir()
        multiprocessing.spawn(rank, (port, options, Path(name)), nprocs=RANKS)
        taken = json.loads((Path(name) / "taken.json").read_text())
        tokens = ROWS * config(Path(name)).model.context
    rates = {name: tokens / statistics.median(wall for wall, _ in each) for name, each in taken.items()}
    spent = {name: statistics.median(cpu for _, cpu in each) for name, each in taken.items()}
    efficiency = {name: rates[name] / (RANKS * rates[one]) for name, one in ALONE.items()}
    extra = {name: spent[name] / spent[one] for name, one in ALONE.items()}
    if options.json:
        print(json.dumps({"tokens_per_second": rates, "efficiency": efficiency, "cpu_to_one": extra}))
    else:
        print(f"{'':<22} {'tokens/s':>8}  {'efficiency':>10}  {'CPU time':>8}  gpt-neox, elsewhere")
        for name, value in rates.items():
            more = f"  {efficiency[name]:10.2f}  {extra[name]:8.2f}" if name in ALONE else f"  {'':10}  {'':8}"
            beside = f"  {GPT_NEOX[name]:8}" if name in GPT_NEOX else ""
            print(f"{name:<22} {value:8.0f}{more}{beside}")
        print(f"dp 2 / torch DDP: {rates['neoxkit, dp 2'] / rates[PEER]:.2f}")


if __name__ == "__main__":
    main()

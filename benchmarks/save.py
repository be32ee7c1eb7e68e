"""A save while training on two processes with ZeRO-1: neoxkit's Saver against DeepSpeed's own save_checkpoint.

Both save the same engine, in turn, in several rounds. Told are the seconds for which training stands still
(for DeepSpeed that is all of it) and those until the checkpoint is whole: neoxkit's is then on stable storage
and has checksums; DeepSpeed's is flushed here, for the second of its two figures. Then each is loaded into the
same engine again, with its own loader, from a cold cache.

    python benchmarks/save.py [--width 768] [--depth 8] [--rounds 5] [--check]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from measuring import flush, forget

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.config.parallel import Zero
from neoxkit.config.run import RunConfig
from neoxkit.data.rows.batch import Batch
from neoxkit.nn.decoder import form_groups
from neoxkit.parallel.world import World, join
from neoxkit.train.begin import build_engine
from neoxkit.train.feed import Identity
from neoxkit.train.resume import Position
from neoxkit.train.saving.saver import Saver

RANKS = 2
STALL = 0.1
"""The part of DeepSpeed's time for which neoxkit may stop training, at most."""


def config(width: int, depth: int, folder: Path) -> RunConfig:
    """The run that is saved."""
    model = {"family": "gpt_neox", "depth": depth, "width": width, "vocab": 8192, "context": 64}
    return RunConfig.model_validate(
        {
            "model": {**model, "mixer": {"heads": width // 64}},
            "data": {"train": "none"},
            "batch": {"size": RANKS},
            "optimizer": {"lr": 1e-3},
            "steps": 1000,
            "precision": "fp32",
            "zero": Zero(stage=1),
            "save": {"folder": str(folder / "run"), "background": "always"},
        }
    ).on(RANKS)


def rounds(world: World, run: RunConfig, folder: Path, count: int) -> dict[str, list[float]]:
    """Save in turn; the seconds of each way."""
    engine: Any = build_engine(run, torch.device("cpu"), form_groups(run.model, run.placed))
    engine.initialise()
    batch = Batch(torch.zeros(1, 64, dtype=torch.int64), torch.ones(1, 64, dtype=torch.int64))
    engine.step([batch], 1e-3)
    taken: dict[str, list[float]] = {name: [] for name in ("stall", "whole", "theirs", "theirs flushed")}
    taken |= {"load": [], "their load": []}
    with Saver(run, {}, Identity(0, 0, "", 64, 0, 1), None, [], 0, world) as saver:
        for number in range(count + 1):
            world.meet()
            begun = time.perf_counter()
            path = saver.save(engine, Position(number))
            stall = time.perf_counter() - begun
            saver.settle()
            world.meet()
            whole = time.perf_counter() - begun
            world.meet()
            begun = time.perf_counter()
            engine.runtime.save_checkpoint(str(folder / "theirs"), tag=str(number))
            world.meet()
            theirs = time.perf_counter() - begun
            if world.first:
                flush(folder / "theirs" / str(number))
            world.meet()
            flushed = time.perf_counter() - begun
            loads = [load(world, engine, folder, path, number, ours) for ours in (True, False)]
            if number:  # the first warms up: the process that writes is started
                for name, value in zip(taken, (stall, whole, theirs, flushed, *loads), strict=True):
                    taken[name].append(value)
            if world.first:
                shutil.rmtree(path)
                shutil.rmtree(folder / "theirs" / str(number))
    return taken


def load(world: World, engine: Any, folder: Path, path: Path, number: int, ours: bool) -> float:
    """Seconds to load what was just saved."""
    if world.first:
        forget(path if ours else folder / "theirs" / str(number))
    world.meet()
    begun = time.perf_counter()
    if ours:
        with Checkpoint.open(path) as checkpoint:
            engine.load_state(checkpoint, checkpoint.trainer_state()["optimizer"])
    else:
        engine.runtime.load_checkpoint(str(folder / "theirs"), tag=str(number))
    world.meet()
    return time.perf_counter() - begun


def rank(number: int, port: int, options: argparse.Namespace, folder: Path) -> None:
    """One of the two processes."""
    os.environ.update(
        RANK=str(number), WORLD_SIZE=str(RANKS), LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    world = join("cpu")
    taken = rounds(world, config(options.width, options.depth, folder), folder, options.rounds)
    if world.first:
        (folder / "taken.json").write_text(json.dumps(taken))
    world.meet()
    dist.destroy_process_group()
    os._exit(0)


def main() -> None:
    """Start both processes, and print what the first one measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="Where to write; the system's folder unless given.")
    parser.add_argument("--check", action="store_true", help="Fail when a limit is broken.")
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        multiprocessing.spawn(rank, (port, options, Path(name)), nprocs=RANKS)
        taken = json.loads((Path(name) / "taken.json").read_text())
    middle = {name: statistics.median(each) for name, each in taken.items()}
    print(
        f"neoxkit    training waits {middle['stall']:.2f} s, whole after {middle['whole']:.2f} s, "
        f"loaded in {middle['load']:.2f} s"
    )
    print(
        f"DeepSpeed  training waits {middle['theirs']:.2f} s, flushed after {middle['theirs flushed']:.2f} s, "
        f"loaded in {middle['their load']:.2f} s"
    )
    print(
        f"stall {middle['stall'] / middle['theirs']:.3f}, whole {middle['whole'] / middle['theirs flushed']:.2f}, "
        f"load {middle['load'] / middle['their load']:.2f} of DeepSpeed's"
    )
    if options.check:
        assert middle["stall"] <= STALL * middle["theirs"], middle
        assert middle["whole"] <= middle["theirs flushed"], middle


if __name__ == "__main__":
    main()

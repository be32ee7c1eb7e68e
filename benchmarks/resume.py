"""Going on at another number of processes: neoxkit's resume against DeepSpeed's universal checkpoint.

Two processes train with ZeRO-1, and save the same state twice: as neoxkit does, and by DeepSpeed's own
save_checkpoint. Then so many processes as asked go on from each, in turn, in several rounds, from a cold cache:
neoxkit from its checkpoint as it is; DeepSpeed by `ds_to_universal`, and load_checkpoint of what that wrote.
Both must arrive at the same state, number for number, and go on to the same losses.

Told are seconds of wall and CPU time, the memory at the peak of loading above what the engine holds itself (of
ds_to_universal: that of its largest process), and the bytes written, as a multiple of the checkpoint's. Starting
Python and building the engine are not counted in loading; ds_to_universal is a command, and counted whole, with
what it takes to start it told beside.

    python benchmarks/resume.py [--width 768] [--depth 8] [--onto 1] [--rounds 3] [--check]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["DS_ACCELERATOR"] = "cpu"

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from measuring import Taken, files, forget, machine, measure

from neoxkit.checkpoint.checksum import crc64nvme
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.config.parallel import Zero
from neoxkit.config.run import RunConfig
from neoxkit.data.rows.batch import Batch
from neoxkit.nn.decoder import form_groups
from neoxkit.parallel.world import World, join
from neoxkit.spec import Axis
from neoxkit.train.begin import build_engine
from neoxkit.train.feed import Identity
from neoxkit.train.resume import Position
from neoxkit.train.saving.saver import Saver

RANKS, ROWS, CONTEXT, VOCAB = 2, 4, 64, 8192
STEPS = 2
"""Before the save, and after each resume."""
TOLERANCE = 1e-5
"""To which losses after the resume must agree: sums over other numbers of processes are rounded otherwise."""


def config(options: argparse.Namespace, folder: Path, ranks: int) -> RunConfig:
    """The run on so many processes."""
    model = {"family": "gpt_neox", "depth": options.depth, "width": options.width, "vocab": VOCAB, "context": CONTEXT}
    return RunConfig.model_validate(
        {
            "model": {**model, "mixer": {"heads": options.width // 64}},
            "data": {"train": "none"},
            "batch": {"size": ROWS, "micro": 1},
            "optimizer": {"lr": 1e-3},
            "steps": 1000,
            "precision": "fp32",
            "engine": "deepspeed",
            "zero": Zero(stage=1),
            "save": {"folder": str(folder / "run")},
        }
    ).on(ranks)


def built(run: RunConfig) -> Any:
    """The engine, with weights."""
    engine = build_engine(run, torch.device("cpu"), form_groups(run.model, run.placed))
    engine.initialise()
    return engine


def steps(engine: Any, run: RunConfig, first: int) -> list[float]:
    """The losses of some steps."""
    dp, size = run.placed.coord(dist.get_rank())[Axis.DP]
    losses = []
    for number in range(first, first + STEPS):
        ids = torch.randint(0, VOCAB, (ROWS, CONTEXT + 1), generator=torch.Generator().manual_seed(number))
        mine = [Batch(row[None, :-1].contiguous(), row[None, 1:].contiguous()) for row in ids[dp::size]]
        losses.append(engine.step(mine, 1e-3).loss)
    return losses


def write(world: World, options: argparse.Namespace, folder: Path) -> None:
    """Train on two processes, and save both ways; the losses of the steps that follow."""
    run = config(options, folder, world.size)
    engine = built(run)
    steps(engine, run, 0)
    with Saver(run, {}, Identity(0, 0, "", CONTEXT, 0, 1), None, [], 0, world) as saver:
        saver.save(engine, Position(STEPS))
        saver.settle()
    engine.runtime.save_checkpoint(str(folder / "theirs"), tag="step")
    losses = steps(engine, run, STEPS)
    if world.first:
        (folder / "losses.json").write_text(json.dumps(losses))


def state_of(engine: Any) -> dict[str, int]:
    """Checksums of what this process has of weights, masters and moments."""
    return {
        f"{held.name} {held.box} {held.run}": crc64nvme(memoryview(held.value.contiguous().view(-1).numpy()).cast("B"))
        for held in engine.state()
    }


def memory(key: str) -> float:
    """MB that this process holds ("VmRSS"), or held at most since the peak was forgotten ("VmHWM")."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(key)).split()[1]) * 1024 / 1e6


def loading(world: World, engine: Any, source: Path, load: Callable[[], None]) -> Taken:
    """What it takes to load; of several processes their CPU time together, and the largest memory."""
    for held in engine.state():
        held.value.zero_()
    if world.first:
        forget(source)
    ctypes.CDLL(None).malloc_trim(0)  # or what was freed before would hide what is taken now
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of memory
    before = memory("VmRSS")
    world.meet()
    cpu, begun = time.process_time(), time.perf_counter()
    load()
    world.meet()
    wall = time.perf_counter() - begun
    told = world.gather((time.process_time() - cpu, memory("VmHWM") - before))
    return Taken(wall, sum(each for each, _ in told), max(each for _, each in told))


def resume(world: World, options: argparse.Namespace, folder: Path) -> None:
    """Go on from each checkpoint in turn; write down what it took."""
    run = config(options, folder, world.size)
    engine = built(run)
    engine.runtime._config.load_universal_checkpoint = True
    ours, theirs, universal = folder / "run" / f"step-{STEPS:08d}", folder / "theirs", folder / "universal"
    convert = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    expected = json.loads((folder / "losses.json").read_text())

    def load_ours() -> None:
        with Checkpoint.open(ours) as checkpoint:
            trainer = checkpoint.trainer_state()
            assert trainer is not None
            engine.load_state(checkpoint, trainer["optimizer"])

    def load_theirs() -> None:
        engine.runtime.load_checkpoint(str(folder), tag="universal")

    taken: dict[str, list[Taken]] = {"neoxkit": [], "ds_to_universal": [], "load_checkpoint": []}
    for number in range(options.rounds + 1):
        found = [loading(world, engine, ours, load_ours)]
        state, losses = state_of(engine), steps(engine, run, STEPS)
        if world.first:
            command = [*convert, "--input_folder", str(theirs / "step"), "--output_folder", str(universal)]
            found.append(measure(command, theirs, universal, flushed=False))
            (folder / "latest_universal").write_text("universal")
        world.meet()
        found.append(loading(world, engine, universal, load_theirs))
        assert state_of(engine) == state, "the two ways arrive at other numbers"
        for each in (losses, steps(engine, run, STEPS)):
            assert all(abs(a - b) < TOLERANCE for a, b in zip(each, expected, strict=True)), (each, expected)
        if world.first and number:  # the first warms up
            for name, one in zip(taken, found, strict=True):
                taken[name].append(one)
    if world.first:
        sizes = [sum(path.stat().st_size for path in files(each)) for each in (ours, theirs / "step", universal)]
        told = {name: [[one.wall, one.cpu, one.memory] for one in each] for name, each in taken.items()}
        (folder / "taken.json").write_text(json.dumps({"taken": told, "sizes": sizes}))


def rank(number: int, count: int, port: int, act: Callable[..., None], *rest: Any) -> None:
    """One process of a job."""
    os.environ.update(
        RANK=str(number), WORLD_SIZE=str(count), LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    world = join("cpu")
    act(world, *rest)
    world.meet()
    os._exit(0)


def start(count: int, act: Callable[..., None], *rest: Any) -> None:
    """A job of so many processes, to its end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(rank, (count, port, act, *rest), nprocs=count)


def tell(told: dict[str, Any], idle: Taken, options: argparse.Namespace) -> float:
    """Print the table; the ratio of wall time."""
    ours, theirs, universal = told["sizes"]
    middle = {
        name: Taken(*(statistics.median(one[index] for one in each) for index in (0, 1, 2)))
        for name, each in told["taken"].items()
    }
    loaded = middle.pop("load_checkpoint")
    made = middle["ds_to_universal"]
    middle["DeepSpeed, both"] = Taken(made.wall + loaded.wall, made.cpu + loaded.cpu, max(made.memory, loaded.memory))
    rows = {
        "neoxkit": (middle["neoxkit"], 0.0),
        "ds_to_universal": (made, universal / theirs),
        "load_checkpoint": (loaded, 0.0),
        "DeepSpeed, both": (middle["DeepSpeed, both"], universal / theirs),
        "(deepspeed --help)": (idle, 0.0),
    }
    print("\n".join(f"{name:18}{value}" for name, value in machine().items()))
    print(f"from {RANKS} processes onto {options.onto}; checkpoints of {ours:,} and {theirs:,} bytes")
    print(f"\n{'':20}{'wall s':>9}{'CPU s':>9}{'peak MB':>9}{'written':>9}")
    for name, (one, written) in rows.items():
        print(f"{name:20}{one.wall:9.2f}{one.cpu:9.2f}{one.memory:9.0f}{written:9.2f}")
    whole = middle["DeepSpeed, both"]
    ratio = middle["neoxkit"].wall / whole.wall
    print(f"\nneoxkit / DeepSpeed: wall {ratio:.3f}, CPU {middle['neoxkit'].cpu / whole.cpu:.3f}")
    return ratio


def main() -> None:
    """Save on two processes, go on on others, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--onto", type=int, default=1, help="Processes that go on.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="Where to write; the system's folder unless given.")
    parser.add_argument("--check", action="store_true", help="Fail unless neoxkit is the quicker one.")
    options = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="resume-", dir=options.folder))
    try:
        start(RANKS, write, options, base)
        start(options.onto, resume, options, base)
        told = json.loads((base / "taken.json").read_text())
        help_ = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--help"]
        idle = measure(help_, base / "theirs", base / "none", flushed=True)
    finally:
        shutil.rmtree(base)
    ratio = tell(told, idle, options)
    if options.check:
        assert ratio < 1, ratio


if __name__ == "__main__":
    main()

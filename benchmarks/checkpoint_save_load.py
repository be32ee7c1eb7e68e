"""Save and load of a checkpoint, checksums included, against the bare disk.

Save: Writer, from tensors in memory to a committed checkpoint, against one file of the same bytes,
written in the chunks that are fastest here, and flushed. Load: every tensor read from the disk (not
from the system's cache) and checked, against the same bytes read by the same calls into memory of the same sizes
without a check. The two are done in turn, in an even number of rounds that swap which goes first (a
disk that lends speed in bursts serves the first better), and the geometric mean of the rounds' ratios
is what counts. Needs a quiet machine.

    python benchmarks/checkpoint_save_load.py --gigabytes 1 --rounds 6
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from neoxkit.checkpoint.dtypes import octets
from neoxkit.checkpoint.raw_io import CHUNK, InputFile
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.checkpoint.writer import Writer, cut
from neoxkit.config.model import ModelConfig
from neoxkit.mesh import Mesh
from neoxkit.spec import Axis, Split, TensorSpec, whole

CONFIG = ModelConfig.model_validate(
    {"family": "llama", "depth": 1, "width": 2048, "vocab": 49152, "context": 2048, "mixer": {"heads": 16}}
)


def model(gigabytes: float) -> dict[str, torch.Tensor]:
    """bf16 tensors of the shapes of a 1B-parameter model, as many layers as fill the size."""
    shapes = {"model/embed.weight": (49152, 2048)}
    size, layer = 49152 * 2048 * 2, 0
    while size < gigabytes * 1e9:
        for part, shape in (
            ("norm1.weight", (2048,)),
            *((f"attn.{part}.weight", (2048, 2048)) for part in "qkvo"),
            *((f"mlp.{part}.weight", (8192, 2048)) for part in ("gate", "up")),
            ("mlp.down.weight", (2048, 8192)),
        ):
            shapes[f"model/layers.{layer}.{part}"] = shape
            size += 2 * int(np.prod(shape))
        layer += 1
    seed = np.random.default_rng(0)
    return {
        name: torch.from_numpy(seed.integers(0, 1 << 16, shape, np.uint16)).view(torch.bfloat16)
        for name, shape in shapes.items()
    }


def save(tensors: dict[str, torch.Tensor], folder: Path, tp: int) -> None:
    """A committed checkpoint at `folder`."""
    specs = {}
    for name, value in tensors.items():
        dim = 1 if name.endswith(("attn.o.weight", "mlp.down.weight")) else 0
        splits = (Split(dim, Axis.TP),) if value.dim() == 2 else ()
        specs[name] = TensorSpec(name.partition("/")[2], tuple(value.shape), splits)
    parts = cut(specs, dict.fromkeys(specs, "BF16"), Mesh(tp=tp))
    with Writer(folder, parts, config=CONFIG, mesh={"tp": tp}) as writer:
        for name, value in tensors.items():
            writer.write(name, whole(tuple(value.shape)), value)
        writer.commit()


def raw_save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """The same bytes in one file, on stable storage."""
    with path.open("wb", buffering=0) as file:
        for value in tensors.values():
            data = memoryview(octets(value))
            for first in range(0, len(data), CHUNK):
                file.write(data[first : first + CHUNK])
        os.fsync(file.fileno())


def load(folder: Path) -> None:
    """Every tensor, checked."""
    with Checkpoint.open(folder) as checkpoint:
        for name in checkpoint.names():
            checkpoint.read(name)


def raw_load(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """The same bytes into memory of the same sizes, had in the same way, not checked."""
    file, at = InputFile(path), 0
    for value in tensors.values():
        data = np.empty(value.numel() * 2, np.uint8)
        file.read(data, at)
        at += data.size
    file.close()


def forget(path: Path) -> None:
    """Drop a file, or a folder's files, from the system's cache."""
    for each in [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]:
        fd = os.open(each, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def timed(act: Callable[[], None]) -> tuple[float, float]:
    """Wall and CPU seconds of an act."""
    wall, cpu = time.perf_counter(), time.process_time()
    act()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(gigabytes: float, rounds: int, tp: int, base: Path) -> dict[str, object]:
    """Median times over rounds, and the mean of raw time / our time."""
    tensors = model(gigabytes)
    size = sum(value.numel() * 2 for value in tensors.values())
    taken: dict[str, list[tuple[float, float]]] = {"raw save": [], "save": [], "raw load": [], "load": []}
    folder, path = base / "step-00000001", base / "raw"
    for number in range(rounds + 1):  # the first round warms up
        shutil.rmtree(folder, ignore_errors=True)
        path.unlink(missing_ok=True)
        os.sync()
        acts: list[tuple[str, Callable[[], None]]] = [
            ("raw save", lambda: raw_save(tensors, path)),
            ("save", lambda: save(tensors, folder, tp)),
            ("raw load", lambda: raw_load(tensors, path)),
            ("load", lambda: load(folder)),
        ]
        pairs = [acts[:2], acts[2:]]
        for pair in pairs:
            for name, act in pair if number % 2 else reversed(pair):
                os.sync()
                forget(path), forget(folder)  # memory is in the same state before each
                seconds = timed(act)
                if number:
                    taken[name].append(seconds)
    found: dict[str, object] = {"gigabytes": size / 1e9, "rounds": rounds, "tp": tp}
    for name, each in taken.items():
        found[f"{name} s"] = statistics.median(wall for wall, _ in each)
        found[f"{name} CPU s"] = statistics.median(cpu for _, cpu in each)
    for name in ("save", "load"):
        ratios = [raw / ours for (raw, _), (ours, _) in zip(taken[f"raw {name}"], taken[name], strict=True)]
        found[f"{name} / raw speed"] = statistics.geometric_mean(ratios)
        found[f"{name} / raw speed, each round"] = [round(ratio, 3) for ratio in ratios]
    return found


def main() -> None:
    """Print the figures; fail when save or load falls under 0.9 of the bare disk's speed and --check is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=6, help="an even number")
    parser.add_argument("--tp", type=int, default=1, help="cut the checkpoint for this tensor parallel size")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder when left out")
    parser.add_argument("--json", action="store_true", help="one JSON object, and nothing else")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a ratio is under 0.9")
    given = parser.parse_args()
    if given.rounds < 2 or given.rounds % 2:
        parser.error("--rounds must be even")
    with tempfile.TemporaryDirectory(dir=given.folder) as base:
        found = measure(given.gigabytes, given.rounds, given.tp, Path(base))
    if given.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:30} {value:.3f}" if isinstance(value, float) else f"{name:30} {value}")
    if given.check and min(float(str(found[f"{name} / raw speed"])) for name in ("save", "load")) < 0.9:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

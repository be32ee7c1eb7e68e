"""Import and export of a large model, against `cp` and fsync of the same bytes, and against transformers.

A random bf16 model is made on disk. Then, in turn, in several rounds, each in a process of its own
and from a cold cache: `cp` and fsync of the model, `neoxkit import` of it, `cp` and fsync of the
checkpoint, `neoxkit export` of it, and transformers' from_pretrained and save_pretrained of the
model, also flushed. Wall time is that of the whole process, with what it takes to start: the median of the rounds, of
which the first does not count. Peak memory is the highest of them; a ratio is the median of each
round's. What was exported is compared with the model, bit for bit.

    python benchmarks/convert.py --billions 1.5 --rounds 5
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from neoxkit.checkpoint.checksum import crc64nvme
from neoxkit.checkpoint.safetensors_file import build_header, read_header
from neoxkit.families import FAMILIES
from neoxkit.families.schema import expand
from neoxkit.families.spelling import read_config
from neoxkit.nn.decoder import specs

WALL, MEMORY = 1.5, 600
"""The most that import and export may take: times `cp` and fsync, and MB."""

SHARD = 2_000_000_000
BLOCK = 16 << 20

TRANSFORMERS = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
model.save_pretrained(sys.argv[2])
"""


LAUNCHER = """
import json, os, subprocess, sys, time
begun = time.perf_counter()
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
wall = time.perf_counter() - begun
print(json.dumps([os.waitstatus_to_exitcode(status), wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss]))
"""
"""Runs and measures a command. A small process has to: a child's peak memory begins at what its parent holds."""


@dataclass(frozen=True)
class Taken:
    """What one process took: seconds of wall and CPU time, MB of memory at its peak."""

    wall: float
    cpu: float
    memory: float


def model_config(family: str, billions: float) -> Any:
    """A transformers configuration of about so many parameters: the layers of a 1B model, or half as wide."""
    import transformers

    width = 2048 if billions >= 1 else 1024
    sizes = {"hidden_size": width, "num_attention_heads": width // 128, "max_position_embeddings": 2048}
    vocab = 50304 if family == "gpt_neox" else 32000
    if family == "gpt_neox":
        layer = 12 * width * width
        kind, rest = transformers.GPTNeoXConfig, {"intermediate_size": 4 * width}
    else:
        layer = (2 * width + 2 * width // 4) * width + 3 * (11 * width // 4) * width
        kind, rest = (
            transformers.LlamaConfig,
            {"intermediate_size": 11 * width // 4, "num_key_value_heads": width // 512},
        )
    depth = max(1, round((billions * 1e9 - 2 * vocab * width) / layer))
    return kind(**sizes, **rest, vocab_size=vocab, num_hidden_layers=depth, dtype="bfloat16")


def theirs(family: str, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a model's files and their shapes. (In memory, transformers 5 calls some of them otherwise.)"""
    import torch

    ours = read_config(FAMILIES[family], config)
    known = specs(ours)
    found: dict[str, tuple[int, ...]] = {}
    for rule in expand(FAMILIES[family], ours):
        parts = [torch.empty(known[name].shape, device="meta") for name in rule.ours]
        found |= {key: tuple(t.shape) for key, t in zip(rule.theirs, rule.layout.join(parts), strict=True)}
    return found


def make(folder: Path, family: str, billions: float) -> int:
    """Write a random model, a block at a time; returns its parameters."""
    config = model_config(family, billions)
    config.architectures = [FAMILIES[family].architecture]
    config.save_pretrained(folder)
    shapes = theirs(family, config.to_dict())
    shards: list[dict[str, tuple[str, tuple[int, ...]]]] = [{}]
    size = 0
    for key, shape in shapes.items():
        bytes_ = 2 * int(np.prod(shape))
        if size and size + bytes_ > SHARD:
            shards.append({})
            size = 0
        shards[-1][key] = "BF16", shape
        size += bytes_
    names = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    seed = np.random.default_rng(0)
    for name, tensors in zip(names, shards, strict=True):
        head, header = build_header(tensors, {"format": "pt"})
        with (folder / name).open("wb") as file:
            file.write(head)
            left = header.size - len(head)
            while left:
                bits = seed.integers(0, 1 << 16, min(left, BLOCK) // 2, np.uint16)
                file.write((bits & 0x80FF) | 0x3C00)  # either sign, 2^-7 to 2^-5
                left -= 2 * len(bits)
    places = {key: name for name, tensors in zip(names, shards, strict=True) for key in tensors}
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    index = {"metadata": {"total_size": 2 * count}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    flush(folder)
    return count


def files(folder: Path) -> list[Path]:
    """Every file below a folder."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def flush(folder: Path) -> None:
    """Put every file of a folder, and the names in it, on stable storage."""
    for path in [*files(folder), *(each for each in folder.rglob("*") if each.is_dir()), folder, folder.parent]:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def forget(folder: Path) -> None:
    """Drop a folder's files from the system's cache."""
    for path in files(folder):
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def measure(command: Sequence[str], source: Path, result: Path, flushed: bool) -> Taken:
    """Run a process from a cold cache; `flushed` says whether what it writes is on stable storage when it ends."""
    shutil.rmtree(result, ignore_errors=True)
    os.sync()
    forget(source)
    done = subprocess.run([sys.executable, "-S", "-c", LAUNCHER, *command], capture_output=True, text=True, check=True)
    code, wall, cpu, memory = json.loads(done.stdout)
    if code:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    begun = time.perf_counter()
    if not flushed:
        flush(result)
    return Taken(wall + time.perf_counter() - begun, cpu, memory / 1e3)


def same(one: Path, other: Path) -> bool:
    """Whether two models hold the same tensors, bit for bit."""
    return sums(one) == sums(other)


def sums(folder: Path) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """Dtype, shape and checksum of each tensor of a model."""
    found = {}
    for path in folder.glob("*.safetensors"):
        data = np.memmap(path, mode="r", dtype=np.uint8)
        for key, entry in read_header(path).entries.items():
            found[key] = entry.dtype, entry.shape, crc64nvme(data[entry.first : entry.last])
    return found


def rounds_of(base: Path, rounds: int, peer: bool) -> dict[str, list[Taken]]:
    """Each act, so many times, in turn."""
    model, checkpoint, result = base / "model", base / "checkpoint", base / "result"
    neoxkit = [sys.executable, "-m", "neoxkit"]
    copy = ["cp", "-r", "--reflink=never"]
    acts: dict[str, tuple[list[str], Path, Path, bool]] = {
        "cp model": ([*copy, str(model), str(result)], model, result, False),
        "import": ([*neoxkit, "import", str(model), str(checkpoint)], model, checkpoint, True),
        "cp checkpoint": ([*copy, str(checkpoint), str(result)], checkpoint, result, False),
        "export": ([*neoxkit, "export", str(checkpoint), str(result)], checkpoint, result, True),
    }
    if peer:
        command = [sys.executable, "-c", TRANSFORMERS, str(model), str(result)]
        acts["transformers"] = (command, model, result, False)
    taken: dict[str, list[Taken]] = {name: [] for name in acts}
    pairs = [["cp model", "import"], ["cp checkpoint", "export"], ["transformers"][: int(peer)]]
    for number in range(rounds + 1):  # the first round warms up: memory that the machine has not used yet is slow
        for name in (name for pair in pairs for name in (pair if number % 2 == 0 else reversed(pair))):
            one = measure(*acts[name])
            taken[name] += [one] if number else []
            print(f"round {number}: {name:14} {one.wall:7.2f} s {one.memory:7.0f} MB", file=sys.stderr)
            if name == "export" and not number and not same(model, result):
                raise SystemExit("what was exported is not the model that was imported")
    shutil.rmtree(result, ignore_errors=True)
    return taken


def machine() -> dict[str, str]:
    """What this ran on, and with."""
    cpu = platform.processor() or platform.machine()
    about = Path("/proc/cpuinfo")
    if about.is_file():
        cpu = next((line.partition(": ")[2] for line in about.read_text().splitlines() if "model name" in line), cpu)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    found = {"machine": f"{cpu}, {os.cpu_count()} CPUs, {memory:.0f} GB, {platform.system()} {platform.release()}"}
    found["python"] = platform.python_version()
    return found | {name: version(name) for name in ("neoxkit", "torch", "transformers", "safetensors")}


def summary(taken: dict[str, list[Taken]]) -> dict[str, dict[str, float]]:
    """The medians of each act; of import and export also the median ratio to `cp` of the same bytes."""
    found = {}
    for name, each in taken.items():
        found[name] = {
            "wall s": statistics.median(one.wall for one in each),
            "CPU s": statistics.median(one.cpu for one in each),
            "peak MB": max(one.memory for one in each),
        }
        plain = taken["cp checkpoint" if name == "export" else "cp model"]
        if not name.startswith("cp"):
            ratios = [one.wall / copied.wall for one, copied in zip(each, plain, strict=True)]
            found[name] |= {"/ cp": statistics.median(ratios), "/ cp, worst": max(ratios)}
    return found


def main() -> None:
    """Print the figures; with --check, fail when import or export takes more than it may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--billions", type=float, default=1.5, help="parameters of the model")
    parser.add_argument("--family", choices=("gpt_neox", "llama"), default="gpt_neox")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, help="where to write, with room for 3 models; a temporary one if left out"
    )
    parser.add_argument("--keep", action="store_true", help="keep the model and the checkpoint")
    parser.add_argument("--without-transformers", action="store_true", help="measure neoxkit and cp alone")
    parser.add_argument("--json", action="store_true", help="one JSON object, and nothing else, on standard output")
    parser.add_argument("--check", action="store_true", help=f"exit with 1 above {WALL} times cp, or {MEMORY} MB")
    given = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="convert-", dir=given.folder))
    try:
        count = make(base / "model", given.family, given.billions)
        size = sum(path.stat().st_size for path in files(base / "model"))
        found = summary(rounds_of(base, given.rounds, not given.without_transformers))
    finally:
        if given.keep:
            print(f"kept {base}", file=sys.stderr)
        else:
            shutil.rmtree(base)
    about = {"family": given.family, "parameters": count, "bytes": size, "rounds": given.rounds, **machine()}
    if given.json:
        print(json.dumps({**about, "figures": found}))
    else:
        for name, value in about.items():
            print(f"{name:14}{value:,}" if isinstance(value, int) else f"{name:14}{value}")
        print(f"\n{'':14}{'wall s':>9}{'CPU s':>9}{'peak MB':>9}{'/ cp':>9}")
        for name, row in found.items():
            ratio = f"{row['/ cp']:9.2f}" if "/ cp" in row else ""
            print(f"{name:14}{row['wall s']:9.2f}{row['CPU s']:9.2f}{row['peak MB']:9.0f}{ratio}")
    over = [n for n in ("import", "export") if found[n]["/ cp"] > WALL or found[n]["peak MB"] > MEMORY]
    if given.check and over:
        raise SystemExit(f"{' and '.join(over)}: over {WALL} times cp, or {MEMORY} MB")


if __name__ == "__main__":
    main()

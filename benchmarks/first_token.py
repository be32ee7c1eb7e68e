"""From the start of a process to its first token: `neoxkit generate` of a checkpoint in pieces, against transformers.

SmolLM2-135M and a random Llama of 1.5B parameters, both in bf16, are imported with their tensors cut for several
devices, and read whole (tp 1), or by several ranks. transformers reads its own folder with `from_pretrained`, loads
the tokenizer, and generates a token. Processes run one after another in turn, from a cold cache (the files are
dropped from the system's) and from a warm one; Python and its libraries are warm in both. A process waits until nobody
else uses the machine, and is repeated when somebody did meanwhile.

Told are seconds of wall time to the first token and to the end of the process, CPU seconds of all its processes, and
the peak memory (resident, files that are mapped included) of the largest process: in MB, as a multiple of the bytes
of the model that it holds (all, or a rank's part), and that without what the same command takes for a model of next
to nothing. The ratios are the medians of those of each round.

    python benchmarks/first_token.py [--models smollm2 llama] [--billions 1.5] [--rounds 5] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import quiet
from measuring import files, forget, machine
from models import make, make_tiny
from subjects import byte_tokenizer, imported, smollm2

PROMPT = "The capital of France is"
CUTS = {"smollm2": ({"tp": 3}, {"tp": 3, "pp": 2}), "llama": ({"tp": 2}, {"tp": 4})}
"""How models are cut; the first says also on how many ranks one is run. (SmolLM2 has 9 heads: nothing else divides.)"""
US, PEER, CACHES = "neoxkit", "transformers", ("cold", "warm")
TIME, MEMORY = 1.0, 1.1
"""Limits: of transformers' time to the first token, and of the model's bytes that a rank has."""

TRANSFORMERS = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
asked = tokenizer(sys.argv[2], return_tensors="pt", add_special_tokens=False)
found = model.generate(**asked, max_new_tokens=1, do_sample=False, pad_token_id=0, eos_token_id=None)
print(found[0, asked["input_ids"].shape[1] :].tolist(), flush=True)
"""

LAUNCHER = """
import json, os, select, subprocess, sys, time
def children(pid):
    try:
        found = open(f"/proc/{pid}/task/{pid}/children").read().split()
    except OSError:
        return []
    return found + [below for child in found for below in children(child)]
begun = time.perf_counter()
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE)
said, first, peaks, known, looks = b"", None, {}, [], 0
while True:
    if select.select([child.stdout], [], [], 0.02)[0]:
        piece = os.read(child.stdout.fileno(), 1 << 16)
        if not piece:
            break
        first, said = first or time.perf_counter() - begun, said + piece
    if looks % 10 == 0:
        known = children(child.pid)
    looks += 1
    for pid in known:
        try:
            lines = open(f"/proc/{pid}/status").read().split("VmHWM:")
            peaks[pid] = max(peaks.get(pid, 0), int(lines[1].split()[0]))
        except (OSError, IndexError):
            pass
_, status, usage = os.wait4(child.pid, 0)
wall, code = time.perf_counter() - begun, os.waitstatus_to_exitcode(status)
largest = max([usage.ru_maxrss, *peaks.values()])
print(json.dumps([code, first, wall, usage.ru_utime + usage.ru_stime, largest, said.decode()]))
"""
"""Runs a command and measures it and what it starts. A small process has to: a child's peak begins at its parent's."""


@dataclass(frozen=True)
class Taken:
    """What a command took: seconds to its first output, to its end and of CPU time; bytes at the peak; the tokens."""

    first: float
    wall: float
    cpu: float
    memory: float
    tokens: list[int]
    others: float = 0.0


@dataclass(frozen=True, eq=False)
class Start:
    """A way to a first token: a command, the files that it reads, and on how many ranks."""

    name: str
    command: list[str]
    reads: Path
    ranks: int = 1


def ours(source: Path, ranks: int = 1) -> list[str]:
    """`neoxkit generate`."""
    command = [sys.executable, "-m", "neoxkit", "generate", str(source), "--prompt", PROMPT, "--max-tokens", "1"]
    return [*command, "--ignore-eos", "--json", "--tp", str(ranks)]


def theirs(source: Path) -> list[str]:
    """transformers."""
    return [sys.executable, "-c", TRANSFORMERS, str(source), PROMPT]


def run(start: Start) -> Taken:
    """Run a command. Exits where it fails."""
    command = [sys.executable, "-S", "-c", LAUNCHER, *start.command]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    code, first, wall, cpu, memory, said = json.loads(done.stdout)
    if code:
        raise SystemExit(f"{' '.join(start.command)} failed:\n{done.stderr[-2000:]}")
    told = json.loads(said)
    return Taken(first, wall, cpu, memory * 1024, told if start.name == PEER else told["tokens"])


def measured(start: Start, cold: bool, options: argparse.Namespace) -> Taken:
    """Run a command from a cold or warm cache, until others did not disturb."""

    def act() -> Taken:
        if cold:
            os.sync()
            forget(start.reads)
        else:
            for path in files(start.reads):
                path.read_bytes()
        return run(start)

    found, others = quiet.undisturbed(act, lambda each: each.cpu, options.most_others, options.patience)
    return Taken(found.first, found.wall, found.cpu, found.memory, found.tokens, others)


def starts(name: str, base: Path, options: argparse.Namespace) -> tuple[list[Start], int]:
    """All ways to begin with a model, and its bytes."""
    if name == "smollm2":
        model = smollm2(base).theirs
    else:
        model = base / name
        make(model, "llama", options.billions)
        byte_tokenizer(model)
    size = sum(path.stat().st_size for path in files(model) if path.suffix == ".safetensors")
    found = []
    for mesh in CUTS[name]:
        path = base / "-".join([name, *(f"{axis}{count}" for axis, count in mesh.items())])
        imported(model, path, *(f"--{axis}={count}" for axis, count in mesh.items()))
        found.append(Start(f"neoxkit, {math.prod(mesh.values())} pieces", ours(path), path))
    ranks = CUTS[name][0]["tp"]
    found.append(Start(f"neoxkit, {ranks} ranks", ours(path, ranks), path, ranks))
    return [*found, Start(PEER, theirs(model), model)], size


def nothing(base: Path) -> dict[int, float]:
    """Bytes at the peak of the same commands with a tiny model: by ranks; 0 is transformers."""
    make_tiny(base / "tiny", "llama")
    byte_tokenizer(base / "tiny")
    tiny = imported(base / "tiny", base / "tiny-ours")
    found = {ranks: run(Start(US, ours(tiny, ranks), tiny)).memory for ranks in (1, 2)}
    return found | {0: run(Start(PEER, theirs(base / "tiny"), base / "tiny")).memory}


def rows(taken: dict[Start, list[Taken]], size: int, empty: dict[int, float]) -> list[dict[str, Any]]:
    """The table of one model and cache."""
    peer = next(turns for start, turns in taken.items() if start.name == PEER)
    found = []
    for start, turns in taken.items():
        row: dict[str, Any] = {"name": start.name}
        for what in ("first", "wall", "cpu", "others"):
            row[what] = statistics.median(getattr(turn, what) for turn in turns)
        memory, part = statistics.median(turn.memory for turn in turns), size / start.ranks
        base = empty[0 if start.name == PEER else min(start.ranks, 2)]
        row |= {"memory": memory, "model": memory / part, "above": (memory - base) / part}
        pairs = list(zip(turns, peer, strict=True))
        row["ratio"] = statistics.median(mine.first / its.first for mine, its in pairs)
        row["cpu ratio"] = statistics.median(mine.cpu / its.cpu for mine, its in pairs)
        row["alike"] = all(mine.tokens == its.tokens for mine, its in pairs)
        found.append(row)
    return found


def show(found: list[dict[str, Any]]) -> None:
    """Print a table."""
    print(f"{'':20}{'first s':>8}{'end s':>7}{'CPU s':>7}{'others':>7}{'peak MB':>8}{'/model':>7}", end="")
    print(f"{'above start-up':>15}{'/' + PEER:>14}{'by CPU':>7}  same token")
    for row in found:
        print(f"{row['name']:20}{row['first']:8.2f}{row['wall']:7.2f}{row['cpu']:7.2f}{row['others']:7.2f}", end="")
        print(f"{row['memory'] / 1e6:8.0f}{row['model']:7.2f}{row['above']:15.2f}", end="")
        print(f"{row['ratio']:14.2f}{row['cpu ratio']:7.2f}  {'yes' if row['alike'] else 'no'}")


def main() -> None:
    """Make the models, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=CUTS, default=list(CUTS))
    parser.add_argument("--billions", type=float, default=1.5, help="parameters of the random Llama")
    parser.add_argument("--caches", nargs="+", choices=CACHES, default=list(CACHES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--most-others", type=float, default=0.15, help="CPUs that others may use meanwhile")
    parser.add_argument("--patience", type=float, default=60, help="seconds to wait for others before each")
    parser.add_argument("--folder", type=Path, help="where to write, with room for 3 models")
    parser.add_argument("--json", action="store_true", help="one JSON object, and no tables, on standard output")
    parser.add_argument(
        "--check", action="store_true", help=f"fail above {TIME} times {PEER}, or {MEMORY} of the model"
    )
    options = parser.parse_args()
    told: dict[str, Any] = {"machine": machine(), "rounds": options.rounds}
    if not options.json:
        print("\n".join(f"{name:14}{value}" for name, value in machine().items()))
    over = []
    base = Path(tempfile.mkdtemp(prefix="first-token-", dir=options.folder))
    try:
        empty = nothing(base)
        for model in options.models:
            ways, size = starts(model, base, options)
            for cache in options.caches:
                taken: dict[Start, list[Taken]] = {start: [] for start in ways}
                for number in range(options.rounds):
                    for start in ways if number % 2 else ways[::-1]:
                        taken[start].append(measured(start, cache == "cold", options))
                found = told[f"{model}, {cache}"] = rows(taken, size, empty)
                over += [
                    f"{row['name']}, {model}, {cache}" for row in found if row["ratio"] > TIME or row["above"] > MEMORY
                ]
                if not options.json:
                    print(f"\n{model}, {size / 1e6:.0f} MB, {cache} cache: medians of {options.rounds} rounds")
                    show(found)
    finally:
        shutil.rmtree(base)
    if options.json:
        print(json.dumps(told))
    if options.check and over:
        raise SystemExit(f"over {TIME} times {PEER}, or {MEMORY} of the model: {'; '.join(over)}")


if __name__ == "__main__":
    main()

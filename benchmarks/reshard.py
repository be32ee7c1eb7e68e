"""Import, export and reshard of a large model: CPU time, memory and wall time, against `cp` and torch's consolidation.

A random bf16 model is made on disk and imported, cut for tensor parallel 1 and 4 and for 2 x 2 with
pipeline stages. Then, in turn, in several rounds, each in a process of its own and from a cold
cache to stable storage: every act of neoxkit, `cp` and fsync of what it reads, and
torch.distributed.checkpoint's consolidate_safetensors_files, which joins the same 4 parts as
`reshard` from 4 to 1. Start-up is the same act on a model of a few thousand parameters: CPU seconds
and memory are told above it. After the first round every tensor's checksum is compared.

    python benchmarks/reshard.py --billions 1.5 --rounds 5
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from measuring import Taken, files, forget, machine, measure
from models import make, make_tiny, sums

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.checkpoint.safetensors_file import build_header, read_header
from neoxkit.spec import Box

WALL, CPU, MEMORY = 1.5, 0.4, 400
"""The most that an act may take: times `cp` and fsync, CPU seconds for each GB, and MB of memory above start-up."""

CONSOLIDATE = """
import sys
from pathlib import Path
from safetensors import safe_open
from torch.distributed.checkpoint._consolidate_hf_safetensors import consolidate_safetensors_files
source, result = map(Path, sys.argv[1:])
result.mkdir()
names = {key for file in source.iterdir() for key in safe_open(file, "pt").keys()}
consolidate_safetensors_files(str(source), str(result), dict.fromkeys(names, 1))
"""


@dataclass(frozen=True)
class Act:
    """A command that reads one folder and writes another. `bytes` are those that it reads."""

    name: str
    command: tuple[str, ...]
    source: Path
    flushed: bool = True


def neoxkit(*arguments: str | Path) -> tuple[str, ...]:
    """A command of neoxkit, in the interpreter that runs this."""
    return (sys.executable, "-m", "neoxkit", *map(str, arguments))


def prepare(base: Path) -> None:
    """The cuts of the model in `base` that the acts begin with."""
    cuts = {"tp1": (), "tp4": ("--tp", "4"), "tp2pp2": ("--tp", "2", "--pp", "2")}
    for name, cut in cuts.items():
        subprocess.run(neoxkit("import", base / "model", base / name, *cut), check=True, capture_output=True)


def acts_of(base: Path, result: Path) -> list[Act]:
    """What is measured of the model in `base`."""
    return [
        Act("import, tp 4", neoxkit("import", base / "model", result, "--tp", "4"), base / "model"),
        Act("reshard, tp 1 to 4", neoxkit("reshard", base / "tp1", result, "--tp", "4"), base / "tp1"),
        Act("reshard, tp 4 to 1", neoxkit("reshard", base / "tp4", result), base / "tp4"),
        Act("reshard, tp 2 pp 2 to tp 4", neoxkit("reshard", base / "tp2pp2", result, "--tp", "4"), base / "tp2pp2"),
        Act("export, from tp 4", neoxkit("export", base / "tp4", result), base / "tp4"),
    ]


def as_torch_writes(checkpoint: Path, folder: Path) -> None:
    """The same parts as torch.distributed.checkpoint's Hugging Face writer leaves them: a header of its own."""
    folder.mkdir()
    manifest = Checkpoint.open(checkpoint).manifest
    inside: dict[str, dict[str, tuple[str, Box]]] = {}
    for tensor, entry in manifest.tensors.items():
        for piece in entry.pieces:
            inside.setdefault(manifest.files[piece.file].path, {})[piece.key] = tensor, piece.box
    for number, (name, pieces) in enumerate(sorted(inside.items()), 1):
        header = read_header(checkpoint / name)
        tensors = {pieces[key][0]: (entry.dtype, entry.shape) for key, entry in header.entries.items()}
        offsets = {pieces[key][0]: {"saved_offsets": [start for start, _ in pieces[key][1]]} for key in header.entries}
        about = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(offsets)}
        head, _ = build_header(tensors, about)
        with (folder / f"shard-{number:05d}-model-00001-of-00001.safetensors").open("wb") as made:
            made.write(head)
            with (checkpoint / name).open("rb") as data:
                data.seek(min(entry.first for entry in header.entries.values()))
                shutil.copyfileobj(data, made, 16 << 20)


def check(act: Act, base: Path, result: Path) -> None:
    """Compare what an act made, tensor by tensor."""
    if (result / "manifest.json").is_file():
        made, wanted = Checkpoint.open(result).fingerprint, Checkpoint.open(base / "tp1").fingerprint
        assert made == wanted, f"{act.name}: other tensors"
        subprocess.run(neoxkit("verify", result), check=True, capture_output=True)
    elif act.name.startswith("export"):
        assert sums(result) == sums(base / "model"), f"{act.name}: other tensors"


def measured(base: Path, rounds: int, peer: bool) -> tuple[dict[str, list[Taken]], dict[str, list[Taken]]]:
    """Each act in turn, so many times, and `cp` of what it reads beside it."""
    result = base / "result"
    acts = acts_of(base, result)
    if peer:
        as_torch_writes(base / "tp4", base / "torch")
        command = (sys.executable, "-c", CONSOLIDATE, str(base / "torch"), str(result))
        acts.append(Act("torch consolidates 4", command, base / "torch", flushed=False))
    taken: dict[str, list[Taken]] = {act.name: [] for act in acts}
    copies: dict[str, list[Taken]] = {act.name: [] for act in acts}
    for number in range(rounds + 1):  # the first round warms up: memory that the machine has not used yet is slow
        for act in acts:
            copy = Act("cp", ("cp", "-r", "--reflink=never", str(act.source), str(result)), act.source, flushed=False)
            for each in (act, copy) if number % 2 else (copy, act):
                one = measure(each.command, each.source, result, each.flushed)
                print(f"round {number}: {act.name:28}{' cp' if each is copy else '':4}{one}", file=sys.stderr)
                if number:
                    (copies if each is copy else taken)[act.name].append(one)
                elif each is act:
                    check(act, base, result)
    shutil.rmtree(result, ignore_errors=True)
    return taken, copies


def start_up(base: Path, acts: list[str], rounds: int) -> dict[str, Taken]:
    """What the same acts take of a tiny model: the least CPU time, and the least memory."""
    result = base / "result"
    found = {}
    for act in acts_of(base, result):
        each = [measure(act.command, act.source, result, True) for _ in range(max(3, rounds))]
        found[act.name] = Taken(*(min(getattr(one, name) for one in each) for name in ("wall", "cpu", "memory")))
    shutil.rmtree(result, ignore_errors=True)
    if "torch consolidates 4" in acts:
        command = (sys.executable, "-c", "import torch.distributed.checkpoint")
        each = [measure(command, base, result, True) for _ in range(max(3, rounds))]
        found["torch consolidates 4"] = Taken(
            *(min(getattr(one, name) for one in each) for name in ("wall", "cpu", "memory"))
        )
    return found


def figures(billions: float, family: str, folder: Path | None, rounds: int, peer: bool) -> dict[str, dict[str, float]]:
    """A row of figures for each act on a model of so many parameters."""
    base = Path(tempfile.mkdtemp(prefix="reshard-", dir=folder))
    try:
        make_tiny(base / "tiny" / "model", family)
        prepare(base / "tiny")
        make(base / "model", family, billions)
        prepare(base)
        size = sum(path.stat().st_size for path in files(base / "tp1")) / 1e9
        taken, copies = measured(base, rounds, peer)
        begun = start_up(base / "tiny", list(taken), rounds)
    finally:
        forget(base)
        shutil.rmtree(base)
    rows = {}
    for name, each in taken.items():
        rows[name] = {
            "wall s": statistics.median(one.wall for one in each),
            "/ cp": statistics.median(a.wall / b.wall for a, b in zip(each, copies[name], strict=True)),
            "CPU s/GB": (statistics.median(one.cpu for one in each) - begun[name].cpu) / size,
            "CPU s, start": begun[name].cpu,
            "peak MB": max(one.memory for one in each),
            "above start": max(one.memory for one in each) - begun[name].memory,
        }
    return rows


def main() -> None:
    """Print the figures; with --check, fail when an act of neoxkit takes more than it may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--billions", type=float, nargs="+", default=[1.5], help="parameters of the models")
    parser.add_argument("--family", choices=("gpt_neox", "llama"), default="gpt_neox")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write, with room for 6 models (default: temporary)")
    parser.add_argument("--without-torch", action="store_true", help="measure neoxkit and cp alone")
    parser.add_argument("--json", action="store_true", help="one JSON object, and nothing else, on standard output")
    parser.add_argument("--check", action="store_true", help="exit with 1 above the limits")
    given = parser.parse_args()
    found = {
        str(billions): figures(billions, given.family, given.folder, given.rounds, not given.without_torch)
        for billions in given.billions
    }
    about = {"family": given.family, "rounds": given.rounds, **machine()}
    if given.json:
        print(json.dumps({**about, "figures": found}))
    else:
        for name, value in about.items():
            print(f"{name:14}{value}")
        for billions, rows in found.items():
            columns = list(next(iter(rows.values())))
            print(f"\n{billions + 'B':28}" + "".join(f"{column:>14}" for column in columns))
            for name, row in rows.items():
                print(f"{name:28}" + "".join(f"{value:14.2f}" for value in row.values()))
    over = [
        f"{name} of {billions}B"
        for billions, rows in found.items()
        for name, row in rows.items()
        if not name.startswith("torch") and (row["/ cp"] > WALL or row["CPU s/GB"] > CPU or row["above start"] > MEMORY)
    ]
    if given.check and over:
        raise SystemExit(f"{', '.join(over)}: over {WALL} times cp, {CPU} CPU s/GB, or {MEMORY} MB")


if __name__ == "__main__":
    main()

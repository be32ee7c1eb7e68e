"""How fast `verify` reads a large checkpoint, from memory and from the disk, and `diff` two by their manifests.

A random bf16 model is imported, and cut for tensor parallel 8. Then, in turn, in several rounds, each
in a process of its own: `neoxkit verify` of both, `cat` of the same files to nowhere, and
sha256sum of them; first with the files in memory, then with none of them. `neoxkit diff` compares the two
cuts. Start-up is `verify` of a model of a few thousand parameters: GB/s are told above it, the best
round's, since other work on the machine can only slow one down.

    python benchmarks/verify.py --billions 1.5 --rounds 5
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from measuring import LAUNCHER, Taken, files, forget, machine
from models import make, make_tiny

SPEED, DIFF = 3.0, 0.5
"""The least GB/s of `verify` from memory, and the most seconds of `diff`."""

CUTS = {"tp1": "1", "tp8": "8"}


def neoxkit(*arguments: str | Path) -> list[str]:
    """A command of neoxkit, in the interpreter that runs this."""
    return [sys.executable, "-m", "neoxkit", *map(str, arguments)]


def prepare(base: Path, tp: dict[str, str]) -> None:
    """Import the model in `base` for each of the cuts."""
    for name, ways in tp.items():
        command = neoxkit("import", base / "model", base / name, "--tp", ways, "--no-tokenizer")
        subprocess.run(command, check=True, capture_output=True)


def taken(command: list[str], folder: Path, warm: bool) -> Taken:
    """What a command takes that reads a folder, of which all or nothing is in memory."""
    if warm:
        subprocess.run(["cat", *map(str, files(folder))], check=True, stdout=subprocess.DEVNULL)
    else:
        forget(folder)
    launched = [sys.executable, "-S", "-c", LAUNCHER, *command]
    done = subprocess.run(launched, capture_output=True, text=True, check=True)
    code, wall, cpu, memory = json.loads(done.stdout)
    if code:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return Taken(wall, cpu, memory / 1e3)


def acts(base: Path) -> Iterator[tuple[str, list[str], Path]]:
    """What is measured: name, command, and the folder that it reads."""
    for name in CUTS:
        yield f"verify, tp {CUTS[name]}", neoxkit("verify", base / name), base / name
    plain = [str(path) for path in files(base / "tp1")]
    yield "cat", ["cat", *plain], base / "tp1"
    yield "sha256sum", ["sha256sum", *plain], base / "tp1"


def best(each: list[Taken]) -> Taken:
    """The least of wall and of CPU time, the most of memory."""
    return Taken(min(one.wall for one in each), min(one.cpu for one in each), max(one.memory for one in each))


def measured(base: Path, rounds: int) -> tuple[dict[str, dict[str, float]], float]:
    """A row of figures for each act, and the seconds of `diff`."""
    size = sum(path.stat().st_size for path in files(base / "tp1")) / 1e9
    begun = best([taken(neoxkit("verify", base / "tiny" / "tp1"), base / "tiny", True) for _ in range(rounds)])
    rows: dict[str, dict[str, float]] = {}
    for warm in (True, False):
        found: dict[str, list[Taken]] = {}
        for number in range(rounds):
            for name, command, folder in acts(base):
                one = taken(command, folder, warm)
                found.setdefault(name, []).append(one)
                print(f"round {number}: {name:14} {'warm' if warm else 'cold'} {one}", file=sys.stderr)
        for name, each in found.items():
            least = best(each)
            start = begun if name.startswith("verify") else Taken(0, 0, 0)
            row = rows.setdefault(name, {})
            kind = "warm" if warm else "cold"
            row[f"{kind} GB/s"] = size / max(least.wall - start.wall, 1e-9)
            row[f"{kind} s"] = least.wall
            row[f"{kind} CPU s/GB"] = (least.cpu - start.cpu) / size
            row["peak MB"] = max(row.get("peak MB", 0), least.memory)
    rows["start-up"] = {"warm s": begun.wall, "peak MB": begun.memory}
    diff = best([taken(neoxkit("diff", base / "tp1", base / "tp8"), base / "tiny", True) for _ in range(rounds)])
    return rows, diff.wall


def main() -> None:
    """Print the figures; with --check, fail when `verify` or `diff` is slower than it may be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--billions", type=float, default=1.5, help="parameters of the model")
    parser.add_argument("--family", choices=("gpt_neox", "llama"), default="gpt_neox")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write, with room for 3 models (default: temporary)")
    parser.add_argument("--json", action="store_true", help="one JSON object, and nothing else, on standard output")
    parser.add_argument("--check", action="store_true", help=f"exit with 1 below {SPEED} GB/s, or above {DIFF} s")
    given = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="verify-", dir=given.folder))
    try:
        make_tiny(base / "tiny" / "model", given.family)
        prepare(base / "tiny", {"tp1": "1"})
        count = make(base / "model", given.family, given.billions)
        prepare(base, CUTS)
        shutil.rmtree(base / "model")
        rows, diff = measured(base, given.rounds)
    finally:
        shutil.rmtree(base)
    about = {"family": given.family, "parameters": count, "rounds": given.rounds, **machine()}
    if given.json:
        print(json.dumps({**about, "figures": rows, "diff s": diff}))
    else:
        for name, value in about.items():
            print(f"{name:14}{value}")
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        print("\n" + " " * 14 + "".join(f"{column:>15}" for column in columns))
        for name, row in rows.items():
            print(f"{name:14}" + "".join(f"{row[each]:15.2f}" if each in row else " " * 15 for each in columns))
        print(f"\ndiff of the two cuts: {diff:.2f} s")
    if given.check and (rows["verify, tp 1"]["warm GB/s"] < SPEED or diff > DIFF):
        raise SystemExit(f"below {SPEED} GB/s, or diff above {DIFF} s")


if __name__ == "__main__":
    main()

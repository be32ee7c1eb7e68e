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
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from measuring import Taken, files, machine, measure
from models import make, same

WALL, MEMORY = 1.5, 600
"""The most that import and export may take: times `cp` and fsync, and MB."""

TRANSFORMERS = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
model.save_pretrained(sys.argv[2])
"""


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

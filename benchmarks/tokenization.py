"""How fast `neoxkit data tokenize` is, beside the library's own loop, which is the limit.

The text is the source of Python's own library, in JSON lines: 20 MB of it, and more by copies in which each
name is another, so that no cache knows them. In turn, in several rounds, each in a process of its own: a bare
loop of `encode_batch_fast` over the parsed documents, with as many threads as there are workers, which writes
nothing; `neoxkit data tokenize`; and, of an environment that has it, datatrove's tokenizer. Times are of
encoding alone, as each tells of itself, without start-up. The best round's times are printed, and the median of the
rounds' ratios: each is of runs that followed one another, in one order and then in the other, for the speed of a shared
machine changes by more than what is measured. CPU seconds are of the whole process, start-up and all.

    python benchmarks/tokenization.py --tokenizer 20B_tokenizer.json --megabytes 20 --megabytes 200
    python benchmarks/tokenization.py --datatrove VENV
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

from measuring import LAUNCHER, machine

LIMIT = 0.9
"""The least share of the bare loop's speed."""

BARE = """
import json, os, sys, time
path, tokenizer, threads = sys.argv[1:]
os.environ["RAYON_NUM_THREADS"] = threads
os.environ["TOKENIZERS_PARALLELISM"] = "true" if int(threads) > 1 else "false"
import tokenizers
encode = tokenizers.Tokenizer.from_file(tokenizer).encode_batch_fast
with open(path, "rb") as lines:
    texts = [json.loads(line)["text"] for line in lines]
begun, tokens, batch, size = time.perf_counter(), 0, [], 0
for number, text in enumerate(texts, start=1):
    batch.append(text)
    size += len(text)
    if size >= 1 << 18 or number == len(texts):
        tokens += sum(len(each.ids) for each in encode(batch, add_special_tokens=False))
        batch, size = [], 0
print(json.dumps({"seconds": time.perf_counter() - begun, "tokens": tokens}), file=sys.stderr)
"""

DATATROVE = """
import json, os, shutil, sys, time
path, tokenizer, out = sys.argv[1:]
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import MegatronDocumentTokenizer
shutil.rmtree(out, ignore_errors=True)
folder, name = os.path.split(path)
steps = [
    JsonlReader(folder, glob_pattern=name),
    MegatronDocumentTokenizer(out, tokenizer_name_or_path=tokenizer, eos_token="<|endoftext|>", batch_size=1000),
]
begun = time.perf_counter()
LocalPipelineExecutor(steps, tasks=1, logging_dir=out + "/logs").run()
print(json.dumps({"seconds": time.perf_counter() - begun}), file=sys.stderr)
"""


def library() -> Iterator[str]:
    """The source files of Python's own library."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if "site-packages" in path.parts:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if text:
            yield text


def write(path: Path, megabytes: int) -> None:
    """So much text: copies after the first with other names."""
    texts, left, copy = list(library()), megabytes * 1_000_000, 0
    with path.open("w", encoding="utf-8") as file:
        while left > 0:
            for text in texts:
                renamed = re.sub(r"\b([a-z_]{4,})\b", rf"\1_{copy:x}", text) if copy else text
                file.write(json.dumps({"text": renamed}) + "\n")
                left -= len(renamed.encode())
                if left <= 0:
                    break
            copy += 1


def trained(folder: Path) -> Path:
    """A byte-level BPE of 32,000 entries, of the first files."""
    from neoxkit.data.tokenizer.train import train_bpe

    train_bpe(list(library())[:400], 32_000, folder / "tokenizer")
    return folder / "tokenizer" / "tokenizer.json"


def taken(command: list[str], environment: dict[str, str] | None = None) -> tuple[str, str, float, float]:
    """What a command wrote to stdout and stderr, and its CPU seconds and MB, with those of its children."""
    with tempfile.TemporaryFile("w+") as said:
        launcher = LAUNCHER.replace("stdout=subprocess.DEVNULL", "stdout=sys.stderr")
        launched = [sys.executable, "-S", "-c", launcher, *command]
        done = subprocess.run(launched, stdout=subprocess.PIPE, stderr=said, text=True, check=True, env=environment)
        said.seek(0)
        told = said.read()
    code, _, cpu, memory = json.loads(done.stdout)
    if code:
        raise SystemExit(f"{' '.join(command[:4])} failed:\n{told}")
    return done.stdout, told, cpu, memory / 1e3


def last_json(told: str) -> dict[str, float]:
    """The JSON object at the end of what a command said."""
    found: dict[str, float] = json.loads(told[told.rindex("\n{") + 1 if "\n{" in told else told.index("{") :])
    return found


def measure(
    base: Path, text: Path, tokenizer: Path, workers: int, datatrove: Path | None, turned: bool
) -> dict[str, list[float]]:
    """Seconds, CPU seconds and MB of each, once, in the order of the names or the other."""
    commands = {
        "bare loop": [sys.executable, "-c", BARE, str(text), str(tokenizer), str(workers)],
        "neoxkit": [
            *(sys.executable, "-m", "neoxkit", "data", "tokenize", str(text), "-o", str(base / "out")),
            *("--tokenizer", str(tokenizer), "--workers", str(workers), "--force", "--json"),
        ],
    }
    if datatrove and workers == 1:
        commands["datatrove"] = [
            *(str(datatrove / "bin" / "python"), "-c", DATATROVE, str(text), str(tokenizer), str(base / "trove"))
        ]
    found = {}
    for name, command in sorted(commands.items(), reverse=turned):
        _, told, cpu, memory = taken(command)
        found[name] = [last_json(told)["seconds"], cpu, memory]
    return found


def main() -> None:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json, such as GPT-NeoX-20B's; else one is trained")
    parser.add_argument("--megabytes", type=int, action="append", help="of text; may repeat (20)")
    parser.add_argument("--workers", type=int, action="append", help="may repeat (1 and 2)")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--datatrove", type=Path, metavar="VENV", help="an environment with datatrove")
    given = parser.parse_args()
    print(json.dumps(machine()))
    worst = 1e9
    with tempfile.TemporaryDirectory(prefix="tokenize-") as name:
        base = Path(name)
        tokenizer = given.tokenizer or trained(base)
        for megabytes in given.megabytes or [20]:
            text = base / f"{megabytes}.jsonl"
            write(text, megabytes)
            for workers in given.workers or [1, 2]:
                rounds = [
                    measure(base, text, tokenizer, workers, given.datatrove, bool(number % 2))
                    for number in range(given.rounds)
                ]
                best = {who: [min(each[who][k] for each in rounds) for k in range(3)] for who in rounds[0]}
                for who, (seconds, cpu, memory) in best.items():
                    share = statistics.median(each["bare loop"][0] / each[who][0] for each in rounds)
                    speed = megabytes / seconds
                    print(
                        f"{megabytes:>5} MB, {workers} workers, {who:<10}{seconds:8.2f} s"
                        f"{speed:7.2f} MB/s{cpu:8.2f} CPU s{memory:8.0f} MB   {share:.2f} of the bare loop's speed"
                    )
                    worst = min(worst, share) if who == "neoxkit" else worst
    print(f"neoxkit: at least {worst:.2f} of the bare loop's speed; wanted {LIMIT}")


if __name__ == "__main__":
    main()

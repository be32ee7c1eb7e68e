"""Throughput of servers: `neoxkit serve` against `transformers serve --continuous-batching` and vLLM's, in turn.

Every server has SmolLM2-135M and OpenAI's API; one load generator (load.py, a process of its own) asks all of them the
same: so many clients at once, each with a new prompt of 16 to 256 tokens as soon as its last answer is complete, 64
new tokens, temperature 0, streamed. No prompt is ever seen twice by a server. Servers take turns, in another order
every round; who is not measured is stopped (SIGSTOP). A turn waits until nobody else uses the machine, and is
repeated when somebody did meanwhile.

Told are output tokens and requests per second, milliseconds to the first piece of text and between pieces (p50, p99),
tokens per CPU-second of the server, the CPUs that the clients and others used, and the ratio of neoxkit to each,
the median of those of each round. A server that can compute in several dtypes is tried in each before the rounds,
and goes on in those that come near its best; with more clients, the others are not tried again. "alike" says how
many answers begin as neoxkit's do.

No answer may end early: neoxkit and vLLM are told to ignore the token that ends a text, transformers gets a copy of
the model that has none. transformers is the one of this environment; vLLM's is made as generation.py says.

    python benchmarks/serving.py --environments DIR [--clients 1 8 32] [--threads 2] [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import quiet
from measuring import machine
from servers import KINDS, Kind, Server, endless, python_of
from subjects import HERE, Subject, smollm2

US = "neoxkit"
LENGTHS = (16, 32, 64, 96, 128, 192, 256)
"""Tokens of the prompts, in turn."""
NEAR = 0.7
"""To how much of a server's best rate another dtype must come in the trial to be measured further."""
BEGINNING = 20
"""Characters of an answer that are compared."""


@dataclass(frozen=True)
class Turn:
    """What the clients of one server saw."""

    wall: float
    answers: list[dict[str, Any]]
    cpu: float
    clients: float
    others: float = 0.0

    @property
    def tokens(self) -> int:
        """New ones."""
        return sum(each["tokens"] for each in self.answers)

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.wall


def questions(subject: Subject, number: int, count: int, tokens: int) -> list[dict[str, Any]]:
    """Prompts of a round, as text."""
    from neoxkit.data.tokenizer import Tokenizer

    lengths = [LENGTHS[index % len(LENGTHS)] for index in range(count)]
    random.Random(number).shuffle(lengths)
    ids = subject.prompts(number, count, max(LENGTHS))
    decode = Tokenizer(subject.theirs).decode
    texts = [decode(row[:length]) for row, length in zip(ids, lengths, strict=True)]
    return [{"prompt": text, "max_tokens": tokens, "temperature": 0} for text in texts]


class Contest:
    """Servers, and what each made of the same questions."""

    def __init__(self, subject: Subject, options: argparse.Namespace, folder: Path) -> None:
        self.subject, self.options = subject, options
        self.servers: dict[Kind, Server] = {}
        self.taken: dict[int, dict[Kind, list[Turn]]] = {}
        self.folder = folder

    def start(self) -> None:
        """Start every server that is there."""
        subject, folder, options = self.subject, self.folder, self.options
        models = {
            "theirs": subject.theirs,
            "ours": subject.ours,
            "endless": endless(subject.theirs, folder / "endless"),
        }
        for kind in KINDS:
            python = python_of(kind, options.environments)
            if kind.server not in options.servers:
                continue
            if not python.exists():
                print(f"left out: {kind.name}: no {python}", file=sys.stderr)
                continue
            try:
                said = folder / f"{kind.name}.txt"
                server = Server(kind, models[kind.reads], python, options.threads, said)
                self.servers[kind] = server
                print(f"{kind.name} answers after {server.started:.1f} s", file=sys.stderr)
            except EOFError as error:
                print(f"left out: {kind.name}: {error}", file=sys.stderr)

    def ask(self, kind: Kind, clients: int, bodies: list[dict[str, Any]]) -> Turn:
        """One turn. Exits when a request fails."""
        server = self.servers[kind]
        bodies = [{**body, "model": server.model, **kind.more} for body in bodies]
        job = {"url": server.url, "clients": clients, "bodies": bodies}
        server.go_on()
        before = server.cpu()
        command = [sys.executable, str(HERE / "load.py")]
        done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True)
        cpu = server.cpu() - before
        server.pause()
        if done.returncode:
            raise SystemExit(f"{kind.name}: {done.stderr.strip().splitlines()[-1]}")
        found = json.loads(done.stdout)
        return Turn(found["wall"], found["answers"], cpu, found["cpu"])

    def turn(self, kind: Kind, clients: int, bodies: list[dict[str, Any]]) -> Turn:
        """A turn that others did not disturb."""

        def act() -> Turn:
            return self.ask(kind, clients, bodies)

        options = self.options
        found, others = quiet.undisturbed(
            act, lambda turn: turn.cpu + turn.clients, options.most_others, options.patience
        )
        told = f"{found.rate:.1f} tokens/s, others used {others:.2f} CPUs"
        print(f"{clients} clients: {kind.name} {kind.dtype}: {told}", file=sys.stderr, flush=True)
        return Turn(found.wall, found.answers, found.cpu, found.clients, others)

    def bodies(self, number: int, clients: int) -> list[dict[str, Any]]:
        """What is asked in a round."""
        count = max(clients * self.options.requests, self.options.least)
        return questions(self.subject, number * 1000 + clients, count, self.options.tokens)

    def trial(self, clients: int) -> None:
        """Warm up, and choose in which dtypes each goes on."""
        found: dict[Kind, Turn] = {}
        for kind in self.servers:
            if any(kind not in taken for taken in self.taken.values()):
                continue  # it stopped with fewer clients
            self.ask(kind, clients, self.bodies(2000, clients)[: max(2, clients)])
            found[kind] = self.turn(kind, clients, self.bodies(1000, clients))
        best = {kind.server: max(found[each].rate for each in found if each.server == kind.server) for kind in found}
        near = [kind for kind, turn in found.items() if turn.rate >= NEAR * best[kind.server]]
        disturbed = [kind for kind, turn in found.items() if turn.others > self.options.most_others]
        self.taken[clients] = {kind: [] for kind in found if kind in near + disturbed}
        for kind in found.keys() - self.taken[clients].keys():
            print(
                f"{clients} clients: {kind.name} stops after {found[kind].rate:.1f} tokens/s in the trial",
                file=sys.stderr,
            )

    def round(self, number: int, clients: int, order: random.Random) -> None:
        """One turn of each."""
        kinds, bodies = list(self.taken[clients]), self.bodies(number, clients)
        for kind in order.sample(kinds, len(kinds)):
            self.taken[clients][kind].append(self.turn(kind, clients, bodies))

    def close(self) -> None:
        """End all servers."""
        for server in self.servers.values():
            server.close()


def share(values: list[float], part: float) -> float:
    """The value that this part of all is not above."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def rows(taken: dict[Kind, list[Turn]]) -> list[dict[str, Any]]:
    """The table of so many clients."""
    ours = next((kind for kind in taken if kind.server == US), None)
    found = []
    for kind, turns in taken.items():
        answers = [each for turn in turns for each in turn.answers]
        firsts, gaps = (
            [each["first"] * 1e3 for each in answers],
            [gap * 1e3 for each in answers for gap in each["gaps"]],
        )
        row: dict[str, Any] = {"server": kind.server, "dtype": kind.dtype}
        row["tokens"] = statistics.median(turn.rate for turn in turns)
        row["requests"] = statistics.median(len(turn.answers) / turn.wall for turn in turns)
        row |= {"first p50": share(firsts, 0.5), "first p99": share(firsts, 0.99)}
        row |= {"gap p50": share(gaps, 0.5), "gap p99": share(gaps, 0.99)}
        row["per cpu"] = statistics.median(turn.tokens / turn.cpu for turn in turns)
        row["clients"] = statistics.median(turn.clients / turn.wall for turn in turns)
        row["others"] = statistics.median(turn.others for turn in turns)
        row["tokens an answer"] = statistics.mean(each["tokens"] for each in answers)
        if ours is not None and kind != ours:
            pairs = list(zip(taken[ours], turns, strict=True))
            row["ratio"] = statistics.median(mine.rate / theirs.rate for mine, theirs in pairs)
            texts = [
                (a["text"], b["text"]) for one, two in pairs for a, b in zip(one.answers, two.answers, strict=True)
            ]
            row["alike"] = statistics.mean(a[:BEGINNING] == b[:BEGINNING] for a, b in texts)
        found.append(row)
    return found


def show(found: list[dict[str, Any]]) -> None:
    """Print a table."""
    head = f"{'':14}{'':5}{'tokens/s':>9}{'req/s':>7}{'first p50':>10}{'p99 ms':>8}{'gap p50':>8}{'p99 ms':>8}"
    print(f"{head}{'/CPU-s':>8}{'clients':>8}{'others':>7}{'tokens':>7}{'neoxkit/it':>12}{'alike':>7}")
    for row in found:
        print(f"{row['server']:14}{row['dtype']:5}{row['tokens']:9.1f}{row['requests']:7.2f}", end="")
        print(f"{row['first p50']:10.0f}{row['first p99']:8.0f}{row['gap p50']:8.1f}{row['gap p99']:8.1f}", end="")
        print(f"{row['per cpu']:8.1f}{row['clients']:8.2f}{row['others']:7.2f}{row['tokens an answer']:7.1f}", end="")
        print(f"{row['ratio']:12.2f}{row['alike']:7.2f}" if "ratio" in row else "")


def arguments() -> argparse.Namespace:
    """What is to be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, default=Path("peers"), help="folder of virtual environments")
    parser.add_argument("--servers", nargs="+", default=list(dict.fromkeys(kind.server for kind in KINDS)))
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=2, help="of each client in a turn")
    parser.add_argument("--least", type=int, default=len(LENGTHS), help="requests of a turn at least")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--most-others", type=float, default=0.1, help="CPUs that others may use during a turn")
    parser.add_argument("--patience", type=float, default=60, help="seconds to wait for others before a turn")
    parser.add_argument("--json", action="store_true", help="one JSON object, and no tables, on standard output")
    return parser.parse_args()


def main() -> None:
    """Start all servers, let them take turns, print."""
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))  # or servers that are stopped would stay
    told: dict[str, Any] = {"machine": machine(), "threads": options.threads, "rounds": options.rounds}
    with tempfile.TemporaryDirectory(prefix="serving-") as name:
        contest = Contest(smollm2(Path(name)), options, Path(name))
        order = random.Random(0)
        try:
            contest.start()
            for clients in options.clients:
                contest.trial(clients)
            for number in range(options.rounds):
                for clients in options.clients:
                    contest.round(number, clients, order)
        finally:
            contest.close()
    if not options.json:
        print("\n".join(f"{name:14}{value}" for name, value in machine().items()))
    for clients, taken in contest.taken.items():
        found = told[f"{clients} clients"] = rows(taken)
        if not options.json:
            print(f"\nSmolLM2-135M, {clients} clients, {options.threads} threads, medians of {options.rounds} rounds")
            show(found)
    if options.json:
        print(json.dumps(told))


if __name__ == "__main__":
    main()

"""Scores of lm-evaluation-harness: neoxkit's model class against the harness's own for transformers, HFLM, in turn.

A random GPT-NeoX of size S (7.35M parameters, fp32), with a tokenizer of 8192 tokens that was trained on this project's
pages. Both classes live in one process, with as many threads, and take turns in another order every round; every round
has new questions. Four-choice: 400 characters of a page, behind which four continuations of 30 are scored, as the
harness asks it of any multiple-choice task. Rolling: pages of some 4000 characters, whose perplexity is measured.
HFLM's batch is given (8, as its users set it, unless told otherwise); neoxkit takes "auto".

Told are requests per CPU-second and per second of wall time, and the ratio, the median of those of each round. Every
log-likelihood must agree to 1e-3, and every greedy flag.

    python benchmarks/evaluation.py [--rounds 7] [--threads 1] [--batch 8] [--check]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["TQDM_DISABLE"] = "1"

import quiet
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from measuring import machine
from subjects import HERE, SIZES, imported

from neoxkit.checkpoint.store import place
from neoxkit.data.tokenizer.train import train_bpe
from neoxkit.eval.harness import NeoxkitLM
from neoxkit.eval.replicas import open_model
from neoxkit.eval.subject import limits_of
from neoxkit.log import silence
from neoxkit.serve.start import open_engine

LIMITS = {"four-choice": 2.0, "rolling": 1.2}
"""Requests per CPU-second, to those of HFLM, at least."""

CONTEXT, CHOICE, PAGE, QUESTIONS, PAGES = 400, 30, 4000, 60, 12
"""Characters of a context, a choice and a page; how many of which a round has."""

TOLERANCE = 1e-3

Answers = list[Any]
Model = HFLM | NeoxkitLM


@dataclass(frozen=True)
class Turn:
    """What a class took for a round: seconds of CPU and of wall time, and what it said."""

    cpu: float
    wall: float
    answers: Answers


def write_model(folder: Path) -> None:
    """The random model, and a tokenizer for text."""
    import transformers

    texts = [path.read_text() for pattern in ("docs/*.md", "neoxkit/**/*.py") for path in HERE.parent.glob(pattern)]
    train_bpe(texts, SIZES["vocab_size"], folder)
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(
        **SIZES, tie_word_embeddings=False, architectures=["GPTNeoXForCausalLM"], bos_token_id=0, eos_token_id=0
    )
    transformers.GPTNeoXForCausalLM(config).save_pretrained(folder)


def four_choice(text: str, drawn: random.Random) -> list[Instance]:
    """Questions, each as the four requests that the harness makes of it."""
    found = []
    for number in range(QUESTIONS):
        begin = drawn.randrange(len(text) - CONTEXT - CHOICE)
        end = begin + CONTEXT
        places = [end, *(drawn.randrange(len(text) - CHOICE) for _ in range(3))]
        choices = [" " + text[place : place + CHOICE].strip() for place in places]
        found += [Instance("loglikelihood", {}, (text[begin:end].rstrip(), choice), number) for choice in choices]
    return found


def rolling(text: str, drawn: random.Random) -> list[Instance]:
    """Pages."""
    places = [drawn.randrange(len(text) - PAGE) for _ in range(PAGES)]
    return [Instance("loglikelihood_rolling", {}, (text[at : at + PAGE],), number) for number, at in enumerate(places)]


KINDS: dict[str, tuple[Callable[[str, random.Random], list[Instance]], str]] = {
    "four-choice": (four_choice, "loglikelihood"),
    "rolling": (rolling, "loglikelihood_rolling"),
}


def turn(model: Model, method: str, requests: list[Instance], options: argparse.Namespace) -> Turn:
    """Let a class answer, undisturbed."""

    def act() -> Turn:
        cpu, wall = time.process_time(), time.perf_counter()
        answers = getattr(model, method)(requests, disable_tqdm=True)
        return Turn(time.process_time() - cpu, time.perf_counter() - wall, answers)

    found, _ = quiet.undisturbed(act, lambda each: each.cpu, options.most_others, options.patience)
    return found


def check(ours: Answers, theirs: Answers) -> None:
    """Exit where scores differ."""
    for mine, his in zip(ours, theirs, strict=True):
        a, b = (each if isinstance(each, tuple) else (each, None) for each in (mine, his))
        if abs(a[0] - b[0]) > TOLERANCE * max(1, abs(b[0]) / 100) or a[1] != b[1]:
            raise SystemExit(f"another score: {mine}, HFLM {his}")


def main() -> None:
    """Take turns, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8, help="HFLM's")
    parser.add_argument("--most-others", type=float, default=0.15, help="CPUs that others may use meanwhile")
    parser.add_argument("--patience", type=float, default=60, help="seconds to wait for others before each turn")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true", help="Fail when a limit is broken.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    silence()
    text = "\n".join(path.read_text() for path in sorted((HERE.parent / "docs").glob("*.md")))
    told: dict[str, Any] = {"machine": machine(), "threads": options.threads, "rounds": options.rounds}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "theirs")
        source = place(imported(folder / "theirs", folder / "ours"))
        opening = partial(open_engine, source, dtype="F32", device="cpu", limits=limits_of(None, "cpu"))
        with open_model(opening) as model:
            his = HFLM(pretrained=str(folder / "theirs"), dtype="float32", device="cpu", batch_size=options.batch)
            models: dict[str, Model] = {"neoxkit": NeoxkitLM(model), "HFLM": his}
            for kind, (make, method) in KINDS.items():
                taken: dict[str, list[Turn]] = {each: [] for each in models}
                for number in range(-1, options.rounds):  # the first warms up
                    requests = make(text, random.Random(number))
                    found = {
                        each: turn(models[each], method, requests, options)
                        for each in random.Random(number).sample(list(models), 2)
                    }
                    check(found["neoxkit"].answers, found["HFLM"].answers)
                    for each in models if number >= 0 else ():
                        taken[each].append(found[each])
                told[kind] = summary(taken)
    if options.json:
        print(json.dumps(told))
    else:
        print("\n".join(f"{key:14}{value}" for key, value in told["machine"].items()))
        for kind in KINDS:
            print(
                f"\n{kind}, {options.threads} thread, HFLM's batch {options.batch}: medians of {options.rounds} rounds"
            )
            for each in ("neoxkit", "HFLM"):
                row = told[kind][each]
                print(f"{each:10}{row['per cpu']:9.1f} requests per CPU-second{row['per second']:9.1f} per second")
            print(f"{'ratio':10}{told[kind]['ratio']:9.2f}")
    if options.check:
        for kind, least in LIMITS.items():
            assert told[kind]["ratio"] >= least, (kind, told[kind])


def summary(taken: dict[str, list[Turn]]) -> dict[str, Any]:
    """Medians, and the median ratio."""
    found: dict[str, Any] = {}
    for each, turns in taken.items():
        rates = [(len(one.answers) / one.cpu, len(one.answers) / one.wall) for one in turns]
        found[each] = {
            "per cpu": statistics.median(rate[0] for rate in rates),
            "per second": statistics.median(rate[1] for rate in rates),
        }
    pairs = zip(taken["neoxkit"], taken["HFLM"], strict=True)
    return found | {"ratio": statistics.median(his.cpu / mine.cpu for mine, his in pairs)}


if __name__ == "__main__":
    main()

"""Training on one GPU: how much of its peak a step uses, what it takes of memory, and how long a save stops it.

For Pythia's shapes, in bf16: neoxkit as it is and with compiled layers, and transformers' model of the same shape
(scaled_dot_product_attention, autocast, torch's fused AdamW) on the same batches. They take turns, each built anew in
every round, since two may not fit at once. MFU counts the operations that the model asks for, of causal attention the
half that is seen; what is computed again does not count. Beside the memory that torch allocated at most stands what
`neoxkit plan` says. A save's stall is the copy of all state to memory that a process beside this one writes from.

    python benchmarks/mfu.py [--models pythia-160m pythia-410m pythia-1.4b] [--micro 8] [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import machine

from neoxkit.config.load import load_run
from neoxkit.config.run import RunConfig
from neoxkit.data.rows.batch import Batch
from neoxkit.nn.decoder import form_groups
from neoxkit.train.begin import build_engine
from neoxkit.train.engine import Engine
from neoxkit.train.feed import Identity
from neoxkit.train.flops import count, peak_of
from neoxkit.train.memory import of_run
from neoxkit.train.resume import Position
from neoxkit.train.saving.saver import Saver

WARM, TIMED, LR = 3, 10, 1e-4
CONFIGS = Path(__file__).parent.parent / "configs" / "models"

Step = Callable[[Batch], float]


def run_of(model: str, micro: int, device: str, compiled: bool, folder: Path) -> RunConfig:
    """A step of one micro-batch."""
    options = {
        "data.train": "none",
        "batch.size": micro,
        "steps": 1000,
        "precision": "fp32" if device == "cpu" else "bf16",
        "device": device,
        "kernels.compile": str(compiled).lower(),
        "save.folder": folder,
        "save.background": "always",
    }
    return load_run([CONFIGS / f"{model}.yaml"], [f"{key}={value}" for key, value in options.items()]).on(1)


def neoxkit_step(run: RunConfig) -> tuple[Step, Engine]:
    """A step of neoxkit's own engine."""
    device = torch.device(run.device)
    engine = build_engine(run, device, form_groups(run.model, run.placed, device))
    engine.initialise()
    return lambda batch: engine.step([batch], LR).loss, engine


def transformers_step(run: RunConfig) -> Step:
    """The same shape and step in transformers, as its users write it."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    model = run.model
    theirs = GPTNeoXForCausalLM._from_config(
        GPTNeoXConfig(
            vocab_size=model.vocab,
            hidden_size=model.width,
            num_hidden_layers=model.depth,
            num_attention_heads=model.mixer.heads,
            intermediate_size=model.mlp.hidden,
            max_position_embeddings=model.context,
            use_cache=False,
        ),
        attn_implementation="sdpa",
    ).to(run.device)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(batch: Batch) -> float:
        with torch.autocast(run.device, torch.bfloat16, enabled=run.precision == "bf16"):
            logits = theirs(batch.ids.to(run.device)).logits
            loss = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), batch.labels.to(run.device).flatten()
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def timed(step: Step, run: RunConfig) -> tuple[float, int]:
    """Seconds of a step, and the bytes that torch allocated at most. A step ends by reading its loss."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, run.model.vocab, (run.micro, run.sequence + 1), generator=generator)
    batch = Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
    for _ in range(WARM):
        step(batch)
    if run.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    for _ in range(TIMED):
        step(batch)
    seconds = (time.perf_counter() - begun) / TIMED
    return seconds, 0 if run.device == "cpu" else torch.cuda.max_memory_allocated()


def stall(engine: Engine, run: RunConfig) -> float:
    """Seconds for which the second save stops training: the first makes the memory that it copies to."""
    with Saver(run, {}, Identity(0, 0, "", run.sequence, 0, 1), None, [], 0) as saver:
        for step in (1, 2):
            begun = time.perf_counter()
            saver.save(engine, Position(step, step, step))
            taken = time.perf_counter() - begun
            saver.settle()
    return taken


def measured(model: str, micro: int, device: str, rounds: int) -> dict[str, dict[str, float]]:
    """The figures of each contender."""
    found: dict[str, list[tuple[float, int]]] = {"neoxkit": [], "neoxkit, compiled": [], "transformers": []}
    with tempfile.TemporaryDirectory() as folder:
        run = run_of(model, micro, device, False, Path(folder) / "run")
        compiled = run_of(model, micro, device, True, Path(folder) / "run")
        stalls = []
        for _ in range(rounds):
            for name, each in found.items():
                if name == "transformers":
                    step = transformers_step(run)
                else:
                    step, engine = neoxkit_step(compiled if "compiled" in name else run)
                each.append(timed(step, run))
                if name == "neoxkit":
                    stalls.append(stall(engine, run))
                    engine = None  # type: ignore[assignment]
                del step
                gc.collect()
                torch.cuda.empty_cache()
    operations = count(run.model, run.sequence).training * run.micro
    peak = peak_of("cpu" if device == "cpu" else torch.cuda.get_device_name(), run.precision)
    rows: dict[str, dict[str, float]] = {}
    for name, each in found.items():
        seconds = statistics.median(one for one, _ in each)
        rows[name] = {"tokens/s": run.micro * run.sequence / seconds, "TFLOP/s": operations / seconds / 1e12}
        rows[name] |= {"MFU": operations / seconds / peak} if peak else {}
        rows[name]["GB"] = max(memory for _, memory in each) / 1e9
    rows["neoxkit"] |= {"GB planned": of_run(run)[0].total / 1e9, "save stops it, s": statistics.median(stalls)}
    return rows


def main() -> None:
    """Print the figures of each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["pythia-160m", "pythia-410m", "pythia-1.4b"])
    parser.add_argument("--micro", type=int, default=8, help="samples of a step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the script itself")
    parser.add_argument("--json", action="store_true", help="one JSON object, and nothing else, on standard output")
    given = parser.parse_args()
    figures = {model: measured(model, given.micro, given.device, given.rounds) for model in given.models}
    about = {"device": torch.cuda.get_device_name() if given.device == "cuda" else "cpu", **machine()}
    if given.json:
        print(json.dumps({**about, "micro": given.micro, "figures": figures}))
        return
    for name, value in about.items():
        print(f"{name:14}{value}")
    for model, rows in figures.items():
        for name, row in rows.items():
            print(f"{model:14}{name:20}" + "   ".join(f"{key} {value:.4g}" for key, value in row.items()))


if __name__ == "__main__":
    main()

"""A training step of size S on one CPU thread: neoxkit against transformers and litgpt.

Size S is width 256, 4 layers, 4 heads, context 256, vocabulary 8192, untied, fp32, 8 rows a step
(2048 tokens). All models live in one process and take turns, a few steps each, so that the
machine's other work falls on all of them alike. Counted is CPU time; the ratio is of medians.

The transformers twin has neoxkit's own initial weights, through `export`. Its losses over 20 steps
on the same batches must equal neoxkit's to 1e-4. Every loop clips and uses torch's fused AdamW.

    python benchmarks/train_step.py [--rounds 15] [--json]

litgpt is measured where it can be imported: pip install --no-deps litgpt lightning
lightning-utilities torchmetrics jsonargparse
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers

from neoxkit.checkpoint.writer import Writer, cut
from neoxkit.config.load import load_run
from neoxkit.config.run import RunConfig
from neoxkit.data.rows.batch import Batch
from neoxkit.mesh import Mesh
from neoxkit.nn.init import initialise
from neoxkit.train.objectives.lm import NextToken
from neoxkit.train.plain import PlainEngine

VOCAB, CONTEXT, ROWS, LR = 8192, 256, 8, 1e-3
BETAS, EPS, DECAY, CLIP = (0.9, 0.95), 1e-8, 0.1, 1.0
STEPS_A_TURN = 2
TOLERANCE = 1e-4

Step = Callable[[torch.Tensor], float]  # rows of ids [8, 257] to the loss


def config(folder: Path) -> RunConfig:
    """The run, as a user would write it."""
    path = folder / "s.yaml"
    path.write_text(
        f"""
model: {{family: gpt_neox, depth: 4, width: 256, vocab: {VOCAB}, context: {CONTEXT}, residual: parallel,
         position: {{kind: rotary, fraction: 0.25}}, mixer: {{heads: 4}}}}
data: {{train: none}}
batch: {{size: {ROWS}}}
optimizer: {{lr: {LR}, betas: {list(BETAS)}, eps: {EPS}, weight_decay: {DECAY}}}
clip: {CLIP}
steps: 1000
precision: fp32
save: {{folder: none}}
"""
    )
    return load_run([path], [])


def neoxkit_step(run: RunConfig) -> tuple[Step, PlainEngine]:
    """A step through neoxkit's engine."""
    engine = PlainEngine(run, NextToken())
    initialise(engine.model, run.model, run.init, run.seed)

    def step(rows: torch.Tensor) -> float:
        return engine.step([Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())], LR).loss

    return step, engine


def exported(engine: PlainEngine, folder: Path) -> Path:
    """neoxkit's weights as a transformers model, through a checkpoint and `export`."""
    from neoxkit.checkpoint.reader import Checkpoint
    from neoxkit.convert.transfer import export_model
    from neoxkit.families import by_name

    held = [item for item in engine.state() if item.name.startswith("model/")]
    specs = {item.name: item.spec for item in held}
    with Writer(
        folder / "ours", cut(specs, dict.fromkeys(specs, "F32"), Mesh()), config=engine.model.config, mesh={}
    ) as writer:
        for item in held:
            writer.write(item.name, item.box, item.value)
        writer.commit()
    export_model(Checkpoint.open(folder / "ours"), folder / "theirs", by_name("gpt_neox"))
    return folder / "theirs"


def plain_loop(model: torch.nn.Module, loss_of: Callable[[torch.Tensor], torch.Tensor]) -> Step:
    """A plain torch loop around another library's model."""
    named = list(model.named_parameters())
    groups = [
        {"params": [p for _, p in named if p.dim() > 1], "weight_decay": DECAY},
        {"params": [p for _, p in named if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS, fused=True)
    parameters = [p for _, p in named]

    def step(rows: torch.Tensor) -> float:
        loss = loss_of(rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def transformers_step(folder: Path) -> Step:
    """A step through transformers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())

    return plain_loop(model, loss_of)


def litgpt_step() -> Step | None:
    """A step through litgpt; None when it is not installed."""
    if importlib.util.find_spec("litgpt") is None:
        return None
    from litgpt.config import Config
    from litgpt.model import GPT

    settings = Config(
        name="S",
        block_size=CONTEXT,
        vocab_size=VOCAB,
        padded_vocab_size=VOCAB,
        n_layer=4,
        n_head=4,
        n_embd=256,
        rotary_percentage=0.25,
        parallel_residual=True,
        bias=True,
    )
    model = GPT(settings).train()

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        logits = model(rows[:, :-1])
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())

    return plain_loop(model, loss_of)


def main() -> None:
    """Check the losses, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        ours, engine = neoxkit_step(config(Path(name)))
        steps: dict[str, Step] = {"neoxkit": ours, "transformers": transformers_step(exported(engine, Path(name)))}
    if (lit := litgpt_step()) is not None:
        steps["litgpt"] = lit
    worst = 0.0
    for _ in range(20):
        rows = torch.randint(0, VOCAB, (ROWS, CONTEXT + 1), generator=generator)
        losses = {each: step(rows) for each, step in steps.items()}
        worst = max(worst, abs(losses["neoxkit"] - losses["transformers"]))
    if worst > TOLERANCE:
        sys.exit(f"the losses of the twins differ by {worst:.1e} over 20 steps")
    seconds: dict[str, list[float]] = {each: [] for each in steps}
    for _ in range(arguments.rounds):
        for each, step in steps.items():
            rows = torch.randint(0, VOCAB, (ROWS, CONTEXT + 1), generator=generator)
            before = time.process_time()
            for _ in range(STEPS_A_TURN):
                step(rows)
            seconds[each].append((time.process_time() - before) / STEPS_A_TURN)
    rate = {each: ROWS * CONTEXT / statistics.median(taken) for each, taken in seconds.items()}
    peers = {each: value for each, value in rate.items() if each != "neoxkit"}
    ratio = rate["neoxkit"] / max(peers.values())
    if arguments.json:
        print(json.dumps({"tokens_per_cpu_second": rate, "ratio": ratio, "loss_difference": worst}))
        return
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.backends.cpu.get_cpu_capability()}"
    )
    print(f"losses of the twins differ by {worst:.1e} at most over 20 steps")
    for each, value in rate.items():
        print(f"{each:>14} {value:8.0f} tokens per CPU-second")
    print(f"neoxkit / best peer: {ratio:.2f}")


if __name__ == "__main__":
    main()

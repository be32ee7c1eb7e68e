"""A configuration of gpt-neox trains, goes on, and makes the same steps as the same run in neoxkit's own words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tiny_runs import VOCAB, write_tokens

from neoxkit.cli import main

NETWORK = f"""{{
  "num-layers": 2, "hidden-size": 16, "num-attention-heads": 2, "seq-length": 12, "max-position-embeddings": 12,
  "pos-emb": "rotary", "rotary-pct": 0.5, "no-weight-tying": true, "gpt-j-residual": true,
  "bias-gelu-fusion": true, "padded_vocab_size": {VOCAB},
  "init_method": "small_init", "output_layer_init_method": "wang_init",
}}
"""
LEARNING = """
optimizer: {type: Adam, params: {lr: 0.01, betas: [0.9, 0.99], eps: 1.0e-8}}
train_micro_batch_size_per_gpu: 2
gas: 2
train-iters: 4
lr-decay-style: linear
warmup: 0.25
min_lr: 0.001
train-data-paths: [tokens]
valid-data-paths: [held-out]
eval-interval: 2
eval-iters: 1
checkpoint-factor: 2
save: run
load: run
log-interval: 1
"""
OWN = """
model:
  family: gpt_neox
  depth: 2
  width: 16
  vocab: 61
  context: 12
  residual: parallel
  position: {kind: rotary, fraction: 0.5}
  mixer: {heads: 2}
  mlp: {activation: gelu_tanh}
data: {train: tokens, valid: held-out}
batch: {size: 4, micro: 2}
optimizer: {lr: 0.01, betas: [0.9, 0.99], weight_decay: 0.1}
schedule: {decay: linear, warmup: 0.25, min_lr: 0.001}
init: {weights: small, output: wang}
precision: fp32
steps: 4
evaluation: {every: 2, batches: 1}
save: {folder: own, every: 2}
"""
SAME = ("step", "loss", "norm", "lr", "valid_loss")


def lines(folder: str) -> list[dict[str, Any]]:
    """What a run measured that does not depend on the clock."""
    found = map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
    return [{key: line[key] for key in SAME if key in line} for line in found]


def test_it_trains_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tokens(tmp_path)
    for name, text in (("network.yml", NETWORK), ("learning.yml", LEARNING), ("own.yaml", OWN)):
        (tmp_path / name).write_text(text)
    own = CliRunner().invoke(main, ["train", "own.yaml", "--set", "device=cpu"])
    assert own.exit_code == 0, own.stderr
    theirs = ["train", "network.yml", "learning.yml", "--set", "device=cpu"]
    done = CliRunner().invoke(main, theirs)
    assert done.exit_code == 0, done.stderr
    assert "gpt-neox's load is passed over: a run goes on from its own folder by itself" in done.stderr
    assert lines("run") == lines("own")
    assert len(lines("run")) == 6
    again = CliRunner().invoke(main, [*theirs, "--set", "train_iters=6", "--set", "lr_decay_iters=4"])
    assert again.exit_code == 0, again.stderr
    assert "going on from run/step-00000004" in again.stderr
    assert [line["step"] for line in lines("run")] == [1, 2, 2, 3, 4, 4, 5, 6, 6]

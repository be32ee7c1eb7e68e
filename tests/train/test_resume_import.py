"""A run that gpt-neox began goes on here, by the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from neox_checkpoints import STEP, unpack
from neox_states import pipelined, read_state
from refusal import run

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.config.optimizer import Schedule
from neoxkit.convert.load import load_decoder
from neoxkit.data.rows.arrange import Arrangement
from neoxkit.data.rows.pack import pack
from neoxkit.data.rows.rows import Reading, Rows
from neoxkit.data.tokens.indexed import IndexedFile, IndexedWriter
from neoxkit.train.schedule import rate

ROWS = 400
"""Rows of the token file, of which gpt-neox would have read 24 in the first six steps, and 12 in the next three."""


def tokens(oracle: Path, prefix: Path, seed: int) -> None:
    """Token files of one document whose rows 24 to 35, in the order of the run, are what gpt-neox read then."""
    batches = np.load(oracle / "resume_batches.npy")
    wanted = batches.reshape(-1, batches.shape[-1])
    stream = np.random.default_rng(1).integers(0, 500, ROWS * 64 + 1)
    for _ in range(2):
        with IndexedWriter(prefix, vocab=512, force=True) as writer:
            writer.add(stream)
            writer.commit()
        file = IndexedFile(prefix)
        packing = pack(file.sizes, np.arange(1), 64, seed=seed, rows=36)
        for number, row in enumerate(wanted, 24):
            at = int(packing.shuffle[number]) * 64
            stream[at : at + 65] = row
    order = Arrangement(kind="packed", context=64, seed=seed, first=0, last=1, epochs=packing.epochs).order(file)
    rows = Rows(file, order, Reading(context=64))
    assert np.array_equal(np.stack([rows.row(number).ids for number in range(24, 36)]), wanted)


def options(model: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The run in neoxkit's options."""
    return {
        "model": model,
        "data": {"train": "tokens"},
        "batch": {"size": 4},
        "optimizer": {"lr": 0.01, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1},
        "schedule": {"decay": "cosine", "warmup": 0.25, "decay_steps": 12, "min_lr": 0.001},
        "clip": 1.0,
        "steps": 9,
        "seed": 1300,
        "device": "cpu",
        "threads": 1,
        "save": {"folder": "run"},
        "logging": {"every": 1},
        **changes,
    }


MODEL = {
    "family": "gpt_neox",
    "depth": 3,
    "width": 64,
    "vocab": 512,
    "context": 64,
    "residual": "parallel",
    "position": {"kind": "rotary", "fraction": 0.25},
    "mixer": {"heads": 4},
}


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint that gpt-neox wrote, and went on from."""
    return unpack(tmp_path_factory.mktemp("oracles")) / "neox_tp1pp0"


@pytest.fixture
def here(oracle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the token files and the imported checkpoint, as step 6 of a run."""
    monkeypatch.chdir(tmp_path)
    tokens(oracle, tmp_path / "tokens", 1300)
    done(f"import {oracle} run/step-00000006")
    return tmp_path


def done(command: str) -> str:
    """What a command prints, which must succeed."""
    result = run(command)
    assert result.exit_code == 0, (command, result.output, result.exception)
    return result.output + result.stderr


def steps(folder: Path) -> dict[int, dict[str, Any]]:
    """What metrics.jsonl says of each step."""
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines if "loss" in line}


def test_a_run_goes_on(oracle: Path, here: Path) -> None:
    """gpt-neox's own next three losses; then a fourth step, of a run that is now neoxkit's."""
    (here / "run.yaml").write_text(yaml.safe_dump(options(MODEL)))
    assert "training can go on" in done(f"inspect {oracle}")
    assert "training can go on from here" in done("inspect run")
    assert "sound" in done("verify run")
    told = done("train run.yaml")
    assert "going on from run/step-00000006" in told
    assert "sample 24 of data.train" in told
    assert "until step" not in told
    wanted = json.loads((oracle / "resume.json").read_text())
    found = steps(here / "run")
    for number, loss, norm, lr in zip(
        (7, 8, 9), wanted["losses"], wanted["grad_norm_before_clip"], wanted["lr"], strict=True
    ):
        assert found[number]["loss"] == pytest.approx(loss, abs=5e-6)
        assert found[number]["norm"] == pytest.approx(norm, abs=5e-6)
        assert found[number]["lr"] == pytest.approx(lr, rel=1e-12)
    ids, logits = (torch.from_numpy(np.load(oracle / name)) for name in ("input_ids.npy", "resume_ref_logits.npy"))
    checkpoint = Checkpoint.open(here / "run" / "step-00000009")
    with torch.inference_mode():
        assert float((load_decoder(checkpoint)(ids) - logits).abs().max()) < 5e-6
    assert (checkpoint.manifest.samples, checkpoint.manifest.tokens) == (36, 36 * 64)
    assert [event["event"] for event in checkpoint.manifest.lineage] == ["import", "train"]
    done("train run.yaml --set steps=10")
    assert set(steps(here / "run")) == {7, 8, 9, 10}
    assert "sound" in done("verify run")


def test_what_differs_is_told(here: Path) -> None:
    """Every option that is known of the old run and is another now, and the learning rate that follows."""
    changed = options(
        MODEL,
        optimizer={"lr": 0.02, "betas": [0.9, 0.99]},
        schedule={"decay": "linear", "warmup": 0.25, "decay_steps": 12},
        batch={"size": 2},
        clip=None,
        seed=8,
    )
    (here / "run.yaml").write_text(yaml.safe_dump(changed))
    told = done("train run.yaml --dry-run")
    for line in (
        "optimizer.lr was 0.01 until step 6, and is 0.02 from here on",
        "optimizer.betas was [0.9, 0.95] until step 6, and is [0.9, 0.99] from here on",
        "schedule.decay was cosine until step 6, and is linear from here on",
        "schedule.min_lr was 0.001 until step 6, and is 0.0 from here on",
        "batch.size was 4 until step 6, and is 2 from here on",
        "clip was 1.0 until step 6, and is null from here on",
        "seed was 1300 until step 6, and is 8 from here on",
        "the learning rate of step 7 is 0.0133333, and was to be 0.00775",
    ):
        assert line in " ".join(told.split()), line


def test_another_model_is_refused(here: Path) -> None:
    """As with `load`."""
    (here / "run.yaml").write_text(yaml.safe_dump(options({**MODEL, "residual": "sequential"})))
    result = run("train run.yaml")
    assert result.exit_code == 2
    assert "model.residual is sequential" in " ".join(result.stderr.split())


def test_steps_that_were_skipped(oracle: Path, here: Path) -> None:
    """The learning rate does not count steps that fp16 lost, neither now nor when the run goes on once more."""
    shutil.copytree(oracle, here / "old")
    path = here / "old" / STEP / "mp_rank_00_model_states.pt"
    held = torch.load(path, weights_only=False)
    held["lr_scheduler"]["num_iters"] = 4
    torch.save(held, path)
    done("import old other/step-00000006")
    (here / "run.yaml").write_text(yaml.safe_dump(options(MODEL, save={"folder": "other"}, steps=7)))
    assert "was to be" in " ".join(done("train run.yaml").split())  # the file says what comes after step 6
    done("train run.yaml --set steps=8")
    schedule = Schedule(decay="cosine", warmup=0.25, decay_steps=12, min_lr=0.001)
    found = steps(here / "other")
    assert [found[step]["lr"] for step in (7, 8)] == [rate(step, schedule, 0.01, 8) for step in (4, 5)]


def test_summed_biases_keep_their_rate(oracle: Path, here: Path) -> None:
    """Those of tensor parallelism 2 learn at twice the rate in every stretch: stopping and going on changes no bit."""
    pipelined(read_state(oracle), oracle, here / "old", [0], 2)
    for folder, stretches in (("once", (8,)), ("twice", (7, 8))):
        done(f"import old {folder}/step-00000006")
        (here / "run.yaml").write_text(yaml.safe_dump(options(MODEL, save={"folder": folder})))
        for step in stretches:
            done(f"train run.yaml --set steps={step}")
    once, twice = (Checkpoint.open(here / folder) for folder in ("once", "twice"))
    assert once.fingerprint == twice.fingerprint
    state = twice.trainer_state()
    assert state is not None
    scaled = [group["names"] for group in state["optimizer"]["groups"] if group.get("lr_scale") == 2]
    assert [sorted(names) for names in scaled] == [
        sorted(f"layers.{layer}.{name}.bias" for layer in range(3) for name in ("attn.o", "mlp.down"))
    ]


def test_what_the_weights_tell_is_inherited(oracle: Path, here: Path) -> None:
    """The rotary base is the checkpoint's where the configuration does not state it, in every stretch of the run."""
    (here / "old.yml").write_text("rotary_emb_base: 5000")
    done(f"import {oracle} other/step-00000006 --config old.yml")
    (here / "run.yaml").write_text(yaml.safe_dump(options(MODEL, save={"folder": "other"}, steps=7)))
    done("train run.yaml")
    done("train run.yaml --set steps=8")
    assert Checkpoint.open(here / "other").config.position.base == 5000  # type: ignore[union-attr]


def test_weights_only(oracle: Path, here: Path) -> None:
    """There is nothing to go on from: the run says so, and how to begin with them."""
    done(f"import {oracle} other/step-00000006 --weights-only")
    (here / "run.yaml").write_text(yaml.safe_dump(options(MODEL, save={"folder": "other"})))
    result = run("train run.yaml")
    assert result.exit_code == 2
    assert "holds no state of a trainer" in " ".join(result.stderr.split())

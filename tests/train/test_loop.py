"""A run from its files: what it writes, keeps, refuses, and goes on from."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_runs as runs
import torch
import yaml
from click.testing import CliRunner

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.cli.train import command
from neoxkit.data.tokens.indexed import IndexedFile
from neoxkit.data.tokens.sidecar import Sidecar, path_of, write_sidecar
from neoxkit.errors import CheckpointError, ConfigError, DataError, NeoxkitError
from neoxkit.train import begin, loop, metrics
from neoxkit.train.engine import TrainingError
from neoxkit.train.loop import Outcome, train
from neoxkit.train.saving.saver import alone_in


def start(folder: Path, *overrides: str, family: str = "gpt_neox", **options: Any) -> Outcome:
    config = runs.config(family, folder, *overrides, **options)
    return train(config, {"steps": config.steps})


def refusal(kind: type[NeoxkitError], folder: Path, *overrides: str, **options: Any) -> str:
    with pytest.raises(kind) as raised:
        start(folder, *overrides, **options)
    assert raised.value.remedy
    return str(raised.value)


def steps_of(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir() if path.name.startswith("step-"))


def test_a_run_writes_checkpoints_metrics_and_a_curve(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = start(folder, "save.every=2", "evaluation.every=3", steps=6)
    run = folder / "run"
    assert outcome.checkpoint == run / "step-00000006"
    assert (outcome.position.step, outcome.position.samples, outcome.position.tokens) == (6, 24, 288)
    assert steps_of(run) == ["step-00000002", "step-00000004", "step-00000006"]
    assert (run / "latest").read_text() == "step-00000006\n"
    records = metrics.read(run)
    assert [r["step"] for r in records if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in records if "valid_loss" in r] == [3, 6]
    assert {"step", "loss", "norm", "tokens", "lr", "seconds", "perplexity", "memory"} <= set(records[0])
    assert "step 6/6" in capsys.readouterr().err


def test_the_losses_are_drawn(folder: Path) -> None:
    start(folder, "evaluation.every=1", steps=2)
    assert metrics.draw(folder / "run") == folder / "run" / "loss.png"
    assert (folder / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_was_killed_after_its_last_checkpoint_is_tidied(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it removed an old checkpoint, or drew: there is nothing to train, and what it left would stay for ever."""
    start(folder, "save.every=1", steps=2)
    left = folder / "run" / ".step-00000000.a1b2c3.deleted"
    (left / "files").mkdir(parents=True)
    (left / "neoxkit.lock").touch()
    (folder / "run" / ".loss.png.partial").touch()
    monkeypatch.setattr(loop, "draw", metrics.draw)
    assert start(folder, "save.every=1", steps=2).position.step == 2
    assert not [path.name for path in (folder / "run").iterdir() if path.name.startswith(".")]
    assert (folder / "run" / "loss.png").is_file()


def test_without_matplotlib_a_note_takes_the_curves_place(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert metrics.draw(folder) is None
    assert "matplotlib is not installed" in capsys.readouterr().err


def test_a_checkpoint_holds_the_run(folder: Path) -> None:
    with Checkpoint.open(start(folder, steps=2).checkpoint) as source:
        state = source.trainer_state()
        assert state is not None
        assert (state["step"], state["samples"], state["optimizer"]["steps"]) == (2, 8, 2)
        assert {group["weight_decay"] for group in state["optimizer"]["groups"]} == {0.1, 0.0}
        assert source.config == runs.config("gpt_neox", folder).model
        assert source.manifest.lineage == ({"event": "train", "from_step": 0, "to_step": 2},)
        assert (source.manifest.step, source.manifest.samples, source.manifest.tokens) == (2, 8, 96)
        run_yaml = yaml.safe_load(source.run_yaml or "")
        assert run_yaml["given"] == {"steps": 2}
        assert run_yaml["resolved"]["precision"] == "fp32"
        assert set(source.rng()) >= {"cpu"}


def test_only_the_newest_checkpoints_are_kept(folder: Path) -> None:
    start(folder, "save.every=1", "save.keep_last=2", steps=5)
    assert steps_of(folder / "run") == ["step-00000004", "step-00000005"]


def test_a_damaged_checkpoint_is_not_one_of_those_that_are_kept(folder: Path) -> None:
    start(folder, "save.every=1", steps=3)
    (folder / "run" / "step-00000002" / "manifest.json").write_text("{")
    start(folder, "save.every=1", "save.keep_last=3", steps=4)
    assert steps_of(folder / "run") == ["step-00000001", "step-00000003", "step-00000004"]


def test_a_checkpoint_that_is_being_read_goes_with_a_later_save(folder: Path) -> None:
    first = start(folder, steps=1).checkpoint
    with Checkpoint.open(first) as reader:
        reader.read("model/embed.weight")
        start(folder, "save.every=1", "save.keep_last=1", steps=2)
        assert steps_of(folder / "run") == ["step-00000001", "step-00000002"]
        assert reader.read("model/norm.weight").numel()
    start(folder, "save.every=1", "save.keep_last=1", steps=3)
    assert steps_of(folder / "run") == ["step-00000003"]


def test_the_same_command_again_does_nothing(folder: Path) -> None:
    outcome = start(folder, steps=2)
    before = {path: path.stat().st_mtime_ns for path in sorted((folder / "run").rglob("*"))}
    assert start(folder, steps=2) == outcome
    assert before == {path: path.stat().st_mtime_ns for path in sorted((folder / "run").rglob("*"))}


def test_metrics_after_the_checkpoint_are_dropped(folder: Path) -> None:
    start(folder, steps=3)
    path = folder / "run" / metrics.FILE
    path.write_text(path.read_text() + '{"step": 4, "loss": 0.0}\n{"step": 5, "lo')
    start(folder, steps=5)
    records = metrics.read(folder / "run")
    assert [r["step"] for r in records if "loss" in r] == [1, 2, 3, 4, 5]
    assert all(record.get("loss") != 0.0 for record in records)


def test_harmless_changes_are_accepted_and_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start(folder, steps=3)
    start(folder, "optimizer.lr=0.02", "batch.micro=4", steps=4)
    told = capsys.readouterr().err
    assert "optimizer.lr was 0.01 until step 3, and is 0.02 from here on" in told
    assert "batch.micro was 2" in told


def test_another_batch_goes_on_with_the_samples_that_follow(folder: Path) -> None:
    start(folder, steps=3)
    assert start(folder, "batch.size=2", steps=4).position.samples == 14


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=5", "seed is 5, and the run in"),
        ("model.depth=3", "model.depth is 3"),
        ("model.residual=sequential", "model.residual is sequential"),
        ("precision=bf16", "precision is bf16"),
        ("data.sequence=6", "data.sequence is 6"),
    ],
)
def test_a_run_refuses_what_would_make_it_another(folder: Path, override: str, said: str) -> None:
    start(folder, steps=2)
    assert said in refusal(ConfigError, folder, override, steps=4)
    assert steps_of(folder / "run") == ["step-00000002"]


def test_a_longer_run_reads_its_text_again_in_another_order(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start(folder, steps=2)
    assert start(folder, steps=4, batch={"size": 300}).position.samples == 608
    assert "beyond them its text is read again, in another order" in capsys.readouterr().err


def test_a_run_refuses_other_data(folder: Path) -> None:
    start(folder, steps=2)
    for path in folder.glob("tokens*"):
        path.unlink()
    for path in folder.glob("held-out*"):
        path.unlink()
    runs.write_tokens(folder, seed=1)
    assert "data.train: the number or order of its" in refusal(ConfigError, folder, steps=4)


def test_precision_is_measured_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(begin, "choose_precision", lambda config, device: "bf16")
    first = start(folder, "precision=auto", steps=1).checkpoint
    monkeypatch.setattr(begin, "choose_precision", lambda config, device: pytest.fail("measured again"))
    second = start(folder, "precision=auto", steps=2).checkpoint
    for path in (first, second):
        with Checkpoint.open(path) as source:
            assert source.dtype("model/embed.weight") == "BF16"
            assert yaml.safe_load(source.run_yaml or "")["resolved"]["precision"] == "bf16"


def test_a_damaged_checkpoint_is_passed_over(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = start(folder, "save.folder=" + str(folder / "whole"), steps=4).checkpoint
    start(folder, "save.every=2", steps=4)
    damaged = folder / "run" / "step-00000004"
    next((damaged / "model").iterdir()).write_bytes(b"")
    again = start(folder, "save.every=2", steps=4).checkpoint
    assert "is passed over" in capsys.readouterr().err
    with Checkpoint.open(again) as mine, Checkpoint.open(whole) as theirs:
        assert mine.fingerprint == theirs.fingerprint


def test_a_damaged_later_checkpoint_is_not_kept_in_place_of_a_valid_one(folder: Path) -> None:
    start(folder, "save.every=2", steps=6)
    for step in (4, 6):
        (folder / "run" / f"step-{step:08d}" / "manifest.json").write_text("{")
    start(folder, "save.keep_last=1", steps=3)
    assert steps_of(folder / "run") == ["step-00000003", "step-00000004", "step-00000006"]
    assert Checkpoint.open(folder / "run").path.name == "step-00000003"


def test_no_valid_checkpoint_is_no_fresh_start(folder: Path) -> None:
    run = start(folder, steps=2).checkpoint
    (run / "manifest.json").write_text("{")
    assert "none is valid" in refusal(CheckpointError, folder, steps=4)


def test_a_checkpoint_without_state_is_no_past(folder: Path) -> None:
    run = start(folder, steps=2).checkpoint
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["files"] = [f for f in manifest["files"] if f["path"] != "trainer/state.json"]
    for piece in (p for tensor in manifest["tensors"].values() for p in tensor["pieces"]):
        piece["file"] = min(piece["file"], len(manifest["files"]) - 1)
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert "holds no state of a trainer" in refusal(CheckpointError, folder, steps=4)


def test_load_begins_with_the_weights_alone(folder: Path) -> None:
    first = start(folder, "precision=bf16", steps=3).checkpoint
    second = start(
        folder,
        f"load={first}",
        "save.folder=" + str(folder / "second"),
        "optimizer.lr=1e-30",
        "schedule.min_lr=0",
        "precision=bf16",
        steps=1,
    ).checkpoint
    with Checkpoint.open(first) as mine, Checkpoint.open(second) as theirs:
        assert torch.equal(mine.read("model/embed.weight"), theirs.read("model/embed.weight"))
        master = theirs.read("optimizer/master/embed.weight")
        assert torch.equal(master, mine.read("model/embed.weight").float())
        events = [event["event"] for event in theirs.manifest.lineage]
        assert events == ["train", "load", "train"]
        assert theirs.manifest.lineage[1]["model"] == mine.fingerprint
        assert theirs.trainer_state()["optimizer"]["steps"] == 1  # type: ignore[index]


@pytest.mark.parametrize("family", runs.MODELS)
def test_load_takes_a_hugging_face_folder(folder: Path, family: str) -> None:
    from neoxkit.convert.transfer import export_model
    from neoxkit.families import by_name

    first = start(folder, family=family, steps=2).checkpoint
    with Checkpoint.open(first) as source:
        export_model(source, folder / "hf", by_name(family))
        second = start(
            folder,
            f"load={folder / 'hf'}",
            "save.folder=" + str(folder / "second"),
            "optimizer.lr=1e-30",
            "schedule.min_lr=0",
            family=family,
            steps=1,
        ).checkpoint
        with Checkpoint.open(second) as theirs:
            assert [event["event"] for event in theirs.manifest.lineage] == ["import", "train"]
            for name in (n for n in source.names() if n.startswith("model/")):
                assert torch.equal(source.read(name), theirs.read(name)), name


def test_a_wrong_load_is_never_a_fresh_start(folder: Path) -> None:
    assert "no such file or folder" in refusal(CheckpointError, folder, f"load={folder / 'nothing'}")
    assert "not a checkpoint" in refusal(CheckpointError, folder, f"load={folder}")
    first = start(folder, steps=1).checkpoint
    elsewhere = "save.folder=" + str(folder / "second")
    said = refusal(ConfigError, folder, f"load={first}", elsewhere, "model.depth=3")
    assert "model.depth is 3, and the weights in" in said
    assert not (folder / "second").exists()
    assert "residual" in refusal(ConfigError, folder, f"load={first}", elsewhere, "model.residual=sequential")
    start(folder, f"load={first}", elsewhere, "model.position.base=1e6", steps=1)


def test_the_vocabulary_must_fit(folder: Path) -> None:
    sidecar = Sidecar(tokenizer="sha256:0", vocab=runs.VOCAB + 1, eod=0, documents=40, tokens=1, bytes=1)
    write_sidecar(path_of(folder / "tokens"), sidecar)
    assert f"vocabulary of {runs.VOCAB + 1}" in refusal(DataError, folder)
    path_of(folder / "tokens").unlink()
    assert "token id" in refusal(DataError, folder, "model.vocab=40")
    assert not (folder / "run").exists()


def test_bits_per_byte_come_from_the_sidecar(folder: Path) -> None:
    tokens = IndexedFile(folder / "held-out").tokens
    sidecar = Sidecar(tokenizer="sha256:0", vocab=runs.VOCAB, eod=0, documents=6, tokens=tokens, bytes=250)
    write_sidecar(path_of(folder / "held-out"), sidecar)
    start(folder, steps=1)
    last = metrics.read(folder / "run")[-1]
    assert last["bits_per_byte"] == pytest.approx(last["valid_loss"] / 0.6931471805599453 * tokens / 250)


def test_split_holds_documents_out(folder: Path) -> None:
    data = {"train": str(folder / "tokens"), "split": "8,2"}
    start(folder, steps=2, data=data)
    state = Checkpoint.open(folder / "run").trainer_state()
    assert state is not None
    assert state["data"]["sources"][0]["documents"] == 32
    assert "valid_loss" in metrics.read(folder / "run")[-1]
    assert "data.train" in refusal(ConfigError, folder, steps=3, data={**data, "split": "7,3"})


def test_the_tokenizer_travels_with_the_checkpoint(folder: Path) -> None:
    from tokenizers import Tokenizer, models

    from neoxkit.data.tokenizer import EOD

    made = folder / "tokenizer"
    made.mkdir()
    Tokenizer(models.WordLevel({EOD: 0, "a": 1}, unk_token=EOD)).save(str(made / "tokenizer.json"))
    (made / "generation_config.json").write_text('{"eos_token_id": 0}')
    first = start(folder, f"data.tokenizer={made}", steps=1).checkpoint
    for name in ("tokenizer.json", "generation_config.json"):
        assert (first / "tokenizer" / name).read_bytes() == (made / name).read_bytes()
    shutil.rmtree(made)
    second = start(folder, f"load={first}", "save.folder=" + str(folder / "second"), steps=1).checkpoint
    assert (second / "tokenizer" / "tokenizer.json").is_file()


def test_a_lost_loss_names_the_step_and_the_tensor(folder: Path) -> None:
    said = refusal(TrainingError, folder, "optimizer.lr=1e30", clip=None, steps=6)
    assert said.startswith("step ")
    assert "is not finite" in said


def test_two_runs_in_one_folder_are_refused(folder: Path) -> None:
    with alone_in(folder / "run"):
        assert "another process is training" in refusal(ConfigError, folder)
    assert not (folder / "run").exists()


def test_missing_tokens_leave_nothing_behind(folder: Path) -> None:
    assert "no such" in refusal(DataError, folder, "data.train=" + str(folder / "absent"))
    assert not (folder / "run").exists()


def test_an_unknown_family_is_refused(folder: Path) -> None:
    assert "no family is called" in refusal(NeoxkitError, folder, "model.family=rwkv9")


def test_the_command(folder: Path) -> None:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(runs.tree("gpt_neox", folder)))
    runner = CliRunner()
    planned = runner.invoke(command, [str(path), "--dry-run"])
    assert "8,544 parameters" in planned.stdout
    assert not (folder / "run").exists()
    done = runner.invoke(command, [str(path), "--set", "steps=2"])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(folder / "run" / "step-00000002")
    assert runner.invoke(command, [str(path), "--set", "steps=2", "--dry-run"]).stdout.count("step-00000002") == 1

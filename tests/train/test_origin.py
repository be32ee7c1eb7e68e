"""What a run takes over from the weights, the tokenizer and the data that it begins with, or goes on from."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_runs as runs
from click.testing import CliRunner
from tokenizers import Tokenizer, models

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.cli.train import command
from neoxkit.config.load import load_tree, validate
from neoxkit.data.tokenizer import EOD, fingerprint_of
from neoxkit.data.tokens.indexed import IndexedFile
from neoxkit.data.tokens.sidecar import Sidecar, path_of, read_sidecar, write_sidecar
from neoxkit.errors import ConfigError, DataError
from neoxkit.train import metrics
from neoxkit.train.loop import Outcome, train
from neoxkit.train.plain import PlainEngine
from neoxkit.train.plan import plan

ANGLES = {"kind": "rotary", "fraction": 0.25, "base": 5000.0}


def tree(folder: Path, run: str = "run", **options: Any) -> dict[str, Any]:
    """The options of a run in a folder of its own."""
    save = {"folder": str(folder / run), "keep_last": 1, "every": 1}
    return runs.tree("gpt_neox", folder, **{"save": save, **options})


def start(given: dict[str, Any]) -> Outcome:
    """Run what is given, which is also what its user stated."""
    loaded = load_tree([])
    loaded.values, loaded.origins = given, {(): "test"}
    return train(validate(loaded), given)


def model(folder: Path, **options: Any) -> dict[str, Any]:
    """The model's options, some of them stated otherwise."""
    return {**tree(folder)["model"], **options}


def make_tokenizer(folder: Path, word: str = "a") -> str:
    """A tokenizer in a folder; returns its fingerprint."""
    folder.mkdir()
    Tokenizer(models.WordLevel({EOD: 0, word: 1}, unk_token=EOD)).save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text("{}")
    return fingerprint_of((folder / "tokenizer.json").read_bytes())


def describe_tokens(prefix: Path, tokenizer: str, sources: str = "sha256:1") -> None:
    """Say with which tokenizer, and of what text, tokens were made."""
    file = IndexedFile(prefix)
    counts = {"documents": file.document_count, "tokens": file.tokens, "bytes": 9}
    about = Sidecar(tokenizer=tokenizer, vocab=runs.VOCAB, eod=0, sources=sources, **counts)
    write_sidecar(path_of(prefix), about)


def test_what_is_not_stated_is_as_the_loaded_weights_have_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model that was trained with another rotary base would otherwise be another model, silently."""
    first = start(tree(folder, "first", steps=1, model=model(folder, position=ANGLES, tokens={"eos": [3], "bos": 2})))
    plain = model(folder, position={"kind": "rotary", "fraction": 0.25})
    capsys.readouterr()
    second = start(tree(folder, "second", steps=1, load=str(first.checkpoint), model=plain))
    begun = Checkpoint.open(second.checkpoint).config
    assert "model." not in capsys.readouterr().err
    third = start(tree(folder, "second", steps=2, load=str(first.checkpoint), model=plain))
    for config in (begun, Checkpoint.open(third.checkpoint).config):
        assert config.position.base == 5000  # type: ignore[union-attr]
        assert (config.tokens.bos, config.tokens.eos) == (2, (3,))
    assert (second.position.step, third.position.step) == (1, 2)


def test_a_load_that_a_run_did_not_begin_with_is_told_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is not read again, and whoever changed it would think that it was."""
    first, other = (str(start(tree(folder, name, steps=1)).checkpoint) for name in ("first", "other"))
    begun = tree(folder, "second", steps=1, load=first)
    start(begun)
    for steps, load, told in ((2, first, None), (3, other, f"began with {first}, and goes on"), (4, None, None)):
        capsys.readouterr()
        start({**begun, "steps": steps, "load": load})
        said = capsys.readouterr().err
        if told is None:
            assert "load: " not in said
        else:
            assert f"warning: load: {load} is not read: the run in {folder / 'second'}" in said
            assert told in said
    start(tree(folder, "first", steps=2, load=other))
    assert "began with random weights, and goes on" in capsys.readouterr().err


def test_what_is_stated_otherwise_than_the_loaded_weights_have_it_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = start(tree(folder, "first", steps=1, model=model(folder, position=ANGLES)))
    stated = model(folder, position={**ANGLES, "base": 10000.0}, context=24)
    second = start(tree(folder, "second", steps=1, load=str(first.checkpoint), model=stated))
    told = capsys.readouterr().err
    assert f"model.position.base is 10000.0, and the weights in {first.checkpoint} had 5000.0" in told
    assert "model.context is 24" in told
    assert Checkpoint.open(second.checkpoint).config.position.base == 10000  # type: ignore[union-attr]


def test_the_tokenizer_outlives_the_checkpoint_it_came_from(folder: Path) -> None:
    """It comes with the loaded weights, then with the run's own checkpoints, of which the last alone is kept."""
    make_tokenizer(folder / "tokenizer")
    first = start(tree(folder, "first", steps=1, data={**tree(folder)["data"], "tokenizer": str(folder / "tokenizer")}))
    loaded = tree(folder, "second", load=str(first.checkpoint))
    start({**loaded, "steps": 1})
    shutil.rmtree(folder / "first")
    last = start({**loaded, "steps": 4}).checkpoint
    assert [path.name for path in (folder / "second").iterdir() if path.name.startswith("step-")] == [last.name]
    for name in ("tokenizer.json", "generation_config.json"):
        assert (last / "tokenizer" / name).read_bytes() == (folder / "tokenizer" / name).read_bytes()


def test_tokens_of_another_tokenizer_are_refused(folder: Path) -> None:
    print_, data = make_tokenizer(folder / "tokenizer"), tree(folder)["data"]
    describe_tokens(folder / "tokens", print_)
    describe_tokens(folder / "held-out", "sha256:0")
    with pytest.raises(DataError, match=f"held-out was made with tokenizer sha256:0, not {print_}, that of .*tokens"):
        start(tree(folder, steps=1))
    with pytest.raises(DataError, match=r"held-out was made with .* that of .*tokenizer\.json"):
        start(tree(folder, steps=1, data={**data, "tokenizer": str(folder / "tokenizer")}))
    describe_tokens(folder / "held-out", print_)
    first = start(tree(folder, "first", steps=1, data={**data, "tokenizer": str(folder / "tokenizer")})).checkpoint
    for name in ("tokens", "held-out"):
        describe_tokens(folder / name, "sha256:0")
    with pytest.raises(DataError, match=f"tokens was made with tokenizer sha256:0, not {print_}, that of .*first"):
        start(tree(folder, "second", steps=1, load=str(first)))
    assert not (folder / "second").exists()


def test_a_run_keeps_its_tokenizer_and_a_new_one_may_take_another(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, word in (("one", "a"), ("two", "b")):
        make_tokenizer(folder / name, word)
    one, two = ({**tree(folder)["data"], "tokenizer": str(folder / name)} for name in ("one", "two"))
    first = start(tree(folder, steps=1, data=one)).checkpoint
    with pytest.raises(DataError, match=r"two/tokenizer\.json is another tokenizer than the one in .* began with"):
        start(tree(folder, steps=2, data=two))
    second = start(tree(folder, "second", steps=1, data=two, load=str(first))).checkpoint
    assert "takes its place" in capsys.readouterr().err
    assert (second / "tokenizer/tokenizer.json").read_bytes() == (folder / "two/tokenizer.json").read_bytes()


def test_other_text_of_the_same_size_is_noticed(folder: Path) -> None:
    describe_tokens(folder / "tokens", "sha256:0")
    start(tree(folder, steps=1))
    known = read_sidecar(folder / "tokens")
    assert known is not None
    write_sidecar(path_of(folder / "tokens"), replace(known, sources="sha256:2"))
    with pytest.raises(ConfigError, match=r"data\.train: the hash of its text is sha256:2, and the run .* sha256:1"):
        start(tree(folder, steps=2))
    path_of(folder / "tokens").unlink()
    assert start(tree(folder, steps=2)).position.step == 2


def test_lines_that_are_no_metrics_are_passed_over(folder: Path) -> None:
    start(tree(folder, steps=2))
    path = folder / "run" / metrics.FILE
    path.write_bytes(b'[1]\n{"step": "2"}\n{"loss": 1.0}\nnull\n\xff\xfe\n' + path.read_bytes())
    assert start(tree(folder, steps=3)).position.step == 3
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == [1, 2, 3]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_who_stops_a_run_does_not_wait_for_an_evaluation(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    step, taken = PlainEngine.step, []

    def stop_at_the_second(engine: PlainEngine, *batches: Any) -> Any:
        taken.append(1)
        if len(taken) == 2:
            os.kill(os.getpid(), number)
        return step(engine, *batches)

    monkeypatch.setattr(PlainEngine, "step", stop_at_the_second)
    outcome = start(tree(folder, evaluation={"every": 1}))
    assert (outcome.position.step, outcome.code) == (2, 128 + number)
    evaluated = [record["step"] for record in metrics.read(folder / "run") if "valid_loss" in record]
    assert evaluated == [1]
    assert Checkpoint.open(folder / "run").manifest.step == 2


def test_the_plan_counts_what_is_left(folder: Path) -> None:
    given = tree(folder, steps=6, save={"folder": str(folder / "run"), "every": 4})

    def planned(**options: Any) -> dict[str, str]:
        loaded = load_tree([])
        loaded.values, loaded.origins = {**given, **options}, {(): "test"}
        return plan(validate(loaded), loaded.values)

    before = planned()
    assert before["checkpoints"].startswith("2 of ")
    start({**given, "steps": 3})
    after = planned()
    assert after["checkpoints"].startswith("2 of ")  # at 4 and at 6
    assert planned(steps=8)["checkpoints"].startswith("2 of ")  # at 4 and at 8
    assert after["text"] == before["text"], "the whole run reads the same text, in two goes or in one"
    assert after["tokens"].startswith("144;")


def test_a_dry_run_looks_at_what_is_loaded(folder: Path) -> None:
    first = start(tree(folder, "first", steps=1)).checkpoint
    path = folder / "run.yaml"
    path.write_text(json.dumps(tree(folder, "second", load=str(first))))
    runner = CliRunner()
    assert runner.invoke(command, [str(path), "--dry-run"]).exit_code == 0
    for wrong in (f"load={folder / 'nothing'}", "model.depth=3"):
        with pytest.raises(Exception, match=r"no such file|model\.depth is 3"):
            runner.invoke(command, [str(path), "--dry-run", "--set", wrong], catch_exceptions=False)
    assert not (folder / "second").exists()

"""Loss spikes and lost numbers: a run goes back to its newest checkpoint, and passes over the samples since then."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_runs as runs

from neoxkit.data.rows.batch import Batch
from neoxkit.errors import ConfigError
from neoxkit.train import metrics
from neoxkit.train.engine import StepReport, TrainingError
from neoxkit.train.feed import Feed
from neoxkit.train.loop import Outcome, train
from neoxkit.train.plain import PlainEngine


def start(folder: Path, *overrides: str, **options: Any) -> Outcome:
    config = runs.config("gpt_neox", folder, *overrides, **options)
    return train(config, {"steps": config.steps})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The step and the first sample of each step that is made."""
    found: list[tuple[int, int]] = []
    batches = Feed.batches

    def recorded(self: Feed, done: int, step: int = 0) -> Iterator[Batch]:
        found.append((step + 1, done))
        return batches(self, done, step)

    monkeypatch.setattr(Feed, "batches", recorded)
    return found


def break_at(monkeypatch: pytest.MonkeyPatch, steps: set[int], loss: float | None = None) -> None:
    """Let the steps of these numbers, counted as they are made, fail, or report a loss."""
    step, made = PlainEngine.step, iter(range(1, 1000))

    def broken(self: PlainEngine, batches: Iterable[Batch], lr: float) -> StepReport:
        report = step(self, batches, lr)
        if next(made) not in steps:
            return report
        if loss is None:
            raise TrainingError("the loss is nan", "lower optimizer.lr")
        return report._replace(loss=loss)

    monkeypatch.setattr(PlainEngine, "step", broken)


def test_a_run_goes_back_and_passes_over_what_broke_it(
    folder: Path, asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    break_at(monkeypatch, {5})
    outcome = start(folder, "save.every=3", "faults.rewinds=1", steps=6)
    assert asked == [(1, 0), (2, 4), (3, 8), (4, 12), (5, 16), (4, 20), (5, 24), (6, 28)]
    assert (outcome.position.step, outcome.position.samples, outcome.position.tokens) == (6, 32, 6 * 48)
    assert "step 5: the loss is nan; back to " in capsys.readouterr().err
    assert [r["step"] for r in metrics.read(folder / "run") if "loss" in r] == [1, 2, 3, 4, 5, 6]


def test_a_spike_is_gone_back_from(
    folder: Path, asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    break_at(monkeypatch, {4, 7}, loss=9.0)
    start(folder, "save.every=2", "faults.rewinds=1", "faults.spike=1.0", "faults.window=2", steps=6)
    told = capsys.readouterr().err
    assert asked == [(1, 0), (2, 4), (3, 8), (4, 12), (3, 16), (4, 20), (5, 24), (6, 28)]
    assert "step 4: the loss is 9.0000, and the mean of the last 2 steps 4." in told
    spike = told[told.index("warning: step 5: the loss is 9.0000") :].partition("\n")[0]  # the seventh that is made
    assert spike.endswith("; 1 rewind did not help, and faults.rewinds allows no more")


def test_without_rewinds_the_run_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_at(monkeypatch, {2})
    with pytest.raises(TrainingError, match="step 2: the loss is nan"):
        start(folder, "save.every=1", steps=4)


def test_when_rewinds_are_used_up_the_run_ends_and_says_how_many_were_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    break_at(monkeypatch, {2, 4, 6})
    with pytest.raises(TrainingError) as raised:
        start(folder, "save.every=1", "faults.rewinds=2", steps=4)
    assert raised.value.cause == ("step 4: the loss is nan; 2 rewinds did not help, and faults.rewinds allows no more")
    assert raised.value.remedy == "lower optimizer.lr"
    assert capsys.readouterr().err.count("back to") == 2


def test_nothing_saved_is_nothing_to_go_back_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_at(monkeypatch, {2})
    with pytest.raises(TrainingError, match="nothing is saved to go back to"):
        start(folder, "faults.rewinds=3", steps=4)


def test_a_spike_without_rewinds_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="rewinds is 0"):
        start(folder, "faults.spike=1.0")

"""The records of a run, and what a person sees of them while it goes on."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from neoxkit.train import live, metrics
from neoxkit.train.engine import TrainingError
from neoxkit.train.live import Live, curve
from neoxkit.train.metrics import Metrics
from neoxkit.train.trackers import Trackers


def record(step: int, loss: float = 2.0, **more: Any) -> dict[str, Any]:
    return {"step": step, "loss": loss, "norm": 0.5, "tokens": 100, "lr": 1e-3, "seconds": 0.5, **more}


def test_events_stay_when_a_run_goes_back(tmp_path: Path) -> None:
    with Metrics(tmp_path, 0, 4, 1) as told:
        told.event("begun", 0)
        for step in (1, 2, 3):
            told.step(record(step))
        told.event("stopped", 3)
    with Metrics(tmp_path, 2, 4, 1) as told:
        told.event("resumed", 2)
        told.step(record(3, loss=1.5))
    assert [(r["step"], r["loss"]) for r in metrics.read(tmp_path)] == [(1, 2.0), (2, 2.0), (3, 1.5)]
    events = metrics.read(tmp_path, metrics.EVENTS)
    assert [(e["event"], e["step"]) for e in events] == [("begun", 0), ("stopped", 3), ("resumed", 2)]
    assert all(e["time"].endswith("+00:00") for e in events)


def test_a_log_has_a_line_every_so_many_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Metrics(tmp_path, 0, 5, 2) as told:
        for step in (1, 2, 3, 4, 5):
            told.step(record(step, mfu=0.414))
        told.evaluation({"step": 5, "valid_loss": 2.5, "bits_per_byte": 1.25})
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "step 2/5  loss 2.0000  200 tokens/s  MFU 41.4%  lr 1.00e-03  0:00:02 left"
    assert [line[:8] for line in lines] == ["step 2/5", "step 4/5", "step 5/5", "step 5/5"]
    assert lines[-1] == "step 5/5  held-out loss 2.5000  1.2500 bits per byte"


def test_trackers_are_told_of_steps_and_evaluations_and_closed(tmp_path: Path) -> None:
    told: list[object] = []

    class Tracker:
        def log(self, step: int, values: object) -> None:
            told.append((step, values))

        def close(self, code: int, cause: str) -> None:
            told.append((code, cause))

    with Metrics(tmp_path, 0, 5, 9, Trackers({"test": Tracker})) as running:
        running.step(record(1))
        running.evaluation({"step": 1, "valid_loss": 2.5})
    assert told[0] == (
        1,
        {"train/loss": 2.0, "train/gradient_norm": 0.5, "train/learning_rate": 1e-3, "speed/seconds": 0.5},
    )
    assert told[1:] == [(1, {"valid/loss": 2.5}), (0, "")]
    with pytest.raises(TrainingError), Metrics(tmp_path, 0, 5, 9, Trackers({"test": Tracker})):
        raise TrainingError("the loss is nan", "lower optimizer.lr")
    with Metrics(tmp_path, 0, 5, 9, Trackers({"test": Tracker})) as running:
        running.code = 143  # as the loop says when it was stopped
    assert told[3:] == [(2, "the loss is nan; lower optimizer.lr"), (143, "signal 15")]


def test_other_processes_write_and_show_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Metrics(None, 0, 5, 9) as running:
        running.step(record(1))
        running.event("begun", 0)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Console:
    """A terminal of 100 columns, which is no real one."""
    made = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    monkeypatch.setattr(live, "console", lambda: made)
    monkeypatch.setattr(Console, "encoding", "utf-8")
    return made


def shown(screen: Console, view: Live) -> list[str]:
    with screen.capture() as captured:
        screen.print(view.view())
    return captured.get().splitlines()


def test_the_live_view_says_how_a_run_goes(screen: Console) -> None:
    view = Live(0, 10)
    assert "waiting for the first step" in "\n".join(shown(screen, view))
    for step, loss in ((1, 4.0), (2, 3.0), (3, 2.0)):
        more = {"perplexity": 7.389, "memory": 3 * 10**9, "mfu": 0.5, "data_seconds": 0.05, "wait_seconds": 0.1}
        view.update(record(step, loss, **more), rate=12345.6, pace=2.0)
    view.evaluation({"step": 2, "valid_loss": 3.25})
    bar, learning, speed = (line.strip() for line in shown(screen, view))
    assert bar.startswith("train ")
    assert bar.endswith(" 3/10  30% 0:00:14 left")
    assert learning == ("loss 2.0000 █▅▁   perplexity 7.389   held-out 3.2500 at step 2   lr 1.00e-03   gradient 0.5")
    assert speed == "tokens/s 12,346   MFU 50.0%   memory 3.00 GB   data 10%   waiting 20%   running 0:00:00"


def test_a_narrow_terminal_has_more_lines(screen: Console) -> None:
    screen.width = 40
    view = Live(0, 10)
    view.update(record(1, perplexity=7.389, memory=3 * 10**9), 12345.6, 1.0)
    lines = [line.strip() for line in shown(screen, view)]
    assert all(len(line) <= 40 for line in lines)
    assert "lr 1.00e-03   gradient 0.5" in lines


def test_the_live_view_counts_skipped_steps(screen: Console) -> None:
    view = Live(0, 10)
    view.update(record(1), 1.0, 1.0)
    view.update({k: v for k, v in record(2, skipped=True).items() if k not in ("loss", "norm")}, 1.0, 1.0)
    assert "skipped 1 of the last 2 steps" in "".join(shown(screen, view))
    assert "loss" not in "".join(shown(screen, view))


def test_what_is_told_stands_above_the_live_view(screen: Console) -> None:
    with Live(0, 10) as view:
        view.tell("[saved] step 1")
    assert "[saved] step 1" in screen.file.getvalue()  # type: ignore[attr-defined]


def test_a_small_curve_has_the_means_of_neighbours() -> None:
    assert curve([3.0, 2.0, 1.0], 3) == "█▅▁"
    assert curve([5.0, 3.0, 1.0, 1.0], 2) == "█▁"
    assert curve([2.0, 2.0], 8) == "▁▁"
    assert len(curve([float(n) for n in range(100)], 24)) <= 24


def test_records_are_json_of_one_line_each(tmp_path: Path) -> None:
    with Metrics(tmp_path, 0, 5, 9) as running:
        running.step(record(1, skipped=False))
    (line,) = (tmp_path / metrics.FILE).read_text().splitlines()
    assert json.loads(line) == record(1, skipped=False)

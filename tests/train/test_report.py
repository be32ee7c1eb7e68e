"""The page about a run: what it says, that it says it of a run in any state, and that it needs nothing else."""

from __future__ import annotations

import json
import math
import os
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import tiny_runs as runs
from browsing import Text
from click.testing import CliRunner

from neoxkit.checkpoint.folder import lock
from neoxkit.cli.report import command
from neoxkit.errors import CheckpointError
from neoxkit.train import metrics
from neoxkit.train.loop import train
from neoxkit.train.plot import LEFT, POINTS, RIGHT, WIDTH, Plot, Series, data, draw, noisy, short, smooth, thin, ticks
from neoxkit.train.report import Run, look, page


def write_run(folder: Path, steps: int = 3, **more: Any) -> Path:
    """A run's folder without checkpoints."""
    folder.mkdir(exist_ok=True)
    records = [
        {"step": s, "loss": 4 / s, "norm": 1.0, "tokens": 100, "lr": 1e-3, "seconds": 0.5, "memory": 10**9, **more}
        for s in range(1, steps + 1)
    ]
    (folder / metrics.FILE).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def tell(folder: Path, name: str, *records: dict[str, Any]) -> None:
    with (folder / name).open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def test_a_run_is_reported(folder: Path) -> None:
    config = runs.config("llama", folder, "save.every=2", "evaluation.every=2", steps=4)
    train(config, {"steps": 4, "model": {"family": "llama"}})
    result = CliRunner().invoke(command, [str(folder / "run")])
    assert result.exit_code == 0, result.output
    path = folder / "run" / "report.html"
    assert result.stdout == f"{path}\n"
    source = path.read_text()
    seen = Text(source)
    assert seen.fetched == []
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", source)
    records = metrics.read(folder / "run")
    last = [record for record in records if "tokens" in record][-1]
    assert f"{last['loss']:.4f}" in seen.said
    for said in ("ended", "step-00000002", "step-00000004", "begun", "held-out", "peak memory", "learning rate"):
        assert said in seen.said, said
    assert any("step 4 of 4" in said and "2 layers of 16" in said for said in seen.said)
    assert any(said.startswith("from_step 0, to_step 4") for said in seen.said)
    options = {said.partition(":")[0] for said in seen.said[-1].splitlines()}
    assert {"model", "optimizer", "steps"} <= options
    for drawing in re.findall(r"<svg.*?</svg>", source):
        ET.fromstring(drawing)


def test_a_resumed_run_says_so(folder: Path) -> None:
    for steps in (2, 4):
        train(runs.config("llama", folder, steps=steps), {"steps": steps})
    said = Text(page(look(folder / "run"))).said
    at = said.index("Events")
    events = [each for each in said[at : said.index("Checkpoints")] if each in ("begun", "ended", "resumed")]
    assert events == ["begun", "ended", "resumed", "ended"]


def test_a_run_that_is_going_on_is_reported_without_a_checkpoint(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    with (folder / metrics.FILE).open("a") as file:
        file.write('{"step": 4, "lo')
    tell(folder, metrics.EVENTS, {"step": 0, "event": "begun", "time": "2026-01-02T03:04:05+00:00"})
    assert look(folder).state == "not running"
    held = lock(folder)
    assert held is not None
    said = Text(page(look(folder))).said
    os.close(held)
    assert "going on" in said
    assert "step 3" in said
    assert "2026-01-02 03:04:05" in said


def test_a_damaged_checkpoint_is_done_without(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(runs.config("llama", folder, steps=1), {"steps": 1})
    (folder / "run" / "step-00000001" / "manifest.json").write_text("{")
    assert "step-00000001" in Text(page(look(folder / "run"))).said
    assert "warning: the report does without the newest checkpoint" in capsys.readouterr().err


def test_what_failed_and_what_was_skipped_is_told(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    tell(folder, metrics.FILE, *({"step": s, "tokens": 1, "skipped": True, "seconds": 1} for s in (4, 5, 6, 9)))
    tell(folder, metrics.EVENTS, {"step": 10, "event": "failed", "time": "", "cause": "the loss is <nan>"})
    run = look(folder)
    said = Text(page(run)).said
    assert run.state == "failed"
    assert "steps 4 to 6 skipped: the gradient overflowed" in said
    assert "step 9 skipped: the gradient overflowed" in said
    assert "failed: the loss is <nan>" in said


def test_what_is_no_number_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    tell(
        folder,
        metrics.FILE,
        {"step": 4, "loss": math.nan, "norm": None, "lr": "unknowable", "tokens": 100, "seconds": 1.0},
    )
    source = page(look(folder))
    assert not re.search("(?i)nan|unknowable|none", re.sub(r"<style>.*?</style>", "", source, flags=re.DOTALL))


def test_names_and_options_cannot_be_markup(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "<b>run<script>")
    run = look(folder)
    run = Run(run.folder, run.records, [], [], None, {"data": "</pre><script>alert(1)</script>"}, {}, False)
    source = page(run)
    assert "<script>alert" not in source
    assert "<b>run" not in source
    Text(source)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no metrics\.jsonl"):
        look(tmp_path)
    with pytest.raises(CheckpointError):
        look(tmp_path / "gone")


def test_points_lie_where_their_values_are() -> None:
    plot = Plot("loss", [Series("a", [(0, 0.0), (5, 1.0), (10, 2.0)])], short)
    drawing = ET.fromstring(re.search(r"<svg.*</svg>", draw(plot))[0])  # type: ignore[index]
    (line,) = (path.get("d") or "" for path in drawing.iter("path") if "line" in (path.get("class") or ""))
    points = [tuple(map(float, each.split())) for each in line[1:].split("L")]
    assert [x for x, _ in points] == [LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT]
    labels = {t.text: float(t.get("y", 0)) - 4 for t in drawing.iter("text") if t.get("text-anchor") == "end"}
    assert [labels["0"], labels["1"], labels["2"]] == pytest.approx([y for _, y in points], abs=0.2)


def test_values_far_above_the_others_make_an_axis_of_powers() -> None:
    values = [(float(n), 1.0) for n in range(50)] + [(50.0, 1e5)]
    assert ">100<" in draw(Plot("norm", [Series("", values)], short, powers=True))
    assert ">100<" not in draw(Plot("norm", [Series("", values)], short))


def test_a_single_point_and_a_flat_curve_are_drawn() -> None:
    assert "<circle" in draw(Plot("loss", [Series("", [(1, 2.0)])], short))
    assert "NaN" not in draw(Plot("loss", [Series("", [(1, 0.0), (2, 0.0)])], short))


def test_a_thinned_curve_keeps_its_extremes() -> None:
    points = [(float(n), math.sin(n / 100)) for n in range(10_000)]
    points[1234] = (1234.0, 9.0)
    points[4321] = (4321.0, -9.0)
    kept = thin(points)
    assert len(kept) <= POINTS
    assert {(1234.0, 9.0), (4321.0, -9.0)} <= set(kept)
    assert kept == sorted(kept)


def test_a_smoothed_curve_begins_with_its_first_value_and_keeps_a_constant() -> None:
    assert smooth([(1, 3.0), (2, 3.0)]) == [(1, pytest.approx(3.0)), (2, pytest.approx(3.0))]
    assert smooth([(1, 5.0), (2, 1.0)])[0] == (1, pytest.approx(5.0))
    steps = [(float(n), float(n % 2)) for n in range(1000)]
    assert all(value == pytest.approx(0.5, abs=0.1) for _, value in smooth(steps)[500:])


def test_a_steep_beginning_does_not_stretch_the_axis() -> None:
    values = [(float(n), 1000.0 if n < 5 else 1.0 + n / 1000) for n in range(1000)]
    drawn = draw(Plot("loss", noisy("", values), short, skip=0.02))
    assert ">1000<" not in re.sub(r"<text[^>]*middle.*?</text>", "", drawn)
    assert ">500<" in draw(Plot("loss", noisy("", values), short))


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0011, 0.0102), (-3.0, 12345.0), (99.7, 100.1)])
def test_ticks_are_round_and_few(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 6
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in found)


def test_numbers_are_short() -> None:
    numbers = (0, 4896, 12345, 1234567, 2.5e9, 0.00012, 3.14159)
    assert [short(n) for n in numbers] == ["0", "4896", "12.3k", "1.23M", "2.5G", "1.2e-04", "3.142"]
    assert "</script" not in data([Plot("</script>", [Series("</script>", [(1, 1.0)])], lambda value: "</script>")])

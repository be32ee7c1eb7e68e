"""Results beside each other: the newest counts, what was measured otherwise stays apart, and the command that tells."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from score_files import DAY, write

from neoxkit.cli import main
from neoxkit.errors import ConfigError, DataError
from neoxkit.eval import tables
from neoxkit.eval.charts import charts
from neoxkit.eval.comparison import Difference
from neoxkit.eval.results import find, read
from neoxkit.eval.scores import Scores, collect
from neoxkit.train.plot import Plot

GOOD, BAD = [1.0] * 40 + [0.0] * 10, [1.0] * 20 + [0.0] * 30


def gather(*places: Path, **chosen: Any) -> Scores:
    return collect([read(path) for path in find(places)], **chosen)


def cells(scores: Scores) -> list[list[str]]:
    return [list(row) for row in tables.table(scores).rows]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["scores", *map(str, arguments)])


def test_two_models_are_compared(tmp_path: Path) -> None:
    write(tmp_path / "1", {"arc": BAD, "piqa": GOOD}, "models/a")
    write(tmp_path / "2", {"arc": GOOD, "piqa": BAD}, "models/b")
    result = run(tmp_path)
    assert result.exit_code == 0, result.output
    head, arc, piqa, *notes = result.stdout.splitlines()
    assert head.split() == ["task", "metric", "n-shot", "a", "b", "difference", "error", "from", "b", "is"]
    # 20 of 50 differ by 1: their mean's error is the root of 0.4 * 0.6 / 49.
    assert "0.4000 ± 0.0700  0.8000 ± 0.0571  +0.4000 ± 0.0700    50 pairs  better" in arc
    assert "-0.4000 ± 0.0700    50 pairs  worse" in piqa
    assert notes == [
        "Differences are b minus a.",
        "A difference counts when it exceeds 1.96 of its standard errors (95%).",
    ]
    turned = run(tmp_path / "2", tmp_path / "1").stdout.splitlines()
    assert turned[1].endswith("worse")


def test_without_samples_each_error_counts(tmp_path: Path) -> None:
    write(tmp_path / "1", {"arc": BAD}, "a", samples=False)
    write(tmp_path / "2", {"arc": GOOD}, "b")
    scores = gather(tmp_path)
    assert scores.comparison is not None
    ((row, told),) = scores.comparison.items()
    assert isinstance(told, Difference)
    assert (told.paired, told.why, told.verdict) == (0, "no samples", "better")
    errors = [model.cells[row][0].error or 0 for model in scores.models]
    assert told.error == pytest.approx((errors[0] ** 2 + errors[1] ** 2) ** 0.5)
    assert scores.unsure == ["arc"]
    assert any("nobody knows whether prompts were the same: arc." in note for note in tables.notes(scores))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"versions": {"arc": 2.0}}, "version 1.0 and version 2.0"),
        ({"n_shot": {"arc": 5}, "task_hashes": {"arc": "x"}}, "n-shot 0 and n-shot 5"),
        ({"n_samples": {"arc": {"original": 99, "effective": 50}}}, "50 documents and 50 of 99 documents"),
        ({"task_hashes": {"arc": "f" * 64}}, f"prompts {'0' * 8} and prompts {'f' * 8}"),
        ({"chat_template_sha": "ab" * 32, "task_hashes": {"arc": "x"}}, "no chat template and chat template abababab"),
        ({"system_instruction_sha": "cd" * 32}, "no system instruction and system instruction cdcdcdcd"),
        ({"configs": {"arc": {"generation_kwargs": {"temperature": 1}}}}, "no generation settings and generation"),
    ],
)
def test_what_was_put_in_another_way_is_not_compared(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    write(tmp_path / "1", {"arc": BAD}, "a")
    write(tmp_path / "2", {"arc": GOOD}, "b", **changed)
    scores = gather(tmp_path)
    assert len(scores.rows) == 2
    assert scores.comparison is not None
    reasons = list(scores.comparison.values())
    assert all(isinstance(each, str) and each.startswith(f"not comparable: {said}") for each in reasons), reasons
    names = [scores.name(row) for row in scores.rows]
    assert len(set(names)) == 2
    assert all(name.startswith("arc (") for name in names)
    assert next(tables.notes(scores)) == "Put in several ways, which are not compared with each other: arc."
    made = run(tmp_path, "--json")
    (first, _) = json.loads(made.stdout)["comparison"]
    assert (first["comparable"], first["difference"], first["verdict"]) == (False, None, None)


def test_the_same_number_of_examples_with_other_prompts_has_a_name_of_its_own(tmp_path: Path) -> None:
    for number, keys in enumerate(({}, {"task_hashes": {"arc": "e" * 64}}, {"n_shot": {"arc": 5}})):
        write(tmp_path / str(number), {"arc": BAD}, str(number), **keys)
    scores = gather(tmp_path)
    assert [scores.name(row) for row in scores.rows] == [
        f"arc (n-shot 0, prompts {'0' * 8})",
        f"arc (n-shot 0, prompts {'e' * 8})",
        "arc (n-shot 5)",
    ]


def test_the_newest_counts(tmp_path: Path) -> None:
    write(tmp_path / "z", {"arc": BAD, "piqa": BAD}, date=DAY)
    newest = write(tmp_path / "y", {"arc": GOOD}, date=3 * DAY)
    write(tmp_path / "x", {"arc": BAD}, date=2 * DAY)
    scores = gather(tmp_path)
    assert sorted(row[3][:6] for row in cells(scores)) == ["0.4000", "0.8000"]
    by_task = {row.task: scores.models[0].cells[row] for row in scores.rows}
    assert by_task["arc"][0].value == 0.8
    assert by_task["arc"][1].path == newest
    assert by_task["piqa"][0].value == 0.4


def test_other_weights_under_the_same_name_stay_apart(tmp_path: Path) -> None:
    write(tmp_path / "1", {"arc": BAD}, config={"model_sha": "1" * 16})
    write(tmp_path / "2", {"arc": GOOD}, config={"model_sha": "2" * 16}, date=2 * DAY)
    scores = gather(tmp_path)
    assert [model.label for model in scores.models] == [f"a, {'1' * 16}", f"a, {'2' * 16}"]
    write(tmp_path / "3", {"arc": GOOD}, config={"model_sha": "2" * 16, "model_dtype": "bf16"})
    assert [model.label for model in gather(tmp_path).models][2] == "a, bf16"


def test_labels_are_as_short_as_they_may_be(tmp_path: Path) -> None:
    for number, name in enumerate(("x/one", "y/one", "z/two")):
        write(tmp_path / str(number), {"arc": BAD}, name)
    assert [model.label for model in gather(tmp_path).models] == ["x/one", "y/one", "two"]


def write_runs(folder: Path) -> None:
    chance = random.Random(0)
    for step in (30, 4, 200):
        for name in ("runs/x", "runs/y"):
            values = [float(chance.random() < step / 250) for _ in range(50)]
            write(folder / f"{name}-{step}", {"arc": values}, name, step=step)
    write(folder / "other", {"arc": GOOD}, "hub/other")


def test_steps_of_runs_stand_under_each_other(tmp_path: Path) -> None:
    write_runs(tmp_path)
    scores = gather(tmp_path)
    shown = tables.table(scores)
    assert list(shown.head) == ["task", "metric", "n-shot", "step", "other", "x", "y"]
    assert [row[3] for row in shown.rows] == ["-", "4", "30", "200"]
    assert shown.rows[0][4:] == ["0.8000 ± 0.0571", "-", "-"]
    assert scores.comparison is None
    (plot,) = charts(scores)
    assert isinstance(plot, Plot)
    curves = {series.name: series for series in plot.series}
    assert [step for step, _ in curves["x"].points] == [4, 30, 200]
    assert len(curves["x"].errors) == 3
    assert curves["other"].points == [(4, 0.8), (200, 0.8)]
    (plot,) = charts(gather(tmp_path / "runs"), tokens=True)
    assert isinstance(plot, Plot)
    assert [place for place, _ in plot.series[0].points] == [4000, 30000, 200000]


def test_two_steps_of_a_run_are_compared(tmp_path: Path) -> None:
    write(tmp_path / "1", {"arc": BAD}, "runs/x", step=10)
    write(tmp_path / "2", {"arc": GOOD}, "runs/x", step=2000)
    ((*_, difference, _, verdict),) = cells(gather(tmp_path))
    assert tables.table(gather(tmp_path)).head[3:5] == ["x step 10", "x step 2,000"]
    assert (difference, verdict) == ("+0.4000 ± 0.0700", "better")


def test_a_step_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    write_runs(tmp_path)
    write(tmp_path / "again", {"arc": BAD}, "runs/x", step=30, config={"model_sha": "other"})
    with pytest.raises(DataError, match="the same step of x, other weights; name one of them"):
        gather(tmp_path)


def test_lower_may_be_better(tmp_path: Path) -> None:
    for name, values in (("a", GOOD), ("b", BAD)):
        write(tmp_path / name, {"wiki": values}, name, metric="bits_per_byte", higher=False)
    ((_, metric, *_, verdict),) = cells(gather(tmp_path))
    assert (metric, verdict) == ("bits_per_byte (lower is better)", "better")


def test_numbers_are_written_to_be_read() -> None:
    numbers = (0.5, -0.12345, 999.9, 1234.56, 9_999_999.0, 2.7e14, float("inf"))
    said = ["0.5000", "-0.1235", "999.9000", "1,234.6", "9,999,999.0", "2.700e+14", "no number"]
    assert [tables.number(value) for value in numbers] == said


def test_of_many_comparisons_some_exceed_by_chance(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, {f"task{n}": GOOD for n in range(20)}, name)
    assert list(tables.notes(gather(tmp_path)))[-1].startswith("Of 20 comparisons of equal models about 1 would")


def test_tasks_and_metrics_are_chosen(tmp_path: Path) -> None:
    write(tmp_path / "1", {"arc_easy": BAD, "arc_challenge": BAD, "piqa": BAD}, metric="exact_match", kept="strict")
    assert [row.task for row in gather(tmp_path, tasks=["arc_*"]).rows] == ["arc_easy", "arc_challenge"]
    assert len(gather(tmp_path, metrics=["exact_match"]).rows) == 3
    assert len(gather(tmp_path, tasks=["piqa"], metrics=["exact_match,strict"]).rows) == 1
    with pytest.raises(ConfigError, match="there are arc_challenge, arc_easy, exact_match,strict, piqa"):
        gather(tmp_path, tasks=["arc"])


def test_json_has_what_decides(tmp_path: Path) -> None:
    write(tmp_path / "1", {"arc": BAD}, "models/a")
    write(tmp_path / "2", {"arc": GOOD}, "models/b", results={"arc": {"acc,none": float("nan")}})
    result = run(tmp_path, "--json")
    assert "NaN" not in result.stdout
    found = json.loads(result.stdout)
    first, second = found["models"]
    assert (
        first["fingerprint"] == json.loads(next((tmp_path / "1").glob("results*")).read_text())["config"]["model_sha"]
    )
    assert (first["model"], first["date"]) == ("a", "1970-01-02T00:00:00+00:00")
    assert second["files"] == [str(next((tmp_path / "2").glob("results*")))]
    (row,) = found["scores"]
    assert row["settings"] == {
        "version": "1.0",
        "shots": "0",
        "documents": "50",
        "template": None,
        "instruction": None,
        "generation": None,
        "prompts": f"{50:064x}",
    }
    assert [each["value"] for each in row["values"]] == [0.4, None]
    (told,) = found["comparison"]
    assert (told["comparable"], told["difference"], told["verdict"]) == (True, None, "no number")


def test_pictures_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_runs(tmp_path / "runs")
    for name in ("a", "b", "c"):
        write(tmp_path / "many" / name, {"arc": GOOD, "a task with a name that is long": BAD}, name)
    for kind in ("runs", "many"):
        result = run(tmp_path / kind, "--plot", tmp_path / f"{kind}.png")
        assert result.exit_code == 0, result.output
        assert result.stderr == f"wrote {tmp_path / f'{kind}.png'}\n"
        assert (tmp_path / f"{kind}.png").read_bytes().startswith(b"\x89PNG")
    assert run(tmp_path / "many", "--plot", tmp_path / "many.svg").exit_code == 0
    assert "a task with a name that is long" in (tmp_path / "many.svg").read_text()
    assert not list(tmp_path.glob(".*"))


def test_what_can_not_be_written_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "1", {"arc": BAD})
    there = tmp_path / "there.html"
    there.write_text("mine")
    for arguments, said in (
        (["--page", there], "there.html: is there already; name another file, or replace it with --force"),
        (["--page", tmp_path / "no" / "a.html"], "no is no folder; make it first, or write elsewhere"),
        (["--plot", tmp_path / "a.bmp"], "a.bmp: not a name of a picture; let it end in .png, .svg, .pdf"),
        (["--tokens"], "--tokens: these are not results of several steps of a run; leave it out"),
        (["--task", "x"], "there is no score of what --task and --metric name; there are acc, arc"),
    ):
        result = run(tmp_path, *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("error: ")
        assert said in result.stderr
    assert there.read_text() == "mine"
    assert run(tmp_path, "--page", there, "--force").exit_code == 0
    assert there.read_text().startswith("<!doctype html>")

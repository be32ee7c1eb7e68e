"""Differences of scores: against scipy, by hand, and on models that are equal."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from neoxkit.errors import DataError
from neoxkit.eval.comparison import compare, pair, read_samples
from neoxkit.eval.results import Score


def score(values: list[float], higher: bool | None = True) -> Score:
    return Score(statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values)), higher)


def drawn(seed: int, count: int = 60) -> tuple[list[float], list[float]]:
    chance = random.Random(seed)
    first = [chance.gauss(0, 1) for _ in range(count)]
    return first, [value + chance.gauss(0.15, 0.3) for value in first]


def test_by_hand() -> None:
    first, second = Score(0.40, 0.03, True), Score(0.50, 0.04, True)
    found = compare(first, second, "no samples")
    assert found.value == pytest.approx(0.10)
    assert found.error == pytest.approx(0.05)  # 3, 4, 5
    assert (found.verdict, found.paired, found.why) == ("better", 0, "no samples")
    # Differences 1, 0, 1, 0: their deviation is the root of 1/3, of the mean half of that.
    found = compare(Score(0.5, 0.3, True), Score(1.0, 0.0, True), ([0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]))
    assert found.value == 0.5
    assert found.error == pytest.approx(math.sqrt(1 / 3) / 2)
    assert (found.verdict, found.paired) == ("within the error", 4)  # 0.5 is 1.73 of 0.289


def test_scipy_says_the_same() -> None:
    stats = pytest.importorskip("scipy.stats")
    first, second = drawn(0)
    paired = compare(score(first), score(second), (first, second))
    assert paired.error is not None
    assert paired.value / paired.error == pytest.approx(stats.ttest_rel(second, first).statistic)
    alone = compare(score(first), score(second), "no samples")
    assert alone.error is not None
    assert alone.value / alone.error == pytest.approx(stats.ttest_ind(second, first, equal_var=False).statistic)
    assert paired.error < alone.error / 2
    assert (alone.verdict, paired.verdict) == ("within the error", "better")


@pytest.mark.parametrize("paired", [True, False])
def test_of_equal_models_one_in_twenty_seems_different(paired: bool) -> None:
    chance, different, times = random.Random(1), 0, 1500
    for _ in range(times):
        first, second = ([chance.gauss(0, 1) for _ in range(50)] for _ in range(2))
        found = compare(score(first), score(second), (first, second) if paired else "no samples")
        different += found.verdict != "within the error"
    assert different / times == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize(
    ("value", "higher", "verdict"),
    [
        (1.0, True, "better"),
        (-1.0, True, "worse"),
        (1.0, False, "worse"),
        (-1.0, False, "better"),
        (1.0, None, "higher"),
        (-1.0, None, "lower"),
        (0.0, True, "within the error"),
        (0.19, True, "within the error"),
        (0.20, True, "better"),
        (math.nan, True, "no number"),
    ],
)
def test_the_direction_decides(value: float, higher: bool | None, verdict: str) -> None:
    assert compare(Score(0.0, 0.06, higher), Score(value, 0.08, higher), "no samples").verdict == verdict


def test_what_has_no_error_is_not_judged() -> None:
    found = compare(Score(0.1, None, True), Score(0.9, 0.1, True), "no samples")
    assert (found.error, found.verdict) == (None, "no standard error")
    found = compare(Score(0.0, 0.0, True), Score(1.0, 0.0, True), ([0.0, 0.0], [1.0, 1.0]))
    assert (found.error, found.verdict) == (0.0, "too few documents")
    same = ([0.0, 1.0], [0.0, 1.0])
    assert compare(Score(0.5, 0.5, True), Score(0.5, 0.5, True), same).verdict == "within the error"


def samples(path: Path, rows: Sequence[tuple[int, Any]], **keys: object) -> Path:
    made = [{"doc_id": n, "filter": "none", "doc_hash": f"d{n}", "target_hash": "t", "acc": v, **keys} for n, v in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def test_documents_are_paired_by_what_they_are(tmp_path: Path) -> None:
    first = read_samples(samples(tmp_path / "a", [(0, 1), (1, 0), (2, 0)]))
    second = read_samples(samples(tmp_path / "b", [(2, 1), (0, 0), (1, 0)]))  # in another order
    scores = Score(1 / 3, 0.1, True), Score(1 / 3, 0.1, True)
    third = 1 / 3
    assert pair(first, second, "acc", scores) == (
        pytest.approx([1 - third, -third, -third]),
        pytest.approx([-third, -third, 1 - third]),
    )
    assert pair(first, second, "f1", scores) == "no values of documents"
    assert pair(first, second, "acc,strict", scores) == "no values of documents"
    fewer = read_samples(samples(tmp_path / "c", [(0, 1), (1, 0)]))
    assert pair(first, fewer, "acc", scores) == "other documents"
    other = read_samples(samples(tmp_path / "d", [(0, 1), (1, 0), (2, 0)], doc_hash="x"))
    assert pair(first, other, "acc", scores) == "other documents"


def test_what_does_not_follow_from_documents_is_not_paired(tmp_path: Path) -> None:
    asked = read_samples(samples(tmp_path / "a", [(0, -1), (1, -3)]))
    f1 = Score(0.7, 0.1, True)
    assert pair(asked, asked, "acc", (f1, f1)) == "not a mean of documents"
    assert isinstance(pair(asked, asked, "acc", (Score(-2, None, True), Score(-2, None, True))), tuple)


@pytest.mark.parametrize("score", [lambda r: r, lambda r: math.exp(-r), lambda r: -r / math.log(2)])
def test_the_error_of_a_ratio_is_that_of_drawing_documents_anew(tmp_path: Path, score: Any) -> None:
    """Perplexity and bits per byte are ratios of sums; their error is compared with the bootstrap's."""
    chance = random.Random(2)
    weights = [chance.randint(20, 200) for _ in range(300)]
    texts = [[(-2.0 + chance.gauss(0, 0.3)) * w for w in weights]]
    texts.append([x + w * chance.gauss(0.05, 0.1) for x, w in zip(texts[0], weights, strict=True)])

    def of(sums: list[float], chosen: Sequence[int]) -> float:
        return float(score(sum(sums[n] for n in chosen) / sum(weights[n] for n in chosen)))

    everything = range(len(weights))
    files = [
        samples(tmp_path / str(n), [(i, [sums[i], weights[i]]) for i in everything]) for n, sums in enumerate(texts)
    ]
    scores = Score(of(texts[0], everything), None, False), Score(of(texts[1], everything), None, False)
    parts = pair(read_samples(files[0]), read_samples(files[1]), "acc", scores)
    found = compare(*scores, parts)
    drawn_anew = [chance.choices(everything, k=len(weights)) for _ in range(400)]
    differences = [of(texts[1], chosen) - of(texts[0], chosen) for chosen in drawn_anew]
    assert found.error == pytest.approx(statistics.stdev(differences), rel=0.12)
    assert found.paired == 300


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"doc": 1}', '{"doc_id": 1}\n{"doc_id": 1}', "\xff"])
def test_damaged_samples_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "samples_task_now.jsonl"
    path.write_text(text + "\n", encoding="latin-1")
    with pytest.raises(DataError, match=r"samples_task_now.jsonl:\d: "):
        read_samples(path)

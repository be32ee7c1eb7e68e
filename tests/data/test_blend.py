"""Blends: gpt-neox's golden numbers, exact shares, and changes of weight while a run goes on."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neoxkit.data.rows.blend import BLOCK, PERIOD, Blend, Phase, apportion, weights_by_documents
from neoxkit.errors import DataError
from neoxkit.native import blending

THREE = (1.0, 2.0, 1.0)


@pytest.mark.parametrize(
    ("weights", "sources", "rows"),
    [
        (THREE, [1, 0, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1], [0, 0, 0, 1, 1, 2, 1, 3, 2, 4, 2, 5, 3, 6, 3, 7]),
        (
            (0.7, 0.2, 0.1),
            [0, 1, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0, 2, 0, 0, 0, 1, 0, 0],
            [0, 0, 1, 0, 2, 3, 4, 1, 5, 6, 7, 2, 8, 1, 9, 10, 11, 3, 12, 13],
        ),
    ],
)
@pytest.mark.parametrize("compiled", [True, False])
def test_golden_blends(
    weights: tuple[float, ...],
    sources: list[int],
    rows: list[int],
    compiled: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not compiled:
        monkeypatch.setattr(blending, "library", lambda: None)
    blend = Blend([Phase(0, weights, "gpt-neox")])
    assert [blend.locate(row) for row in range(len(rows))] == list(zip(sources, rows, strict=True))


def test_golden_weights_by_documents() -> None:
    assert weights_by_documents([100, 200, 700], 0.3) == pytest.approx([0.371478305267, 0.406527502407, 0.221994192326])
    assert weights_by_documents([100, 200, 700], 1) == pytest.approx([0.195652173913, 0.347826086957, 0.45652173913043])
    assert weights_by_documents([7], 0.3) == [1.0]


def test_compiled_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = np.random.RandomState(0).random_sample(17)
    weights /= weights.sum()
    ours, theirs = np.zeros(17, np.int64), np.zeros(17, np.int64)
    first = blending.blend(weights, 0, 20_000, ours)
    monkeypatch.setattr(blending, "library", lambda: None)
    second = blending.blend(weights, 0, 20_000, theirs)
    assert [each.tolist() for each in first] == [each.tolist() for each in second]
    assert ours.tolist() == theirs.tolist()


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(0.1, 1e3), min_size=1, max_size=12))
def test_exact_shares_are_exact_to_the_row_and_even(weights: list[float]) -> None:
    blend = Blend([Phase(0, tuple(weights))])
    quotas = np.array(weights) / sum(weights)
    for periods in (1, 3):
        counts = blend.counts(periods * PERIOD)
        assert counts.sum() == periods * PERIOD
        assert np.abs(counts - quotas * PERIOD * periods).max() < periods
    for rows in (10, 1000, 12345):  # within a period each is as near as the others let it be
        assert np.abs(blend.counts(rows) - quotas * rows).max() < len(weights)


def test_whole_weights_are_the_rows_of_a_period() -> None:
    blend = Blend([Phase(0, (30.0, 7.0, 1.0))])
    for periods in (1, 2, 5):
        assert blend.counts(38 * periods).tolist() == [30 * periods, 7 * periods, periods]
    assert sorted(blend.locate(row) for row in range(38, 76)) == sorted(
        [(0, k) for k in range(30, 60)] + [(1, k) for k in range(7, 14)] + [(2, 1)]
    )


def test_largest_remainder() -> None:
    assert apportion(np.array([3.0, 2.0, 2.0]), 8).tolist() == [4, 2, 2]
    assert apportion(np.array([1.0, 1.0, 1.0]), 8).tolist() == [3, 3, 2]


@pytest.mark.parametrize("algorithm", ["exact", "gpt-neox"])
def test_every_row_of_a_source_comes_once_whatever_the_weights_become(algorithm: str) -> None:
    """Sources 0 to 2; the second is given up, a fourth is new, and the first comes back."""
    phases = [
        Phase(0, (3.0, 1.0, 1.0, 0.0), algorithm),  # type: ignore[arg-type]
        Phase(70_001, (1.0, 0.0, 1.0, 5.0)),
        Phase(80_000, (0.0, 0.0, 1.0, 1.0), algorithm),  # type: ignore[arg-type]
        Phase(90_000, (1.0, 1.0, 1.0, 1.0)),
    ]
    blend = Blend(phases)
    seen: dict[int, int] = {}
    wanted = Counter[int]()
    for row in range(100_000):
        source, index = blend.locate(row)
        assert index == seen.get(source, -1) + 1
        seen[source] = index
        wanted[source] += 1
        if row in (0, 70_000, 70_001, 79_999, 99_999):
            assert blend.counts(row + 1).tolist() == [wanted[k] for k in range(4)]
    assert all(Blend(phases).locate(row) == blend.locate(row) for row in (99_999, 3, 70_001, 85_000))


@pytest.mark.parametrize("algorithm", ["exact", "gpt-neox"])
def test_hundreds_of_sources(algorithm: str) -> None:
    """gpt-neox keeps the source of a row in 8 bits."""
    weights = tuple(float(1 + k % 7) for k in range(700))
    blend = Blend([Phase(0, weights, algorithm)])  # type: ignore[arg-type]
    found = Counter(blend.locate(row)[0] for row in range(BLOCK))
    shares = np.array(weights) / sum(weights) * BLOCK
    assert len(found) == 700
    assert max(abs(found[k] - shares[k]) for k in range(700)) < 3


def test_blocks_of_the_greedy_blend_join() -> None:
    """Rows far on, asked for first, are those that come when all are asked for in turn."""
    blend, again = Blend([Phase(0, THREE, "gpt-neox")]), Blend([Phase(0, THREE, "gpt-neox")])
    far = [blend.locate(row) for row in range(2 * BLOCK - 3, 2 * BLOCK + 3)]
    turn = [again.locate(row) for row in range(2 * BLOCK + 3)]
    assert turn[-6:] == far
    assert Counter(source for source, _ in turn) == dict(enumerate(again.counts(len(turn)).tolist()))


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ((), "not numbers of at least 0"),
        ((1.0, float("nan")), "not numbers of at least 0"),
        ((0.0, 0.0), "not numbers of at least 0"),
        ((1.0, -1.0), "not numbers of at least 0"),
        ((1.0, 1e-9), "the weight 1e-09 of source 2 is below one row in 1,048,576"),
    ],
)
def test_weights_that_cannot_be_followed_are_refused(weights: tuple[float, ...], said: str) -> None:
    with pytest.raises(DataError, match=said):
        Blend([Phase(0, weights)])

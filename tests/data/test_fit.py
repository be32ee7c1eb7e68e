"""Rows of whole documents: nothing is lost, nothing is twice, and what is to fit fits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from neoxkit.data.rows.arrange import Arrangement
from neoxkit.data.rows.fit import Grouped, best_fit, pieces_of, recipes, until_full
from neoxkit.data.rows.order import Span
from neoxkit.data.tokens.indexed import IndexedFile, IndexedWriter
from neoxkit.errors import DataError

Kind = Literal["whole", "single", "best_fit"]
KINDS: tuple[Kind, ...] = ("whole", "single", "best_fit")


def file_of(folder: Path, lengths: list[int]) -> IndexedFile:
    with IndexedWriter(folder / "p", 1000, force=True) as writer:
        for number, length in enumerate(lengths):
            writer.add(np.arange(length) + number)
        writer.commit()
    return IndexedFile(folder / "p")


def spans_of(
    file: IndexedFile, kind: Kind, context: int, passes: int = 1, seed: int = 0, first: int = 0, last: int | None = None
) -> list[list[list[Span]]]:
    """The rows of each pass."""
    last = len(file) if last is None else last
    order = Arrangement(kind=kind, context=context, seed=seed, first=first, last=last).order(file)
    found, at = [], 0
    for number in range(passes):
        count = order._pass(number).count
        found.append([order.spans(k) for k in range(at, at + count)])
        at += count
    return found


LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=40)


@settings(deadline=None, max_examples=60)
@given(lengths=LENGTHS, context=st.integers(1, 12), kind=st.sampled_from(KINDS), seed=st.integers(0, 3))
def test_every_label_of_every_document_is_there_once_a_pass(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], context: int, kind: Kind, seed: int
) -> None:
    """A label is a token that is foretold from the one before it in its document; and a row holds what it can."""
    assume(any(length >= 2 for length in lengths))
    file = file_of(tmp_path_factory.mktemp("fit"), lengths)
    wanted = Counter((k, at) for k, length in enumerate(lengths) for at in range(1, length))
    for rows in spans_of(file, kind, context, passes=3, seed=seed):
        labels = Counter((s.sequence, at) for row in rows for s in row for at in range(s.start + 1, s.stop))
        assert labels == wanted
        assert all(sum(s.stop - s.start for s in row) <= context + 1 for row in rows)
        assert kind != "single" or all(len(row) == 1 for row in rows)
        firsts = Counter(s.sequence for row in rows for s in row if s.start == 0)
        shortest = 2 if kind == "single" else 1
        assert firsts == Counter(k for k, length in enumerate(lengths) if length >= shortest)


def test_passes_are_in_different_orders_and_the_same_each_time(tmp_path: Path) -> None:
    file = file_of(tmp_path, [*range(2, 40)] * 3)
    for kind in KINDS:
        first, second, third = spans_of(file, kind, 50, passes=3)
        assert first != second != third
        assert spans_of(file, kind, 50, passes=2) == [first, second]
        assert spans_of(file, kind, 50, seed=1)[0] != first


def test_only_a_stretch_of_the_file_is_read(tmp_path: Path) -> None:
    """gpt-neox reads documents 0 to n - 1 of the file for the held-out part too."""
    file = file_of(tmp_path, [5, 6, 7, 8, 9, 10])
    for kind in KINDS:
        rows = spans_of(file, kind, 11, first=2, last=4)[0]
        assert {s.sequence for row in rows for s in row} == {2, 3}


def test_a_row_ends_before_the_document_that_would_overflow_it() -> None:
    """The loop that `until_full` is, in its own words."""
    dice = np.random.RandomState(3)
    for _ in range(50):
        sizes = dice.randint(1, 12, size=dice.randint(1, 30))
        pieces = pieces_of(sizes, 0, 12)
        grouped = until_full(pieces, 12, 0, np.random.RandomState(5))
        rows: list[list[int]] = [[]]
        for member in grouped.members.tolist():
            if sum(int(pieces.size[m]) for m in rows[-1]) + int(pieces.size[member]) > 12:
                rows.append([])
            rows[-1].append(member)
        assert [[s.sequence for s in grouped.spans(k)] for k in range(grouped.count)] == rows


def loop(sizes: list[int], capacity: int) -> list[int]:
    """Best-fit decreasing as everybody writes it: what is left in each row."""
    rooms: list[int] = []
    for size in sorted(sizes, reverse=True):
        fits = [room for room in rooms if room >= size]
        if fits:
            rooms.remove(min(fits))
            rooms.append(min(fits) - size)
        else:
            rooms.append(capacity - size)
    return sorted(rooms)


@settings(deadline=None, max_examples=200)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=60))
def test_best_fit_is_best_fit_decreasing(sizes: list[int]) -> None:
    grouped = best_fit(pieces_of(np.array(sizes), 0, 30), 30, 0, np.random.RandomState(0))
    rooms = [30 - sum(s.stop - s.start for s in grouped.spans(k)) for k in range(grouped.count)]
    assert sorted(rooms) == loop(sizes, 30)


def test_recipes_count_every_piece() -> None:
    amounts = {7: 10, 5: 3, 2: 100, 1: 4}
    found: Counter[int] = Counter()
    for rows, recipe in recipes(amounts, 12, 0):
        assert sum(length * each for length, each in recipe) <= 12
        for length, each in recipe:
            found[length] += rows * each
    assert found == amounts


def test_what_documents_grow_by_is_left_free() -> None:
    sizes = np.array([9, 9, 4, 4, 4])
    for make in (until_full, best_fit):
        pieces = pieces_of(sizes, 0, 20 - 3)
        grouped: Grouped = make(pieces, 20, 3, np.random.RandomState(0))
        for k in range(grouped.count):
            assert sum(s.stop - s.start + 3 for s in grouped.spans(k)) <= 20


def test_nothing_to_predict_is_refused(tmp_path: Path) -> None:
    for kind, lengths in (("single", [1, 1, 0]), ("whole", [0, 0]), ("best_fit", [])):
        with pytest.raises(DataError, match=r"p\.bin: nothing to predict in \d documents"):
            spans_of(file_of(tmp_path, lengths), kind, 5)  # type: ignore[arg-type]


def test_rows_too_short_to_be_turned_are_refused(tmp_path: Path) -> None:
    file = file_of(tmp_path, [9, 9])
    with pytest.raises(DataError, match=r"p\.bin: rows of 3 tokens have no room for the 3 that fill_in_middle puts"):
        Arrangement(kind="whole", context=3, seed=0, first=0, last=2, turned=True).order(file)
    assert Arrangement(kind="whole", context=4, seed=0, first=0, last=2, turned=True).order(file).first.count

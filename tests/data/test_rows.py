"""What a row becomes: masks, segments, labels, and the middle that comes last."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from neoxkit.data.rows.arrange import Arrangement
from neoxkit.data.rows.batch import collate
from neoxkit.data.rows.fill_in_middle import FillInMiddle
from neoxkit.data.rows.order import Order, Span
from neoxkit.data.rows.rows import Reading, Rows
from neoxkit.data.tokens.indexed import IndexedFile, IndexedWriter
from neoxkit.errors import DataError

END = 999


class Fixed:
    """A pass of rows that were thought of beforehand."""

    def __init__(self, rows: list[list[Span]]) -> None:
        self._rows = rows

    @property
    def count(self) -> int:
        return len(self._rows)

    def spans(self, number: int) -> list[Span]:
        return self._rows[number]


def file_of(folder: Path, documents: list[list[int]], name: str = "p") -> IndexedFile:
    with IndexedWriter(folder / name, 1000, force=True) as writer:
        for ids in documents:
            writer.add(ids)
        writer.commit()
    return IndexedFile(folder / name)


def fixed(file: IndexedFile, spans: list[tuple[int, int, int]], context: int, **how: Any) -> Rows:
    given = Fixed([[Span(*each) for each in spans]])
    return Rows(file, Order(lambda _: given, alike=True), Reading(context=context, **how))


def said(row: Any) -> tuple[list[int], str, str]:
    """The ids; which labels count; the documents of the input."""
    counts = "-" if row.counts is None else "".join("x" if each else "." for each in row.counts)
    return row.ids.tolist(), counts, "-" if row.segments is None else "".join(map(str, row.segments.tolist()))


DOCUMENTS = [[1, 2, END], [4, 5, 6, 7, END], [8, END]]


def test_a_full_row_without_borders_has_neither_mask_nor_segments(tmp_path: Path) -> None:
    file = file_of(tmp_path, DOCUMENTS)
    assert said(fixed(file, [(0, 1, 3), (1, 0, 2)], 3).row(0)) == ([2, END, 4, 5], "-", "-")


def test_within_documents_the_first_token_of_the_next_is_not_foretold(tmp_path: Path) -> None:
    file = file_of(tmp_path, DOCUMENTS)
    row = fixed(file, [(0, 1, 3), (1, 0, 5), (2, 0, 1)], 7, within_documents=True).row(0)
    assert said(row) == ([2, END, 4, 5, 6, 7, END, 8], "x.xxxx.", "0011111")
    batch = collate([row])
    assert batch.positions is not None
    assert batch.positions.tolist() == [[0, 1, 0, 1, 2, 3, 4]]


def test_padding_neither_counts_nor_belongs_to_a_document(tmp_path: Path) -> None:
    file = file_of(tmp_path, DOCUMENTS)
    row = fixed(file, [(2, 0, 2), (0, 0, 3)], 8, within_documents=True).row(0)
    assert said(row) == ([8, END, 1, 2, END, 0, 0, 0, 0], "x.xx....", "00111222")
    row = fixed(file, [(2, 0, 2), (0, 0, 3)], 8).row(0)
    assert said(row) == ([8, END, 1, 2, END, 0, 0, 0, 0], "xxxx....", "-")


def test_the_first_token_of_a_later_piece_is_not_foretold_twice(tmp_path: Path) -> None:
    file = file_of(tmp_path, DOCUMENTS)
    row = fixed(file, [(2, 0, 2), (1, 3, 5)], 3).row(0)
    assert said(row) == ([8, END, 7, END], "x.x", "-")


def test_what_follows_an_end_may_be_left_out(tmp_path: Path) -> None:
    file = file_of(tmp_path, DOCUMENTS)
    row = fixed(file, [(0, 1, 3), (1, 0, 2)], 3, end=END, mask_after_end=True).row(0)
    assert said(row) == ([2, END, 4, 5], "x.x", "-")


def labelled(folder: Path, labels: list[list[int]]) -> IndexedFile:
    """Labels beside DOCUMENTS, written as gpt-neox does."""
    file = file_of(folder, [[0] * len(each) for each in labels], "labels")
    flat = np.concatenate([np.array(each, np.int32) for each in labels])
    file.bin.write_bytes(flat.astype("<i4").tobytes())
    idx = bytearray(file.idx.read_bytes())
    idx[17] = 4
    sizes = np.array([len(each) for each in labels], np.int64)
    pointers = ((np.cumsum(sizes) - sizes) * 4).astype("<i8").tobytes()
    idx[34 + 4 * len(sizes) : 34 + 12 * len(sizes)] = pointers
    file.idx.write_bytes(bytes(idx))
    return IndexedFile(folder / "labels")


def test_labels_beside_the_tokens_say_what_is_learned(tmp_path: Path) -> None:
    file = file_of(tmp_path, DOCUMENTS)
    labels = labelled(tmp_path, [[-100, 2, END], [-100, -100, 6, 7, -100], [-100, END]])
    given = Fixed([[Span(0, 0, 3), Span(1, 0, 5), Span(2, 0, 2)]])
    row = Rows(file, Order(lambda _: given, alike=True), Reading(context=11), labels).row(0)
    assert said(row)[1] == "xx..xx..x.."
    wrong = labelled(tmp_path, [[-100, 2, END], [-100, -100, 5, 7, -100], [-100, END]])
    with pytest.raises(DataError, match=r"labels\.bin: token 5 of row 0 has label 5 where p\.bin has 6"):
        Rows(file, Order(lambda _: given, alike=True), Reading(context=11), wrong).row(0)


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=20),
    context=st.integers(2, 16),
    kind=st.sampled_from(["packed", "whole", "single", "best_fit"]),
    within=st.booleans(),
)
def test_each_token_is_learned_from_as_often_as_the_epoch_says(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], context: int, kind: Any, within: bool
) -> None:
    """Every token has a number of its own. Masks and segments line up with the documents they are of."""
    assume(sum(lengths) > context and any(length > 1 for length in lengths))
    numbers = iter(range(1, 1000))
    documents = [[next(numbers) for _ in range(length)] for length in lengths]
    of = {token: at for at, document in enumerate(documents) for token in document}
    file = file_of(tmp_path_factory.mktemp("rows"), documents)
    arranged = Arrangement(
        kind=kind, context=context, seed=1, first=0, last=len(lengths), within_documents=within, epochs=1
    )
    rows = Rows(file, arranged.order(file), Reading(context=context, within_documents=within, vocab=1000))
    learned: Counter[int] = Counter()
    for number in range(rows.count):
        row = rows.row(number)
        counts = np.ones(context, bool) if row.counts is None else row.counts
        assert (row.segments is not None) == within
        for at in np.flatnonzero(counts).tolist():
            before, token = int(row.ids[at]), int(row.ids[at + 1])
            learned[token] += 1
            assert not within or of[before] == of[token]
        if row.segments is not None:
            for first, second in zip(range(context), range(1, context), strict=False):
                a, b = int(row.ids[first]), int(row.ids[second])
                assert (row.segments[first] == row.segments[second]) == (of.get(a) == of.get(b))
    assert all(times == 1 for times in learned.values())
    foretold = {token for document in documents for token in document[1:]}
    if kind == "packed":  # what is beyond the last whole row is left out
        assert len(foretold - learned.keys()) <= context + (len(lengths) if within else 0)
    else:
        assert foretold <= learned.keys()
        assert within or kind != "single" or foretold == learned.keys()


def turned(rate: float = 1.0, spm_rate: float = 0.0) -> FillInMiddle:
    return FillInMiddle(rate, spm_rate, 901, 902, 903)


@pytest.mark.parametrize("spm_rate", [0.0, 1.0])
def test_the_middle_comes_last_and_nothing_is_lost(spm_rate: float) -> None:
    document = np.array([*range(1, 30), END])
    places = set()
    for seed in range(200):
        ids, labels = turned(spm_rate=spm_rate).apply(document, document.copy(), END, np.random.RandomState(seed))
        assert labels is not None
        assert ids.tolist() == labels.tolist()
        assert ids[-1] == END
        assert ids[0] == 901
        at_middle, at_suffix = ids.tolist().index(902), ids.tolist().index(903)
        if spm_rate:
            assert at_suffix == 1
            suffix, rest = ids[2:at_middle].tolist(), ids[at_middle + 1 : -1].tolist()
            assert rest + suffix == document[:-1].tolist()
        else:
            prefix, suffix = ids[1:at_suffix].tolist(), ids[at_suffix + 1 : at_middle].tolist()
            assert prefix + ids[at_middle + 1 : -1].tolist() + suffix == document[:-1].tolist()
            places.add(len(prefix))
    assert spm_rate or {0, 29} & places
    assert spm_rate or len(places) > 20


def test_turning_follows_the_row_alone(tmp_path: Path) -> None:
    file = file_of(tmp_path, [[*range(1, 30), END]] * 40)
    arranged = Arrangement(kind="whole", context=70, seed=1, first=0, last=40, turned=True)
    reading = Reading(context=70, end=END, fill_in_middle=turned(0.5, 0.5), seed=1, vocab=1000)
    rows = Rows(file, arranged.order(file), reading)
    found = [rows.row(number).ids.tolist() for number in range(rows.count)]
    assert [rows.row(number).ids.tolist() for number in reversed(range(rows.count))] == found[::-1]
    share = sum(ids.count(901) for ids in found) / 40
    assert 0.25 < share < 0.75
    # Room was left for the three tokens, so no document is cut.
    assert all(ids.count(END) == 2 for ids in found)


def test_a_packed_row_that_grows_is_cut(tmp_path: Path) -> None:
    file = file_of(tmp_path, [[*range(1, 30), END]] * 4)
    reading = Reading(context=10, end=END, fill_in_middle=turned())
    rows = Rows(file, Arrangement(kind="packed", context=10, seed=1, first=0, last=4).order(file), reading)
    for number in range(rows.count):
        row = rows.row(number)
        assert len(row.ids) == 11
        assert row.counts is None or row.counts.all() or row.counts.shape == (10,)

"""Packing: gpt-neox's golden numbers, and its algorithm as a plain loop for a judge."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from neoxkit.data.rows.arrange import Arrangement, epochs_of
from neoxkit.data.rows.pack import Packed, bounds_of, epochs_for, pack, split
from neoxkit.data.rows.rows import Reading, Rows
from neoxkit.data.tokens.indexed import IndexedFile, IndexedWriter
from neoxkit.errors import DataError

SIZES = np.array([5, 3, 7, 1, 4, 9, 2, 6], np.int32)


def test_golden_all_documents() -> None:
    packing = pack(SIZES, np.arange(8), 4, rows=20, seed=1234)
    assert packing.epochs == 3
    assert packing.order.tolist() == [7, 0, 2, 3, 1, 2, 5, 4, 0, 0, 5, 5, 2, 6, 4, 6, 3, 1, 1, 7, 4, 6, 3, 7]
    # fmt: off
    assert packing.bounds.tolist() == [
        [0, 0], [0, 4], [1, 2], [2, 1], [2, 5], [4, 1], [5, 2], [5, 6], [6, 3], [6, 7], [7, 2], [8, 2], [9, 1], [10, 0],
        [10, 4], [10, 8], [11, 3], [11, 7], [12, 2], [12, 6], [14, 1], [15, 1], [17, 2], [19, 0], [19, 4], [20, 2],
        [22, 0], [23, 3]]
    assert packing.shuffle.tolist() == [
        22, 20, 13, 4, 25, 26, 14, 8, 10, 1, 23, 21, 19, 24, 17, 9, 0, 11, 7, 3, 6, 2, 5, 12, 16, 18, 15]
    # fmt: on


def test_golden_some_documents() -> None:
    packing = pack(SIZES, np.arange(5, 8), 4, rows=6, seed=1234)
    assert packing.epochs == 2
    assert packing.order.tolist() == [7, 6, 7, 5, 6, 5]
    assert packing.bounds.tolist() == [[0, 0], [0, 4], [2, 0], [2, 4], [3, 2], [3, 6], [4, 1], [5, 3], [5, 7]]
    assert packing.shuffle.tolist() == [5, 0, 3, 4, 2, 6, 1, 7]


def test_as_many_epochs_as_asked() -> None:
    assert pack(SIZES, np.arange(8), 4, epochs=3, seed=1234).order.size == 24


def loop_bounds(lengths: list[int], context: int) -> list[list[int]]:
    """gpt-neox's loop, token counts only."""
    count = (sum(lengths) - 1) // context
    place = offset = 0
    bounds = [[0, 0]]
    for _ in range(count):
        left = context + 1
        while True:
            length = lengths[place] - offset
            left -= length
            if left <= 0:
                offset += left + length - 1
                break
            place, offset = place + 1, 0
        bounds.append([place, offset])
    return bounds


@settings(deadline=None, max_examples=300)
@given(lengths=st.lists(st.integers(0, 12), min_size=1, max_size=30), context=st.integers(1, 9))
def test_bounds_equal_the_loop(lengths: list[int], context: int) -> None:
    assume(sum(lengths) > 0)
    assert bounds_of(np.array(lengths, np.int32), context).tolist() == loop_bounds(lengths, context)


@settings(deadline=None, max_examples=100)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=30),
    context=st.integers(1, 30),
    chunk=st.integers(1, 5),
    seed=st.integers(0, 9),
)
def test_chunks_change_nothing(lengths: list[int], context: int, chunk: int, seed: int) -> None:
    assume(sum(lengths) > context)
    sizes, documents = np.array(lengths, np.int32), np.arange(len(lengths))
    with patch("neoxkit.data.rows.pack._CHUNK", chunk):
        packing = pack(sizes, documents, context, seed=seed, epochs=2)
    generator = np.random.RandomState(seed)
    order = np.tile(documents, 2)
    generator.shuffle(order)
    assert packing.order.tolist() == order.tolist()
    assert packing.bounds.tolist() == loop_bounds(sizes[order].tolist(), context)
    rows = np.arange(len(packing.bounds) - 1)
    generator.shuffle(rows)
    assert packing.shuffle.tolist() == rows.tolist()


@given(tokens=st.integers(1, 50), context=st.integers(1, 9), rows=st.integers(0, 60))
def test_epochs_are_the_fewest(tokens: int, context: int, rows: int) -> None:
    fewest = next(e for e in range(1, 10_000) if (tokens * e - 1) // context >= rows)
    assert epochs_for(tokens, context, rows) == fewest


def test_bounds_count_beyond_32_bits() -> None:
    """Three documents of 2^31 - 1 tokens: the sum needs 33 bits, each offset 31."""
    lengths = np.full(3, (1 << 31) - 1, np.int32)
    bounds = bounds_of(lengths, 1 << 20)
    assert len(bounds) - 1 == (3 * ((1 << 31) - 1) - 1) // (1 << 20)
    assert bounds[4096].tolist() == [2, (4096 << 20) - 2 * ((1 << 31) - 1)]


def file_of(folder: Path, documents: list[list[int]], vocab: int | None = 1000) -> IndexedFile:
    with IndexedWriter(folder / "p", vocab, force=True) as writer:
        for ids in documents:
            writer.add(ids)
        writer.commit()
    return IndexedFile(folder / "p")


def packed_rows(
    file: IndexedFile, context: int, seed: int, epochs: int | None = None, rows: int = 1, vocab: int | None = None
) -> Rows:
    """The rows that a run reads of a whole file."""
    passes = epochs or epochs_of("packed", file, 0, len(file), context, rows)
    arranged = Arrangement(kind="packed", context=context, seed=seed, first=0, last=len(file), epochs=passes)
    return Rows(file, arranged.order(file), Reading(context=context, vocab=vocab))


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(0, 12), min_size=1, max_size=12), context=st.integers(1, 5), seed=st.integers(0, 9))
def test_rows_are_stretches_of_the_stream(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], context: int, seed: int
) -> None:
    assume(sum(lengths) > context)
    numbers = iter(range(1000))
    documents = [[next(numbers) for _ in range(length)] for length in lengths]
    rows = packed_rows(file_of(tmp_path_factory.mktemp("rows"), documents), context, seed, epochs=2)
    assert isinstance(rows.order.first, Packed)
    packing = rows.order.first.packing
    stream = [token for place in packing.order for token in documents[place]]
    assert rows.count == (len(stream) - 1) // context
    for number, j in enumerate(packing.shuffle.tolist()):
        row = rows.row(number)
        assert row.ids.dtype == np.int64
        assert row.ids.tolist() == stream[j * context : j * context + context + 1]


def test_beyond_its_epochs_the_text_is_read_again_in_another_order(tmp_path: Path) -> None:
    documents = [list(range(9 * k, 9 * k + 9)) for k in range(20)]
    rows = packed_rows(file_of(tmp_path, documents), 4, seed=0, rows=40)
    assert rows.count == 44
    passes = [[tuple(rows.row(number).ids.tolist()) for number in range(at, at + 44)] for at in (0, 44, 88)]
    assert len({*map(tuple, passes)}) == 3
    assert rows.row(44).ids.tolist() == list(passes[1][0])  # whatever was read in between
    for number in range(44):
        assert len({*passes[number % 3]}) == 44


@pytest.mark.parametrize("documents", [[], [[]], [[], []], [[1, 2, 3, 4]]])
def test_too_little_text_is_refused(tmp_path: Path, documents: list[list[int]]) -> None:
    with pytest.raises(DataError, match=r"p\.bin: .* a row of context 4 takes 5"):
        packed_rows(file_of(tmp_path, documents), 4, seed=0, rows=2)


def test_an_id_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    file = file_of(tmp_path, [[1, 2, 30, 4, 5]])
    assert packed_rows(file, 4, seed=0, vocab=31).row(0).ids.tolist() == [1, 2, 30, 4, 5]
    with pytest.raises(DataError, match="token id 30, and the vocabulary is 30"):
        packed_rows(file, 4, seed=0, vocab=30).row(0)


def test_floats_are_not_tokens(tmp_path: Path) -> None:
    file = file_of(tmp_path, [[1, 2, 3, 4, 5, 6]], vocab=None)
    idx = bytearray(file.idx.read_bytes())
    idx[17] = 6
    file.idx.write_bytes(idx)
    with pytest.raises(DataError, match="float32, not token ids"):
        packed_rows(IndexedFile(tmp_path / "p"), 4, seed=0)


@pytest.mark.parametrize(
    ("weights", "documents", "borders"),
    [
        ("969, 30, 1", 10, [0, 10, 10, 10]),
        ("969, 30, 1", 1000, [0, 969, 999, 1000]),
        ("969, 30, 1", 12345, [0, 11963, 12333, 12345]),
        ("949,50,1", 1000, [0, 949, 999, 1000]),
        ("949,50,1", 12345, [0, 11716, 12333, 12345]),
        ("995,4,1", 1000, [0, 995, 999, 1000]),
        ("995,4,1", 12345, [0, 12284, 12333, 12345]),
        ("100", 1000, [0, 1000, 1000, 1000]),
        ("8/1/1", 10, [0, 8, 9, 10]),
        ("8/1/1", 12345, [0, 9877, 11111, 12345]),
    ],
)
def test_golden_splits(weights: str, documents: int, borders: list[int]) -> None:
    assert split(weights, documents) == list(pairwise(borders))


@pytest.mark.parametrize("weights", ["", "a,b", "1,2,3,4", "0,0", "-1,2", "nan"])
def test_a_wrong_split_is_refused(weights: str) -> None:
    with pytest.raises(DataError, match=r"data\.split .* is not up to three weights"):
        split(weights, 10)


def test_more_epochs_than_memory_holds_are_refused() -> None:
    """A mistyped number of steps, say: nothing else would tell that it is one."""
    for rows in (10**15, 10**19):
        with pytest.raises(DataError, match=r"epochs of 2 documents are too many .*; lower steps"):
            pack(np.array([5, 6]), np.array([0, 1]), 4, seed=0, rows=rows)

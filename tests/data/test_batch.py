"""Rows into a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neoxkit.data.rows.batch import Batch, collate
from neoxkit.data.rows.row import Row
from neoxkit.errors import ConfigError


def test_labels_follow_ids() -> None:
    batch = collate([Row(np.array([1, 2, 3])), Row(np.array([4, 5, 6]))])
    assert batch.ids.tolist() == [[1, 2], [4, 5]]
    assert batch.labels.tolist() == [[2, 3], [5, 6]]
    assert batch.ids.dtype == batch.labels.dtype == torch.int64
    assert batch.mask is None


def test_positions_begin_anew_with_each_segment() -> None:
    ids = np.arange(6)
    counts = np.array([True, False, True, True, False])
    batch = collate([Row(ids, counts, np.array([4, 4, 4, 7, 7], np.int32)), Row(ids)])
    assert batch.segments is not None
    assert batch.positions is not None
    assert batch.mask is not None
    assert batch.segments.tolist() == [[4, 4, 4, 7, 7], [0, 0, 0, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]]
    assert batch.mask.tolist() == [counts.tolist(), [True] * 5]
    share = batch.share(1, 5)
    assert share.positions is not None
    assert share.positions.tolist() == [[1], [1]]


def test_rows_that_fill_a_batch_do_not_count() -> None:
    ids = np.arange(6)
    given = collate([Row(ids, None, np.array([0, 0, 1, 1, 1], np.int32))])
    batch = given.filled(3)
    assert given.filled(1) is given
    assert batch.mask is not None
    assert batch.segments is not None
    assert batch.positions is not None
    assert batch.mask.tolist() == [[True] * 5, [False] * 5, [False] * 5]
    assert batch.segments.tolist() == [[0, 0, 1, 1, 1]] * 3
    assert batch.positions.tolist() == [[0, 1, 0, 1, 2]] * 3
    assert batch.ids.shape == batch.labels.shape == (3, 5)
    assert all(x is None or x.is_contiguous() for x in Batch(*batch.tensors).tensors)  # type: ignore[arg-type]


def test_a_row_is_cut_with_all_it_has() -> None:
    row = Row(np.arange(6), np.ones(5, np.bool_), np.zeros(5, np.int32)).cut(3)
    assert row.ids.tolist() == [0, 1, 2, 3]
    assert row.counts is not None
    assert row.segments is not None
    assert len(row.counts) == len(row.segments) == 3
    assert row.cut(3) is row


def test_samples_are_shared_in_runs_of_tokens() -> None:
    ids = torch.arange(12).view(2, 6)
    whole = Batch(ids, ids + 1, ids % 4 > 0)
    first, last = whole.share(0, 2), whole.share(1, 2)
    assert first.ids.tolist() == [[0, 1, 2], [6, 7, 8]]
    assert last.labels.tolist() == [[4, 5, 6], [10, 11, 12]]
    assert last.mask is not None
    assert last.mask.tolist() == [[True, False, True], [True, True, True]]
    assert whole.share(0, 1) is whole
    with pytest.raises(ConfigError, match="6 tokens over cp 4"):
        whole.share(0, 4)

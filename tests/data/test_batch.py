"""Rows into a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neoxkit.data.batch import Batch, collate
from neoxkit.errors import ConfigError


def test_labels_follow_ids() -> None:
    batch = collate([np.array([1, 2, 3]), np.array([4, 5, 6])])
    assert batch.ids.tolist() == [[1, 2], [4, 5]]
    assert batch.labels.tolist() == [[2, 3], [5, 6]]
    assert batch.ids.dtype == batch.labels.dtype == torch.int64
    assert batch.mask is None


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

"""Rows into a batch."""

from __future__ import annotations

import numpy as np
import torch

from neoxkit.data.batch import collate


def test_labels_follow_ids() -> None:
    batch = collate([np.array([1, 2, 3]), np.array([4, 5, 6])])
    assert batch.ids.tolist() == [[1, 2], [4, 5]]
    assert batch.labels.tolist() == [[2, 3], [5, 6]]
    assert batch.ids.dtype == batch.labels.dtype == torch.int64
    assert batch.mask is None

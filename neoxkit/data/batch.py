"""Batch: what a model reads, and what it should have said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Inputs and labels: int64 [batch, seq], labels[b, t] following ids[b, t].

    `mask` bool [batch, seq] is true where the label counts in the loss; None: everywhere.
    """

    ids: Tensor
    labels: Tensor
    mask: Tensor | None = None


def collate(rows: Sequence[npt.NDArray[np.integer[Any]]]) -> Batch:
    """The batch of rows of seq + 1 tokens each."""
    tokens = torch.from_numpy(np.stack(rows).astype(np.int64, copy=False))
    ids, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    return Batch(ids, labels)

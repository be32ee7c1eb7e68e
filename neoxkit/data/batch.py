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


def collate(rows: Sequence[npt.NDArray[np.integer[Any]]], silent: int | None = None) -> Batch:
    """The batch of rows of seq + 1 tokens each.

    What follows a token `silent` (the one that ends a document) is not predicted: the next document
    owes nothing to the last one. gpt-neox calls this eod_mask_loss.
    """
    tokens = torch.from_numpy(np.stack(rows).astype(np.int64, copy=False))
    ids, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    return Batch(ids, labels, None if silent is None else ids != silent)

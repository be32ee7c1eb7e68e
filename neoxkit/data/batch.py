"""Batch: what a model reads, and what it should have said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from neoxkit.errors import ConfigError


@dataclass(frozen=True)
class Batch:
    """Inputs and labels: int64 [batch, seq], labels[b, t] following ids[b, t].

    `mask` bool [batch, seq] is true where the label counts in the loss; None: everywhere.
    """

    ids: Tensor
    labels: Tensor
    mask: Tensor | None = None

    def share(self, index: int, count: int) -> Batch:
        """The share of one of `count` ranks that divide the tokens of every sample, in runs. Raises ConfigError."""
        if count == 1:
            return self
        tokens = self.ids.shape[1]
        if tokens % count:
            raise ConfigError(
                f"context parallelism cannot divide samples of {tokens} tokens over cp {count}",
                f"choose a data.sequence that {count} divides",
            )
        here = slice(index * (tokens // count), (index + 1) * (tokens // count))
        mask = None if self.mask is None else self.mask[:, here].contiguous()
        return Batch(self.ids[:, here].contiguous(), self.labels[:, here].contiguous(), mask)


def collate(rows: Sequence[npt.NDArray[np.integer[Any]]]) -> Batch:
    """The batch of rows of seq + 1 tokens each."""
    tokens = torch.from_numpy(np.stack(rows).astype(np.int64, copy=False))
    ids, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    return Batch(ids, labels)

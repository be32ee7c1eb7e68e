"""Batch: what a model reads, and what it should have said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from neoxkit.data.rows.row import Row
from neoxkit.errors import ConfigError


@dataclass(frozen=True)
class Batch:
    """Inputs and labels: int64 [batch, seq], labels[b, t] following ids[b, t].

    `mask` bool [batch, seq] is true where the label counts in the loss; None: everywhere. `segments` int32 [batch, seq]
    numbers the documents that attention stays within, and `positions` int64 [batch, seq] begin anew with each; None,
    both: a row is one document.
    """

    ids: Tensor
    labels: Tensor
    mask: Tensor | None = None
    segments: Tensor | None = None
    positions: Tensor | None = None

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
        return self._each(lambda x: x[:, here].contiguous())

    def to(self, device: torch.device) -> Batch:
        """The same on a device; the copies may still be under way."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def filled(self, rows: int) -> Batch:
        """The same with as many rows: the last one is repeated, and does not count."""
        missing = rows - len(self.ids)
        assert missing >= 0, f"{len(self.ids)} rows are more than {rows}"
        if not missing:
            return self
        counts = torch.ones_like(self.labels, dtype=torch.bool) if self.mask is None else self.mask.bool()
        counts = torch.cat((counts, counts.new_zeros(missing, counts.shape[1])))
        return replace(self._each(lambda x: torch.cat((x, x[-1:].expand(missing, -1)))), mask=counts)

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """All of them: Batch(*tensors) is the same."""
        return tuple(getattr(self, field.name) for field in fields(self))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(*(None if each is None else change(each) for each in self.tensors))  # type: ignore[arg-type]


def collate(rows: Sequence[Row]) -> Batch:
    """The batch of rows of one length. Where one has a mask or segments, the others get those that change nothing."""
    tokens = torch.from_numpy(np.stack([row.ids for row in rows]))
    ids, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    mask = segments = None
    if any(row.counts is not None for row in rows):
        everywhere = np.ones(ids.shape[1], np.bool_)
        mask = torch.from_numpy(np.stack([everywhere if row.counts is None else row.counts for row in rows]))
    if any(row.segments is not None for row in rows):
        one = np.zeros(ids.shape[1], np.int32)
        segments = torch.from_numpy(np.stack([one if row.segments is None else row.segments for row in rows]))
    return Batch(ids, labels, mask, segments, None if segments is None else positions_of(segments))


def positions_of(segments: Tensor) -> Tensor:
    """The place of each token in its segment: int64 [B, T]. Example: [4, 4, 4, 7, 7] makes [0, 1, 2, 0, 1]."""
    places = torch.arange(segments.shape[1]).expand_as(segments)
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return places - torch.where(begins, places, 0).cummax(dim=1).values

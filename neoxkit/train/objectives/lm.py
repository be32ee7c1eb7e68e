"""The next token."""

from __future__ import annotations

from torch import Tensor

from neoxkit.data.rows.batch import Batch
from neoxkit.nn.loss import cross_entropy
from neoxkit.parallel.layers import Head
from neoxkit.train.objectives import Loss


class NextToken:
    """The cross entropy of each next token, in nats, where the batch's mask does not exclude it."""

    def loss(self, hidden: Tensor, head: Head, batch: Batch) -> Loss:
        """Sum and count over a micro-batch; `hidden` is [B, T, width]."""
        mask = None if batch.mask is None else batch.mask.flatten()
        nats, count = cross_entropy(hidden.flatten(0, 1), head, batch.labels.flatten(), mask)
        return Loss(nats, count)

"""The next token."""

from __future__ import annotations

from torch import Tensor, nn

from neoxkit.data.batch import Batch
from neoxkit.nn.loss import cross_entropy
from neoxkit.train.objectives import Loss


class NextToken:
    """The cross entropy of each next token, in nats, where the batch's mask does not exclude it."""

    def loss(self, hidden: Tensor, head: nn.Module, batch: Batch) -> Loss:
        """Sum and count over a micro-batch; `hidden` is [B, T, width]."""
        mask = None if batch.mask is None else batch.mask.flatten()
        weight: Tensor = head.weight  # type: ignore[assignment]
        nats, count = cross_entropy(hidden.flatten(0, 1), weight, batch.labels.flatten(), mask)
        return Loss(nats, count)

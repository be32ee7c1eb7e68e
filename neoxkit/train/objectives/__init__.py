"""What a model is trained for. Nothing in the loop knows which objective runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from neoxkit.data.rows.batch import Batch
from neoxkit.parallel.layers import Head


@dataclass(frozen=True)
class Loss:
    """The loss of a micro-batch: its sum in nats, and how many tokens were counted.

    The engine divides by the count of all micro-batches of a step, so that uneven masks and
    accumulation do not change the gradient.
    """

    sum: Tensor
    count: Tensor


class Objective(Protocol):
    """A loss as a function of what the model says and what the batch asks."""

    def loss(self, hidden: Tensor, head: Head, batch: Batch) -> Loss:
        """The loss of a micro-batch whose residual stream after the final norm is `hidden` [B, T, width]."""

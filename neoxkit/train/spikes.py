"""Losses that leap, and what a run goes back to then."""

from __future__ import annotations

from collections import deque

from neoxkit.config.faults import Faults


class Spikes:
    """Watches the loss. The losses of a spike are not among those that the next is compared with."""

    def __init__(self, config: Faults) -> None:
        self.config = config
        self.losses: deque[float] = deque(maxlen=config.window)

    def found(self, loss: float) -> str | None:
        """What is wrong with a step's loss; None when nothing is."""
        full = len(self.losses) == self.config.window
        if self.config.spike is not None and full:
            mean = sum(self.losses) / len(self.losses)
            if loss > mean + self.config.spike:
                return f"the loss is {loss:.4f}, and the mean of the last {len(self.losses)} steps {mean:.4f}"
        self.losses.append(loss)
        return None

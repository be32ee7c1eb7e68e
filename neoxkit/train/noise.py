"""The gradient noise scale: beyond which batch size a larger one saves few steps (arXiv 1812.06162)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from neoxkit.nn.decoder import holdings
from neoxkit.parallel.collectives import summed
from neoxkit.parallel.gradients import counted
from neoxkit.parallel.groups import Groups
from neoxkit.spec import Axis

DECAY = 0.9
"""Of the moving averages: a single estimate may be off by more than itself, or negative."""


class Average:
    """An exponential moving average that begins with its first value."""

    def __init__(self) -> None:
        self.value, self._weight = 0.0, 0.0

    def add(self, value: float) -> float:
        """The average with one value more."""
        self._weight = DECAY * self._weight + 1 - DECAY
        self.value += (1 - DECAY) / self._weight * (value - self.value)
        return self.value


def estimates(small: float, big: float, few: int, many: int) -> tuple[float, float]:
    """Unbiased estimates of |G|^2 and tr(cov), from mean squared norms of gradients of few and of many tokens.

    Appendix A.1: (many |G_many|^2 - few |G_few|^2) / (many - few), and
    (|G_few|^2 - |G_many|^2) / (1 / few - 1 / many).
    """
    return (many * big - few * small) / (many - few), (small - big) / (1 / few - 1 / many)


class NoiseScale:
    """Measures, in the steps that are asked for, how gradients of micro-batches differ from those of their sum.

    It listens where gradients of single micro-batches arrive, and asks no other pass. Every process
    of a mesh must do the same.
    """

    def __init__(self, parameters: Iterable[Tensor], groups: Groups) -> None:
        self.groups = groups
        self._squares: Tensor | None = None
        self._squared, self._varied = Average(), Average()
        at = groups.mesh.coord()
        for parameter in parameters:
            rows = counted(holdings(parameter), at)
            parameter.register_hook(lambda gradient, rows=rows: self._add(gradient, rows))

    def listen(self, device: torch.device, wanted: bool = True) -> None:
        """Measure the step that is about to begin, or leave it alone."""
        self._squares = torch.zeros((), dtype=torch.float32, device=device) if wanted else None

    def _add(self, gradient: Tensor, rows: list[slice]) -> None:
        if self._squares is not None:
            for part in rows:
                self._squares += torch.linalg.vector_norm(gradient[part], dtype=torch.float32).square()

    def measured(self, norm: float, tokens: int, micro_batches: int) -> float | None:
        """The noise scale in tokens, after a step with this gradient norm (of the mean over tokens).

        `micro_batches` are those of all processes. None where it was not listened, or while the averages
        say nothing: |G|^2 is not above 0.
        """
        if self._squares is None:
            return None
        total, self._squares = self._squares, None
        for axis in (Axis.TP, Axis.DP):
            if (group := self.groups.along.get(axis)) is not None:
                total = summed(total, group)
        few = tokens // micro_batches
        small = total.item() / micro_batches / few**2
        squared, varied = estimates(small, norm**2, few, tokens)
        squared, varied = self._squared.add(squared), self._varied.add(varied)
        return varied / squared if squared > 0 < varied else None

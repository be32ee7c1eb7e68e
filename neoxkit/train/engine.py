"""Engine: what advances a model by one optimiser step. The loop knows nothing else about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from neoxkit.checkpoint import Source
from neoxkit.data.batch import Batch
from neoxkit.spec import Box, Run, TensorSpec


class StepReport(NamedTuple):
    """What one optimiser step saw: mean loss in nats a token, the gradient's norm before clipping, tokens."""

    loss: float
    norm: float
    tokens: int


class Held(NamedTuple):
    """Part of the engine's state: component and name ("optimizer/exp_avg/NAME"), where it belongs, its values."""

    name: str
    spec: TensorSpec
    box: Box
    run: Run | None
    value: Tensor


class Engine(Protocol):
    """Advances a model. `state` is everything of it that resuming needs, the weights included."""

    model: nn.Module

    def step(self, batches: Iterable[Batch], lr: float) -> StepReport:
        """One optimiser step over all micro-batches. Raises TrainingError when the loss is not finite."""

    def evaluate(self, batches: Iterable[Batch]) -> tuple[float, int]:
        """Summed loss in nats and the tokens it counts; nothing changes."""

    def state(self) -> Iterator[Held]:
        """Every tensor of the model and the optimiser, as views of live values."""

    def load_state(self, source: Source) -> None:
        """Take over the weights and the optimiser's state, so that training goes on as if never stopped."""

    def load_weights(self, source: Source) -> None:
        """Take over the weights alone; the optimiser begins anew."""

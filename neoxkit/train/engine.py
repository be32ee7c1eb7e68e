"""Engine: what advances a model by one optimiser step. The loop knows nothing else about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

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

    @property
    def model(self) -> nn.Module:
        """What is trained."""

    def step(self, batches: Iterable[Batch], lr: float) -> StepReport:
        """One optimiser step over all micro-batches. Raises TrainingError when the loss is not finite."""

    def evaluate(self, batches: Iterable[Batch]) -> tuple[float, int]:
        """Summed loss in nats and the tokens it counts; nothing changes."""

    def state(self) -> Iterator[Held]:
        """Every tensor of the model and the optimiser, as views of live values."""

    def counters(self) -> dict[str, Any]:
        """What of the optimiser is no tensor, as JSON: its kind, its steps, its groups by name."""

    def load_state(self, source: Source, counters: Mapping[str, Any]) -> None:
        """Take over the weights and the optimiser's state, so that training goes on as if never stopped.

        Raises CheckpointError when the source lacks part of it.
        """

    def load_weights(self, source: Source) -> None:
        """Take over the weights alone, in fp32 where the source has them so; the optimiser begins anew."""

    def initialise(self) -> None:
        """Draw the weights from the seed: the same numbers in any precision, then rounded to it."""

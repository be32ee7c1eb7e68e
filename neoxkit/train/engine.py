"""Engine: what advances a model by one optimiser step. The loop knows nothing else about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import isfinite
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from neoxkit.checkpoint import Source
from neoxkit.checkpoint.format import MODEL
from neoxkit.data.rows.batch import Batch
from neoxkit.errors import CheckpointError, NeoxkitError
from neoxkit.spec import Box, Run, TensorSpec

MASTER = "optimizer/master/"
"""What the checkpoint calls the fp32 values that weights of less precision are rounded from, before their names."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What weights are kept in while a run computes, by its precision."""


class TrainingError(NeoxkitError):
    """A loss or a gradient that is no longer a number."""


class StepReport(NamedTuple):
    """What one optimiser step saw: mean loss in nats a token, the gradient's norm before clipping, tokens.

    In fp16 there is the factor of the loss too, and a step whose gradient overflowed is skipped: it changed nothing.
    """

    loss: float
    norm: float
    tokens: int
    loss_scale: float | None = None
    skipped: bool = False

    def record(self) -> dict[str, Any]:
        """What is told of it. A number that is none (in a step that was skipped) is left out: JSON knows no such."""
        told: dict[str, Any] = {key: value for key in ("loss", "norm") if isfinite(value := getattr(self, key))}
        told["tokens"] = self.tokens
        return told | ({} if self.loss_scale is None else {"loss_scale": self.loss_scale, "skipped": self.skipped})


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


def master_name(source: Source, name: str) -> str:
    """What the source calls the fp32 values of a weight: where its weights are fp32 they are their own masters."""
    return MODEL + name if source.dtype(MODEL + name) == "F32" else MASTER + name


def check_shape(source: Source, name: str, spec: TensorSpec) -> None:
    """Raise CheckpointError unless a source's tensor has the shape that the model asks for."""
    found = source.spec(name).shape
    if found != spec.shape:
        raise CheckpointError(f"{name} is {list(found)}, and the model asks for {list(spec.shape)}", "choose another")


def lookahead(batches: Iterable[Batch]) -> Iterator[tuple[Batch, bool]]:
    """The batches, and whether each is the last."""
    rest = iter(batches)
    ahead = next(rest, None)
    while ahead is not None:
        batch, ahead = ahead, next(rest, None)
        yield batch, ahead is None

"""The plain engine: one copy of a model and torch alone. It is what every other engine must equal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from neoxkit.checkpoint import Source
from neoxkit.checkpoint.format import MODEL
from neoxkit.config.run import RunConfig
from neoxkit.convert.load import check_model
from neoxkit.data.batch import Batch
from neoxkit.errors import CheckpointError, NeoxkitError
from neoxkit.nn.decoder import Decoder, holdings, pieces
from neoxkit.nn.init import fill
from neoxkit.parallel.collectives import Begun, begin_summed, summed
from neoxkit.parallel.gradients import total_norm
from neoxkit.parallel.groups import LOCAL, Groups
from neoxkit.spec import Axis, TensorSpec
from neoxkit.train.engine import Held, StepReport
from neoxkit.train.objectives import Objective
from neoxkit.train.optim import MOMENTS, AdamW

MASTER = "optimizer/master/"

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class TrainingError(NeoxkitError):
    """A loss or a gradient that is no longer a number."""


class PlainEngine:
    """Trains a decoder in one process, or in those of `groups`, over which tensor and data parallelism divide it.

    In fp32 the weights are their own masters. In bf16 the model holds bf16 weights, and the optimiser
    fp32 masters; gradients are summed over micro-batches in fp32 either way.
    """

    def __init__(
        self,
        config: RunConfig,
        objective: Objective,
        device: torch.device | str = "cpu",
        groups: Groups = LOCAL,
        sequence_parallel: bool = False,
    ) -> None:
        """Build the model with uninitialised weights. `config.precision` must be resolved.

        Processes that differ only in tensor parallelism are given the same batches. Each has the
        state of its own part of the model.
        """
        assert groups.mesh.world == groups.mesh.tp * groups.mesh.dp, "it knows no other parallelism"
        self.config = config
        self.objective = objective
        self.device = torch.device(device)
        self.groups = groups
        dtype = DTYPES[config.precision]
        self.model = Decoder(config.model, self.device, dtype, groups, sequence_parallel)
        self.parameters = list(self.model.parameters())
        self.optimizer = AdamW(self.parameters, config.optimizer)
        self.gradients: dict[Tensor, Tensor] = {}
        self._dp = groups.along.get(Axis.DP)
        self._sums_begun: list[Begun] | None = None
        for parameter in self.parameters:
            parameter.register_post_accumulate_grad_hook(self._collect)  # type: ignore[no-untyped-call]

    def _collect(self, parameter: Tensor) -> None:
        """Add a parameter's fresh gradient to the step's; the first is taken as it is, not added to zeros."""
        fresh = parameter.grad
        assert fresh is not None
        parameter.grad = None
        if parameter in self.gradients:
            self.gradients[parameter].add_(fresh)
        else:
            self.gradients[parameter] = fresh.float()
        if self._sums_begun is not None and self._dp is not None:
            self._sums_begun.append(begin_summed(self.gradients[parameter], self._dp))

    def step(self, batches: Iterable[Batch], lr: float) -> StepReport:
        """One optimiser step over all micro-batches. Raises TrainingError when the loss is not finite."""
        self.gradients.clear()
        total, count = self._sums(batches, backward=True)
        loss = total / max(count, 1)
        if not math.isfinite(loss):
            raise self._not_finite("the loss", loss)
        gradients = ((parameter, self.gradients[parameter]) for parameter in self.parameters)
        norm = total_norm(gradients, self.groups).item() / max(count, 1)
        if not math.isfinite(norm):
            raise self._not_finite("the gradient's norm", norm)
        # As torch's clip_grad_norm_: the 1e-6 keeps a gradient of norm 0 from a division by 0.
        shrink = 1.0 if self.config.clip is None else min(1.0, self.config.clip / (norm + 1e-6))
        self.optimizer.step(self.gradients, lr, max(count, 1) / shrink)
        self.gradients.clear()
        return StepReport(loss, norm, count)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> tuple[float, int]:
        """Summed loss in nats and the tokens it counts; nothing changes."""
        return self._sums(batches, backward=False)

    def _sums(self, batches: Iterable[Batch], backward: bool) -> tuple[float, int]:
        """The loss and the count over micro-batches. They are read once, at the end: reading waits for the device."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        count = torch.zeros((), dtype=torch.int64, device=self.device)
        for batch, last in _lookahead(batches):
            there = batch if self.device.type == "cpu" else _moved(batch, self.device)
            hidden = self.model.hidden(there.ids)
            loss = self.objective.loss(hidden, self.model.head, there)
            if backward:
                # Gradients are whole in the last micro-batch: they go round while those of earlier layers are made.
                self._sums_begun = [] if last else None
                loss.sum.backward()  # type: ignore[no-untyped-call]
            total += loss.sum.detach()
            count += loss.count
        for finish in self._sums_begun or ():
            finish()
        self._sums_begun = None
        if self._dp is not None:
            total, count = summed(torch.stack((total, count.double())), self._dp)
        return total.item(), int(count.item())

    def _not_finite(self, what: str, value: float) -> TrainingError:
        """The error that names where numbers were lost: the first such weight, else the first such gradient."""
        for kind, values in (("weight", None), ("gradient", self.gradients)):
            for parameter in self.parameters:
                held = parameter.detach() if values is None else values.get(parameter)
                if held is not None and not held.isfinite().all():
                    at = next(h.spec.name for h in holdings(parameter) if not held[h.rows].isfinite().all())
                    return TrainingError(f"{what} is {value}: the {kind} of {at} is not finite", _LOWER)
        return TrainingError(f"{what} is {value}, though weights and gradients are finite", _LOWER)

    def state(self) -> Iterator[Held]:
        """Every tensor of the model and the optimiser, as views of live values."""
        for spec, box, value in pieces(self.model):
            yield Held(MODEL + spec.name, spec, box, None, value)
        for group in self.optimizer.groups:
            for index, parameter in enumerate(group.weights):
                kept = [(moment, getattr(group, moment)[index]) for moment in MOMENTS]
                if group.masters[index].dtype != parameter.dtype:
                    kept.insert(0, ("master", group.masters[index]))
                for spec, box, rows in holdings(parameter):
                    for part, value in kept:
                        yield Held(f"optimizer/{part}/{spec.name}", spec, box, None, value[rows])

    def counters(self) -> dict[str, Any]:
        """What of the optimiser is no tensor, as JSON: its kind, its steps, its groups by name."""
        groups = [
            {
                "weight_decay": group.weight_decay,
                **({"lr_scale": group.lr_scale} if group.lr_scale != 1 else {}),
                "names": [held.spec.name for weight in group.weights for held in holdings(weight)],
            }
            for group in self.optimizer.groups
        ]
        return {"kind": "adamw", "steps": self.optimizer.steps, "groups": groups}

    def load_state(self, source: Source, counters: Mapping[str, Any]) -> None:
        """Take over weights, masters, moments and counters. Raises CheckpointError when the source lacks any.

        What the source computed in need not be what this engine does: weights are rounded from the masters.
        """
        self.check_state(source, counters)
        self.optimizer.scale(
            {name: group["lr_scale"] for group in counters["groups"] if "lr_scale" in group for name in group["names"]}
        )
        for held in self.state():
            if not held.name.startswith((MODEL, MASTER)):
                held.value.copy_(source.read(held.name, held.box))
        for spec, box, value in self.optimizer.masters():
            value.copy_(source.read(_master(source, spec.name), box))
        self.optimizer.publish()
        self.optimizer.steps = counters["steps"]

    def check_state(self, source: Source, counters: Mapping[str, Any]) -> None:
        """Raise CheckpointError when a source lacks part of what `load_state` takes. Nothing is read."""
        if counters.get("kind") != "adamw" or not isinstance(counters.get("steps"), int):
            raise CheckpointError("the checkpoint's optimizer is not adamw", "begin a new run with `load`")
        for held in self.state():
            name = _master(source, held.spec.name) if held.name.startswith((MODEL, MASTER)) else held.name
            _check_shape(source, name, held.spec)

    def load_weights(self, source: Source) -> None:
        """Take over the weights alone, as exactly as the source has them; the optimiser begins anew.

        The source's masters are not asked: they may be older than weights that were edited or merged.
        Raises ConversionError or CheckpointError when the source's tensors are not those of its configuration.
        """
        check_model(source)
        for spec, box, value in self.optimizer.masters():
            value.copy_(source.read(MODEL + spec.name, box))
        self.optimizer.publish()

    def initialise(self) -> None:
        """Draw the weights from the seed: the same numbers in any precision, then rounded to it."""
        fill(self.optimizer.masters(), self.config.model, self.config.init, self.config.seed)
        self.optimizer.publish()


_LOWER = "lower optimizer.lr or lengthen schedule.warmup, and go on from the last checkpoint"


def _master(source: Source, name: str) -> str:
    """What the source calls the fp32 values of a weight: where its weights are fp32 they are their own masters."""
    return MODEL + name if source.dtype(MODEL + name) == "F32" else MASTER + name


def _check_shape(source: Source, name: str, spec: TensorSpec) -> None:
    found = source.spec(name).shape
    if found != spec.shape:
        raise CheckpointError(f"{name} is {list(found)}, and the model asks for {list(spec.shape)}", "choose another")


def _lookahead(batches: Iterable[Batch]) -> Iterator[tuple[Batch, bool]]:
    """The batches, and whether each is the last."""
    rest = iter(batches)
    ahead = next(rest, None)
    while ahead is not None:
        batch, ahead = ahead, next(rest, None)
        yield batch, ahead is None


def _moved(batch: Batch, device: torch.device) -> Batch:
    mask = None if batch.mask is None else batch.mask.to(device, non_blocking=True)
    return Batch(batch.ids.to(device, non_blocking=True), batch.labels.to(device, non_blocking=True), mask)

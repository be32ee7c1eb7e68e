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
from neoxkit.data.rows.batch import Batch
from neoxkit.errors import CheckpointError
from neoxkit.nn.decoder import Decoder, holdings, pieces
from neoxkit.nn.init import fill
from neoxkit.nn.mup import rates
from neoxkit.nn.recompute import recompute
from neoxkit.parallel.collectives import Begun, begin_summed, summed
from neoxkit.parallel.gradients import total_norm
from neoxkit.parallel.groups import LOCAL, Groups
from neoxkit.train.engine import (
    DTYPES,
    MASTER,
    Held,
    StepReport,
    TrainingError,
    check_shape,
    lookahead,
    master_name,
)
from neoxkit.train.objectives import Objective
from neoxkit.train.optim import Learner
from neoxkit.train.precision import Scaler, loss_factor


class PlainEngine:
    """Trains a decoder in one process, or in those of `groups`: with tensor, context and data parallelism.

    In fp32 the weights are their own masters. In bf16 and fp16 the model holds such weights, and the
    optimiser fp32 masters; gradients are summed over micro-batches in fp32 either way. In fp16 the
    loss is multiplied by a `scale`, and a step whose gradient overflows all the same is skipped.
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

        Processes that differ only in tensor or context parallelism are given the same batches. Each has
        the state of its own part of the model.
        """
        assert groups.mesh.pp == 1, "it knows no pipelines"
        self.config = config
        self.objective = objective
        self.device = torch.device(device)
        self.groups = groups
        dtype = DTYPES[config.precision]
        self.model = Decoder(config.model, self.device, dtype, groups, sequence_parallel, config.kernels)
        recompute(enumerate(self.model.layers), config.recompute)
        self.parameters = list(self.model.parameters())
        known = {held.spec.name: held.spec for parameter in self.parameters for held in holdings(parameter)}
        self.optimizer = Learner(self.parameters, config.optimizer, rates(config.model, known, config.mup), groups)
        self.scaler = Scaler(config.loss_scale) if config.precision == "fp16" else None
        self.gradients: dict[Tensor, Tensor] = {}
        self._sums_begun: list[Begun] | None = None
        for parameter in self.parameters:
            parameter.register_post_accumulate_grad_hook(self._collect)

    def _collect(self, parameter: Tensor) -> None:
        """Add a parameter's fresh gradient to the step's; the first is taken as it is, not added to zeros."""
        fresh = parameter.grad
        assert fresh is not None
        parameter.grad = None
        if parameter in self.gradients:
            self.gradients[parameter].add_(fresh)
        else:
            self.gradients[parameter] = fresh.float()
        if self._sums_begun is not None and self.groups.alike is not None:
            self._sums_begun.append(begin_summed(self.gradients[parameter], self.groups.alike))

    def step(self, batches: Iterable[Batch], lr: float) -> StepReport:
        """One optimiser step over all micro-batches. Raises TrainingError when the loss is not finite.

        In fp16 that skips the step, and the error is raised when too many were skipped in a row.
        """
        self.gradients.clear()
        total, count = self._sums(batches, backward=True)
        loss, scale = total / max(count, 1), loss_factor(self.scaler, self.config)
        if not math.isfinite(loss) and self.scaler is None:
            raise self._not_finite("the loss", loss)
        gradients = ((parameter, self.gradients[parameter]) for parameter in self.parameters)
        norm = total_norm(gradients, self.groups).item() / (max(count, 1) * scale)
        if self.scaler is not None:
            used = self.scaler.scale
            if not self.scaler.judge(math.isfinite(loss) and math.isfinite(norm)):
                self._check_skipped(loss, norm)
                self.gradients.clear()
                return StepReport(loss, norm, count, used, skipped=True)
        elif not math.isfinite(norm):
            raise self._not_finite("the gradient's norm", norm)
        # As torch's clip_grad_norm_: the 1e-6 keeps a gradient of norm 0 from a division by 0.
        shrink = 1.0 if self.config.clip is None else min(1.0, self.config.clip / (norm + 1e-6))
        self.optimizer.step(self.gradients, lr, max(count, 1) * scale / shrink)
        self.gradients.clear()
        return StepReport(loss, norm, count, None if self.scaler is None else used)

    def _check_skipped(self, loss: float, norm: float) -> None:
        """Raise TrainingError when no later step could be better than the one that is being skipped."""
        assert self.scaler is not None
        error = self._not_finite("the loss", loss) if not math.isfinite(loss) else self._not_finite("the norm", norm)
        if any(not parameter.detach().isfinite().all() for parameter in self.parameters):
            raise error
        self.scaler.give_up(error)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> tuple[float, int]:
        """Summed loss in nats and the tokens it counts; nothing changes."""
        return self._sums(batches, backward=False)

    def _sums(self, batches: Iterable[Batch], backward: bool) -> tuple[float, int]:
        """The loss and the count over micro-batches. They are read once, at the end: reading waits for the device."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        count = torch.zeros((), dtype=torch.int64, device=self.device)
        for batch, last in lookahead(batches):
            there = self.own(batch)
            hidden = self.model.hidden(there.ids, there.positions, there.segments)
            loss = self.objective.loss(hidden, self.model.head, there)
            if backward:
                # Gradients are whole in the last micro-batch: they go round while those of earlier layers are made.
                self._sums_begun = [] if last else None
                scale = None if self.scaler is None else loss.sum.new_tensor(loss_factor(self.scaler, self.config))
                loss.sum.backward(scale)
            total += loss.sum.detach()
            count += loss.count
        for finish in self._sums_begun or ():
            finish()
        self._sums_begun = None
        if self.groups.alike is not None:
            total, count = summed(torch.stack((total, count.double())), self.groups.alike)
        return total.item(), int(count.item())

    def own(self, batch: Batch) -> Batch:
        """The tokens of a batch that this process learns from, on its device."""
        return batch.share(*self.model.division.samples).to(self.device)

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
        for part, spec, box, value in self.optimizer.state():
            yield Held(f"optimizer/{part}/{spec.name}", spec, box, None, value)

    def counters(self) -> dict[str, Any]:
        """What of the optimiser is no tensor, as JSON: its kind, its steps, its groups by name; fp16's loss scale."""
        return self.optimizer.about() | ({} if self.scaler is None else {"loss_scale": self.scaler.state()})

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
            value.copy_(source.read(master_name(source, spec.name), box))
        self.optimizer.publish()
        self.optimizer.steps = counters["steps"]
        if self.scaler is not None and "loss_scale" in counters:
            self.scaler.load(counters["loss_scale"])

    def check_state(self, source: Source, counters: Mapping[str, Any]) -> None:
        """Raise CheckpointError when a source lacks part of what `load_state` takes. Nothing is read."""
        if counters.get("kind") != self.config.optimizer.kind or not isinstance(counters.get("steps"), int):
            raise CheckpointError(
                f"the checkpoint's optimizer is not {self.config.optimizer.kind}", "begin a new run with `load`"
            )
        for held in self.state():
            name = master_name(source, held.spec.name) if held.name.startswith((MODEL, MASTER)) else held.name
            check_shape(source, name, held.spec)

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
        fill(self.optimizer.masters(), self.config.model, self.config.init, self.config.seed, self.config.mup)
        self.optimizer.publish()


_LOWER = "lower optimizer.lr or lengthen schedule.warmup, and go on from the last checkpoint"

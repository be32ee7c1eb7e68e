"""The DeepSpeed engine: ZeRO over data-parallel ranks, tensor parallelism by neoxkit's own layers.

DeepSpeed sends gradients, divides state and keeps it in the CPU's memory. What a step learns is decided here, so that
it is what the plain engine learns: losses are summed, and gradients divided by the tokens of the whole step; the norm
counts each element of the model once; a step whose numbers are lost is not made.
"""

from __future__ import annotations

import io
import math
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from neoxkit.checkpoint import Source
from neoxkit.checkpoint.format import MODEL
from neoxkit.config.run import RunConfig
from neoxkit.convert.load import check_model
from neoxkit.data.rows.batch import Batch
from neoxkit.errors import CheckpointError
from neoxkit.nn.decoder import Decoder, holdings, specs
from neoxkit.nn.init import fill as draw
from neoxkit.nn.mup import rates
from neoxkit.nn.recompute import recompute
from neoxkit.parallel.collectives import summed
from neoxkit.parallel.groups import Groups
from neoxkit.spec import Axis, extent, run_boxes
from neoxkit.train.deepspeed.groups import ModelParallelUnit, ensure_started
from neoxkit.train.deepspeed.optim import GroupedOptimizer, told
from neoxkit.train.deepspeed.settings import deepspeed_config
from neoxkit.train.deepspeed.state import Bf16, Divided, Fragment, Layout, Plain, Scattered, fill
from neoxkit.train.deepspeed.timing import StepTimes
from neoxkit.train.engine import DTYPES, MASTER, Held, StepReport, TrainingError, check_shape, lookahead, master_name
from neoxkit.train.objectives import Objective
from neoxkit.train.precision import Scaler, loss_factor


class Task(nn.Module):
    """A decoder and what it is trained for, as the one module that DeepSpeed wants to call."""

    def __init__(self, model: Decoder, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """The summed loss of the micro-batch of these tensors, and the tokens it counts."""
        batch = Batch(*tensors)
        hidden = self.model.hidden(batch.ids, batch.positions, batch.segments)
        loss = self.objective.loss(hidden, self.model.head, batch)
        return loss.sum, loss.count


class DeepSpeedEngine:
    """Trains a decoder with ZeRO, in the processes of `groups`. Every one of them must call its methods alike.

    In bf16 and fp16 masters, moments and the sum of gradients are fp32, as in the plain engine. In fp16 the loss is
    multiplied by a `scale`, and a step whose gradient overflows all the same is skipped.
    """

    def __init__(self, config: RunConfig, objective: Objective, device: torch.device | str, groups: Groups) -> None:
        """Build the model with uninitialised weights. `config.precision` must be resolved.

        torch.distributed must have been started, unless there is one process only.
        """
        config.check()
        assert groups.mesh.cp == 1 or groups.mesh.pp == 1, "pipelines know no context parallelism"
        self.config, self.objective, self.groups = config, objective, groups
        self.device, self.model = torch.device(device), nn.Module()
        self.scaler = Scaler(config.loss_scale) if config.precision == "fp16" else None
        ensure_started(self.device)
        self._unit: ModelParallelUnit | None = self._build_unit()
        self.build(rates(config.model, specs(config.model), config.mup))

    def _build_unit(self) -> ModelParallelUnit | None:
        """The groups, as DeepSpeed asks for them."""
        return ModelParallelUnit(self.groups, self.device)

    def build(self, scales: Mapping[str, float]) -> None:
        """Build model, optimizer and DeepSpeed's engine; `scales` are learning rates by name, where not 1."""
        self._deepspeed = deepspeed = load_deepspeed(self.device)
        self.scales = {name: float(scale) for name, scale in scales.items() if scale != 1}
        self.steps = 0
        with redirect_stdout(io.StringIO()):  # it tells of its memory
            deepspeed.init_distributed(dist.get_backend(), dist_init_required=False, verbose=False)
            task = self._build_task()
            for parameter in task.parameters():
                parameter.model_parallel = is_split(parameter)  # type: ignore[attr-defined]
            self.optimizer = GroupedOptimizer(task.parameters(), self.config, self.scales)
            self.runtime, *_ = deepspeed.initialize(
                model=task,
                optimizer=self.optimizer.base,
                config=deepspeed_config(self.config),
                mpu=self._unit,
                dist_init_required=False,
            )
        self.times = StepTimes(self.runtime, bool(self.config.deepspeed.wall_clock_breakdown), self.groups.mesh.pp > 1)
        if self.means == 1 and self.config.mesh.pp == 1 and self.config.zero.stage == 0:
            self.runtime.enable_backward_allreduce = False  # it would copy all gradients to one buffer, and back
        self.layout = layout_of(self.runtime)
        self.flats = self.layout.flats()
        self.fragments = list(self.layout.fragments())
        self.optimizer.begin(self.flats)

    def _build_task(self) -> nn.Module:
        """The module that DeepSpeed calls."""
        config, sequence = self.config, self.config.mesh.sequence_parallel
        dtype = DTYPES[config.precision]
        built = self._scatter if config.zero.stage == 3 else None
        model = Decoder(config.model, self.device, dtype, self.groups, sequence, config.kernels, built)
        recompute(enumerate(model.layers), self.config.recompute)
        self.model = model
        return Task(model, self.objective)

    def _scatter(self, layer: nn.Module) -> None:
        """Divide the weights of a layer at once, so that no rank ever has those of all layers whole."""
        assert self._unit is not None
        group, options = self._unit.get_data_parallel_group(), deepspeed_config(self.config)
        self._deepspeed.zero.Init(layer, group, config_dict_or_path=options, mpu=self._unit)

    @property
    def means(self) -> int:
        """What DeepSpeed divides the sum of gradients by: its data-parallel ranks, as it calls all that learn alike."""
        return self.groups.mesh.dp * self.groups.mesh.cp

    @property
    def own(self) -> Iterator[Fragment]:
        """The fragments that are this rank's to count and to save: of what two stages share, the first has it."""
        return (each for each in self.fragments if is_own(each.parameter))

    def step(self, batches: Iterable[Batch], lr: float) -> StepReport:
        """One optimiser step over all micro-batches. Raises TrainingError when the loss is not finite.

        In fp16 that skips the step, and the error is raised when too many were skipped in a row.
        """
        self._set_rate(lr)
        with redirect_stdout(sys.stderr):  # where DeepSpeed is asked for times and memory, it prints them
            report = self._judge(*self._sums(batches, backward=True))
            if not report.skipped:
                self.runtime.step()
                self.times.tell()
                self._count_step()
        return report

    def _count_step(self) -> None:
        """One step more; after the last, what was sent."""
        self.steps += 1
        logger = self.config.deepspeed.comms_logger
        if self.steps == self.config.steps and logger is not None and logger.enabled:
            self._deepspeed.comm.log_summary()

    def _set_rate(self, lr: float) -> None:
        for group in self.optimizer.base.param_groups:
            group["lr"] = lr * group["lr_scale"]

    def _judge(self, total: float, count: int) -> StepReport:
        """What a step saw; DeepSpeed's next step is then the right one. Raises TrainingError, and the step is lost."""
        own = list(self.own)
        norm = self._norm(own, self.layout.gradients(own))
        counted = max(count, 1) * loss_factor(self.scaler, self.config) / self.means
        loss, length = total / max(count, 1), norm.item() / counted
        used = None if self.scaler is None else self.scaler.scale
        if not (math.isfinite(loss) and math.isfinite(length)):
            return self._lose(StepReport(loss, length, count, used, skipped=True))
        if self.scaler is not None:
            self.scaler.judge(True)
        # As torch's clip_grad_norm_: the 1e-6 keeps a gradient of norm 0 from a division by 0.
        shrink = 1.0 if self.config.clip is None else min(1.0, self.config.clip / (length + 1e-6))
        self.layout.prepare(counted / shrink, norm)
        return StepReport(loss, length, count, used)

    def _lose(self, report: StepReport) -> StepReport:
        """Forget the gradients of a step. Raises TrainingError, unless it is one that fp16 may skip."""
        lost = ("the loss", report.loss) if not math.isfinite(report.loss) else ("the gradient's norm", report.norm)
        error, weights = self._not_finite(lost)
        self.layout.drop()
        if self.scaler is None or weights:
            raise error
        self.scaler.judge(False)
        self.scaler.give_up(error)
        return report

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> tuple[float, int]:
        """Summed loss in nats and the tokens it counts; nothing changes. Ranks must have equally many batches."""
        return self._sums(batches, backward=False)

    def _sums(self, batches: Iterable[Batch], backward: bool) -> tuple[float, int]:
        """The loss and the count over micro-batches and data-parallel ranks."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        count = torch.zeros((), dtype=torch.int64, device=self.device)
        self.runtime.train(backward)
        for batch, last in lookahead(batches):
            mine = batch.share(*self.groups.mesh.coord()[Axis.CP]).to(self.device)
            loss, counted = self.runtime(*mine.tensors)
            if backward:
                self.runtime.set_gradient_accumulation_boundary(last)
                # Not the module's own output: DeepSpeed divides what returns to that by the number of micro-batches.
                self.runtime.backward(loss * loss_factor(self.scaler, self.config), scale_wrt_gas=False)
                if not last:
                    self.runtime.step()  # between micro-batches it only counts them
            total += loss.detach()
            count += counted
        return self._over_ranks(total, count, (Axis.DP, Axis.CP))

    def _over_ranks(self, total: Tensor, count: Tensor, axes: Sequence[Axis]) -> tuple[float, int]:
        """The sums of a loss and a count over the ranks along axes."""
        both = torch.stack((total, count.double()))
        for axis in axes:
            if (group := self.groups.along.get(axis)) is not None:
                both = summed(both, group)
        return both[0].item(), int(both[1].item())

    def _norm(self, fragments: Sequence[Fragment], gradients: Sequence[Tensor]) -> Tensor:
        """The norm over all processes of what DeepSpeed has of the gradients, each element counted once."""
        at = self.groups.mesh.coord()
        mine = [
            gradient[part]
            for fragment, gradient in zip(fragments, gradients, strict=True)
            for part in fragment.counted(at)
        ]
        norm: Tensor = torch.nn.utils.get_total_norm(mine).to(self.device)
        for axis in (Axis.TP, Axis.PP) if self.layout.shared else (Axis.TP, Axis.PP, Axis.DP, Axis.CP):
            if (group := self.groups.along.get(axis)) is not None:
                norm = summed(norm.square(), group).sqrt()
        return norm

    def _not_finite(self, what: tuple[str, float]) -> tuple[TrainingError, bool]:
        """The error that names where numbers were lost, on all ranks alike: such a weight, else such a gradient.

        And whether it is a weight.
        """
        gradients = self.layout.gradients(self.fragments)
        found: dict[str, list[str]] = {"weight": [], "gradient": []}
        for fragment, gradient in zip(self.fragments, gradients, strict=True):
            for portion in fragment.portions():
                for kind, values in (("weight", fragment.of(fragment.flat)), ("gradient", gradient)):
                    if not portion.of(values).isfinite().all():
                        found[kind].append(portion.spec.name)
        told: list[dict[str, list[str]]] = [found] * dist.get_world_size()
        dist.all_gather_object(told, found)
        cause = f"{what[0]} is {what[1]}"
        for kind in found:
            for rank, each in enumerate(told):
                if each[kind]:
                    where = f"the {kind} of {each[kind][0]} is not finite (rank {rank})"
                    return TrainingError(f"{cause}: {where}", _LOWER), kind == "weight"
        return TrainingError(f"{cause}, though weights and gradients are finite", _LOWER), False

    def state(self) -> Iterator[Held]:
        """What this rank has of the model and the optimizer, as views of live values."""
        own = list(self.own)
        if isinstance(self.layout, Scattered):
            for fragment in own:
                values = fragment.parameter.ds_tensor.view(-1)  # type: ignore[attr-defined]
                yield from held(MODEL, fragment, values[: fragment.run[1] - fragment.run[0]])
        else:
            for parameter in filter(is_own, self.model.parameters()):
                for spec, box, rows in holdings(parameter):
                    yield Held(MODEL + spec.name, spec, box, None, parameter.detach()[rows])
        for fragment in own:
            if fragment.parameter.dtype != torch.float32:
                yield from held(MASTER, fragment, fragment.of(fragment.flat))
            for state in self.optimizer.states:
                yield from held(f"optimizer/{state}/", fragment, fragment.of(self._state(fragment, state)))

    def _state(self, fragment: Fragment, moment: str) -> Tensor:
        found: Tensor = self.optimizer.base.state[fragment.flat][moment]
        return found

    def counters(self) -> dict[str, Any]:
        """What of the optimiser is no tensor, as JSON: its kind, its steps, its groups by name; fp16's loss scale."""
        scale = {} if self.scaler is None else {"loss_scale": self.scaler.state()}
        return told(self.config, self.scales, self.steps) | scale

    def load_state(self, source: Source, counters: Mapping[str, Any]) -> None:
        """Take over weights, masters, moments and counters, whatever mesh and stage wrote them.

        Raises CheckpointError when the source lacks any.
        """
        self.check_state(source, counters)
        scales = {
            name: float(group["lr_scale"])
            for group in counters["groups"]
            if group.get("lr_scale", 1.0) != 1.0
            for name in group["names"]
        }
        if scales != self.scales:
            self.build(scales)
        for fragment in self.fragments:
            for portion in fragment.portions():
                name = portion.spec.name
                fill(fragment.of(fragment.flat), portion, source, master_name(source, name))
                for moment in self.optimizer.states:
                    fill(fragment.of(self._state(fragment, moment)), portion, source, f"optimizer/{moment}/{name}")
        self.layout.publish()
        self.steps = counters["steps"]
        self.optimizer.set_steps(self.flats, self.steps)
        if self.scaler is not None and "loss_scale" in counters:
            self.scaler.load(counters["loss_scale"])

    def check_state(self, source: Source, counters: Mapping[str, Any]) -> None:
        """Raise CheckpointError when a source lacks part of what `load_state` takes. Nothing is read."""
        kind = self.config.optimizer.kind
        if counters.get("kind") != kind or not isinstance(counters.get("steps"), int):
            raise CheckpointError(f"the checkpoint's optimizer is not {kind}", "begin a new run with `load`")
        for fragment in self.fragments:
            for portion in fragment.portions():
                name = portion.spec.name
                for known in (
                    master_name(source, name),
                    *(f"optimizer/{moment}/{name}" for moment in self.optimizer.states),
                ):
                    check_shape(source, known, portion.spec)

    def load_weights(self, source: Source) -> None:
        """Take over the weights alone, as exactly as the source has them; the optimiser begins anew.

        Raises ConversionError or CheckpointError when the source's tensors are not those of its configuration.
        """
        check_model(source)
        for fragment in self.fragments:
            for portion in fragment.portions():
                fill(fragment.of(fragment.flat), portion, source, MODEL + portion.spec.name)
        self.layout.publish()

    def initialise(self) -> None:
        """Draw the weights from the seed: the same numbers in any precision and on any mesh, then rounded."""
        run = self.config
        for fragment in self.fragments:
            for portion in fragment.portions():
                into, at = fragment.of(fragment.flat)[portion.within], 0
                for box in [portion.box] if portion.run is None else run_boxes(portion.box, portion.run):
                    drawn = torch.empty(extent(box))
                    draw([(portion.spec, box, drawn)], run.model, run.init, run.seed, run.mup)
                    into[at : at + drawn.numel()].copy_(drawn.view(-1))
                    at += drawn.numel()
        self.layout.publish()


_LOWER = "lower optimizer.lr or lengthen schedule.warmup, and go on from the last checkpoint"


def load_deepspeed(device: torch.device) -> Any:
    """The package. What it prints on stdout belongs on stderr, since stdout is for results."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))  # it refuses to start without
    with redirect_stdout(sys.stderr):
        import deepspeed
    # It would compile a kernel for inference when it starts; a compiler that is killed leaves a lock for ever.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)  # names that it uses
    return deepspeed


def is_split(parameter: Tensor) -> bool:
    """Whether tensor-parallel ranks have different parts of a parameter."""
    return any(split.axis is Axis.TP for each in holdings(parameter) for split in each.spec.splits)


def is_own(parameter: Tensor) -> bool:
    """Whether a parameter is not the copy that the last stage of a pipeline has of the first's."""
    return not getattr(parameter, "ds_pipe_replicated", False)


def layout_of(runtime: Any) -> Layout:
    """How a DeepSpeed engine keeps its state."""
    optimizer = runtime.optimizer
    kinds: dict[str, type[Layout]] = {
        "DeepSpeedZeroOptimizer": Divided,
        "DeepSpeedZeroOptimizer_Stage3": Scattered,
        "BF16_Optimizer": Bf16,
    }
    if isinstance(optimizer, torch.optim.Optimizer):
        return Plain(optimizer)
    return kinds[type(optimizer).__name__](optimizer)


def held(prefix: str, fragment: Fragment, values: Tensor) -> Iterator[Held]:
    """The logical tensors in a fragment's values."""
    for portion in fragment.portions():
        yield Held(prefix + portion.spec.name, portion.spec, portion.box, portion.run, portion.of(values.detach()))

"""The DeepSpeed engine over pipeline stages, beside data and tensor parallelism, with ZeRO 0 and 1.

DeepSpeed runs the schedule (one forward, one backward) and sends the stream between stages. Where the model is cut,
what a step learns and when it is lost is decided by neoxkit, as without a pipeline.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

from neoxkit.data.rows.batch import Batch
from neoxkit.nn.stages import Contexts, Ending, Layer, balance, layers
from neoxkit.parallel.division import divide
from neoxkit.parallel.layers import Embed, Head
from neoxkit.spec import Axis
from neoxkit.train.deepspeed.engine import DeepSpeedEngine
from neoxkit.train.deepspeed.groups import ModelParallelUnit
from neoxkit.train.engine import DTYPES, StepReport, TrainingError

TIED = "embed"
"""What DeepSpeed calls the weight that the first and the last stage share."""

MOVED = ("batch_input", "pipe_send_output", "pipe_send_grad", "pipe_recv_input", "pipe_recv_grad")
"""DeepSpeed's names for the times that stages spend on each other."""


class PipelineEngine(DeepSpeedEngine):
    """Trains a decoder whose layers are divided over stages. Every process must call its methods alike.

    Each stage is given the batches: it takes from them what it asks of a micro-batch beside the stream.
    """

    def _build_unit(self) -> ModelParallelUnit | None:
        return None  # DeepSpeed makes the groups of a pipeline itself

    def _build_task(self) -> nn.Module:
        """DeepSpeed's module of the layers that this stage has."""
        from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

        mesh, config = self.groups.mesh, self.config
        self.division = divide(self.groups, config.mesh.sequence_parallel, config.kernels.compile)
        self._total = torch.zeros((), dtype=torch.float64, device=self.device)
        self._count = torch.zeros((), dtype=torch.float64, device=self.device)
        self.contexts = Contexts(config.model, self.division, config.kernels)
        row = layers(config.model, self.division, config.recompute, config.sequence, config.kernels, self.contexts)
        before = torch.get_default_dtype()
        torch.set_default_dtype(DTYPES[config.precision])
        try:
            with torch.device(self.device), torch.no_grad():  # DeepSpeed sends weights that it ties
                self.model = build_stage(
                    row,
                    balance(row, mesh.pp),
                    self._enter,
                    topology=PipeModelDataParallelTopology(num_pp=mesh.pp, num_mp=mesh.tp, num_dp=mesh.dp),
                    loss_fn=self._loss,
                )
        finally:
            torch.set_default_dtype(before)
        self.head = self._find_head()
        return self.model

    def _find_head(self) -> Head | None:
        """The head, on the last stage; with the embedding's weight where they are tied."""
        for module in self.model.modules():
            if isinstance(module, Ending):
                return module.head
        if self.config.model.tied and self.groups.mesh.coord()[Axis.PP][0] == self.groups.mesh.pp - 1:
            embed = next(module for module in self.model.modules() if isinstance(module, Embed))
            return Head("head", self.config.model.vocab, self.config.model.width, embed, self.division)
        return None

    def build(self, scales: Any) -> None:
        """Build model, optimizer and DeepSpeed's engine, whose steps then ask for our judgement."""
        super().build(scales)
        self._take_step = self.runtime._take_model_step
        self.runtime._take_model_step = self._judged_step
        if not self.runtime.is_last_stage():  # there DeepSpeed starts these a second time by itself, and fails
            self.runtime.engine_timers.backward_timers = []
            self.runtime.engine_timers.backward_inner_timers = []
        self._told: StepReport | TrainingError | None = None

    @property
    def means(self) -> int:
        """What DeepSpeed divides the sum of gradients by: data-parallel ranks, and micro-batches as configured."""
        return self.groups.mesh.dp * self.config.accumulation

    def step(self, batches: Iterable[Batch], lr: float) -> StepReport:
        """One optimiser step over all micro-batches. Raises TrainingError when the loss is not finite."""
        self._set_rate(lr)
        given = self._begin(batches)
        self.runtime.micro_batches = len(given)
        with redirect_stdout(sys.stderr):
            self.runtime.train_batch(iter(given))
            # These it tells with its own progress only, which is off.
            self.times.tell(
                [name for name in self.runtime.timers.timers if name.endswith("_microstep") or name in MOVED]
            )
        told = self._told
        if isinstance(told, TrainingError):
            raise told
        assert told is not None, "DeepSpeed makes its step within train_batch"
        self._count_step()
        return told

    def _judged_step(self, options: Any) -> None:
        """In place of DeepSpeed's step, which comes once gradients are reduced."""
        try:
            self._told = self._judge(*self._sums_of_all())
        except TrainingError as error:  # raised once the schedule is through
            self._told = error
        else:
            assert not self._told.skipped, "fp16 is not for pipelines"
            self._take_step(options)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> tuple[float, int]:
        """Summed loss in nats and the tokens it counts; nothing changes. Ranks must have equally many batches."""
        given = self._begin(batches)
        if given:
            self.runtime.eval_batch(iter(given), compute_loss=True, bcast_loss=False, num_micro_batches=len(given))
        return self._sums_of_all()

    def _begin(self, batches: Iterable[Batch]) -> list[tuple[Tensor, tuple[()]]]:
        """What DeepSpeed is to load: what the first stage reads. The rest we take from the batches ourselves.

        Micro-batches have the size that stages send.
        """
        self._told = None
        self._total.zero_()
        self._count.zero_()
        filled = [batch.filled(self.config.micro) for batch in batches]
        self._rest = iter(filled)
        return [(batch.ids, ()) for batch in filled]

    def _enter(self) -> None:
        """Turn to the next micro-batch: every schedule takes them forward in their order, on every stage."""
        batch = next(self._rest)
        if self.head is not None or batch.segments is not None:
            batch = batch.to(self.device)
        self._now = batch
        self.contexts.begin(batch.positions, batch.segments)

    def _sums_of_all(self) -> tuple[float, int]:
        """The sums of loss and tokens over micro-batches and ranks; only the last stage has any."""
        return self._over_ranks(self._total, self._count, (Axis.PP, Axis.DP))

    def _loss(self, hidden: Tensor, _: object) -> Tensor:
        """The summed loss of a micro-batch, on the last stage."""
        assert self.head is not None
        loss = self.objective.loss(hidden, self.head, self._now)
        self._total += loss.sum.detach()
        self._count += loss.count
        return loss.sum


def build_stage(row: list[Layer], bounds: list[int], enter: Callable[[], None], **options: Any) -> nn.Module:
    """DeepSpeed's PipelineModule, with the layers of this process's stage; cut where we say.

    `enter` is called before the stage takes a micro-batch forward.
    """
    from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec

    class Stage(PipelineModule):
        def _partition_layers(self, method: str = "") -> None:
            self.parts = bounds
            self._set_bounds(bounds[self.stage_id], bounds[self.stage_id + 1])

        def forward(self, forward_input: Tensor) -> Tensor:
            enter()
            found: Tensor = super().forward(forward_input)
            return found

    def specs() -> Iterator[Any]:
        for number, layer in enumerate(row):
            if layer.tied:
                spec = TiedLayerSpec(TIED, layer.kind, *layer.arguments)
                spec.forward_fn = _as_it_is if number else None
                yield spec
            else:
                yield LayerSpec(layer.kind, *layer.arguments)

    found: nn.Module = Stage(list(specs()), **options)
    return found


def _as_it_is(_: nn.Module, x: Tensor) -> Tensor:
    return x

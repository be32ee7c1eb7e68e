"""What is measured of each step: speed, utilisation, memory, waiting, norms."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from neoxkit.config.run import RunConfig
from neoxkit.data.rows.batch import Batch
from neoxkit.nn.decoder import holdings
from neoxkit.parallel.collectives import WAITED, summed
from neoxkit.parallel.gradients import SPREAD, counted
from neoxkit.parallel.groups import LOCAL, Groups
from neoxkit.train.engine import StepReport
from neoxkit.train.flops import count, peak_of
from neoxkit.train.noise import NoiseScale
from neoxkit.train.profile import Profiler


class Watch:
    """Measures the steps of a run on this process: `begin`, `batches` while it goes on, `record` after it.

    Every process of a mesh has one, since norms are those of all; only the first one's records are
    kept. It profiles the steps that `config.profile` names.
    """

    def __init__(
        self,
        config: RunConfig,
        model: nn.Module,
        device: torch.device,
        folder: Path,
        groups: Groups = LOCAL,
    ) -> None:
        """`folder` is the run's, for profiles. Raises ConfigError for a profile that the device does not have."""
        self.config, self.model, self.device, self.groups = config, model, device, groups
        self._profiler = Profiler(config, folder, device, groups.mesh.rank)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        peak = peak_of(name, config.precision, config.logging.peak_tflops)
        self.peak = None if peak is None else peak * config.placed.world
        self._noise = NoiseScale(model.parameters(), groups) if config.logging.noise_scale else None
        self._begun = self._data = self._waited = 0.0
        self._seen: list[torch.Size] = []

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._profiler.close()

    def begin(self, step: int) -> None:
        """The step of this number begins."""
        self._profiler.begin(step)
        self._begun, self._data, self._waited = time.perf_counter(), 0.0, WAITED.seconds
        self._seen.clear()
        if self._noise is not None:
            self._noise.listen(self.device, due(step, self.config.logging.noise_scale))

    def batches(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; how long one waits for them is measured."""
        source = iter(batches)
        while True:
            begun = time.perf_counter()
            batch = next(source, None)
            self._data += time.perf_counter() - begun
            if batch is None:
                return
            self._seen.append(batch.ids.shape)
            yield batch

    def record(self, step: int, report: StepReport, lr: float) -> dict[str, Any]:
        """What is told of a step that has just ended. Numbers that are not known are left out:

        step, loss (nats a token), perplexity, norm (of the gradient, before it is clipped), tokens, lr,
        seconds, tokens_per_second; data_seconds: waited for data; wait_seconds: for other processes;
        memory: bytes, the peak of this device, or of the process on a CPU; mfu, hfu: parts of what all
        devices can do; parameter_norm, noise_scale: in steps in which they are measured; loss_scale,
        skipped: in fp16.
        """
        seconds = time.perf_counter() - self._begun
        self._profiler.end(step)
        told: dict[str, Any] = {"step": step, **report.record(), "lr": lr, "seconds": round(seconds, 6)}
        if not report.tokens:
            told.pop("loss", None)  # of nothing: no label of the step counts
        if (loss := told.get("loss")) is not None and loss < 700:  # e^709 is the largest number
            told["perplexity"] = math.exp(loss)
        told["tokens_per_second"] = round(report.tokens / seconds, 1)
        told["data_seconds"] = round(self._data, 6)
        if self.groups.along and self.device.type == "cpu":  # a GPU's waiting is not this thread's
            told["wait_seconds"] = round(WAITED.seconds - self._waited, 6)
        told["memory"] = memory_of(self.device)
        if self.peak is not None:
            useful, executed = self._operations()
            told["mfu"], told["hfu"] = useful / seconds / self.peak, executed / seconds / self.peak
        if due(step, self.config.logging.parameter_norm):
            told["parameter_norm"] = norm_of(self.model, self.groups)
        if self._noise is not None:
            micro_batches = len(self._seen) * self.config.dp
            if (noise := self._noise.measured(report.norm, report.tokens, micro_batches)) is not None:
                told["noise_scale"] = noise
        return told

    def _operations(self) -> tuple[int, int]:
        """Those of the step on all devices: what the model asks for, and with what is computed again."""
        useful = executed = 0
        for rows, length in self._seen:
            flops = count(self.config.model, length, self.config.recompute)
            useful += rows * flops.training
            executed += rows * flops.executed
        return useful * self.config.dp, executed * self.config.dp


def memory_of(device: torch.device) -> int:
    """The most bytes so far: of tensors on a GPU, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # in bytes there, in KiB elsewhere


def norm_of(model: nn.Module, groups: Groups) -> float:
    """The norm of all weights of a model that is spread over processes; each must ask."""
    at = groups.mesh.coord()
    norms = [
        torch.linalg.vector_norm(parameter.detach()[rows], dtype=torch.float32)
        for parameter in model.parameters()
        for rows in counted(holdings(parameter), at)
    ]
    total = torch.stack(norms).square().sum()
    for axis in SPREAD:
        if (group := groups.along.get(axis)) is not None:
            total = summed(total, group)
    return total.sqrt().item()


def due(step: int, every: int | None) -> bool:
    """Whether something that happens every so many steps happens after this one."""
    return every is not None and step % every == 0

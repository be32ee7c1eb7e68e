"""A few steps of a run recorded in detail: a trace, the memory of a GPU, or marks for Nsight."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from neoxkit.config.run import RunConfig
from neoxkit.errors import ConfigError
from neoxkit.log import note

EVENTS = 1_000_000
"""Allocations of the CUDA allocator that a snapshot of memory remembers, the last ones."""


class Profiler:
    """Records steps `profile.first` to `profile.last`: `begin` a step, `end` it; `close` it when the run ends early.

    What is recorded is named by rank. A trace gets the name of the steps it really has.
    """

    def __init__(self, config: RunConfig, folder: Path, device: torch.device, rank: int = 0) -> None:
        """Raises ConfigError for a kind that this device does not have."""
        self.wanted, self.folder, self.device, self.rank = config.profile, folder, device, rank
        self._stop: Callable[[int], Path | None] | None = None
        self._first = self._last = 0
        if self.wanted is not None and self.wanted.record != "torch" and device.type != "cuda":
            why = {"memory": "of the allocator of a GPU", "nsight": "of CUDA's profiler"}[self.wanted.record]
            raise ConfigError(
                f"profile.record {self.wanted.record} is {why}, and the run is on {device.type}", "use torch"
            )

    def begin(self, step: int) -> None:
        """The step of this number begins."""
        wanted = self.wanted
        if wanted is None or not wanted.first <= step <= wanted.last:
            return
        if self._stop is None:
            self._first = self._last = step
            self._stop = {"torch": self._trace, "memory": self._snapshot, "nsight": self._nsight}[wanted.record]()
        if wanted.record == "nsight":
            torch.cuda.nvtx.range_push(f"step {step}")

    def end(self, step: int) -> None:
        """It has ended."""
        wanted = self.wanted
        if wanted is None or self._stop is None:
            return
        if wanted.record == "nsight":
            torch.cuda.nvtx.range_pop()
        self._last = step
        if step >= wanted.last:
            self.close()

    def close(self) -> None:
        """Write what is recorded, if anything is."""
        stop, self._stop = self._stop, None
        if stop is not None and (path := stop(self._last)) is not None:
            note(f"profile of steps {self._first} to {self._last}: {path}")

    def _path(self, last: int, suffix: str) -> Path:
        return self.folder / f"profile-{self._first}-{last}-rank{self.rank}{suffix}"

    def _trace(self) -> Callable[[int], Path]:
        """torch.profiler, with shapes and memory."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        recorder: Any = torch.profiler.profile(activities=activities, record_shapes=True, profile_memory=True)
        recorder.start()

        def stop(last: int) -> Path:
            recorder.stop()
            path = self._path(last, ".json.gz")
            recorder.export_chrome_trace(str(path))
            return path

        return stop

    def _snapshot(self) -> Callable[[int], Path]:
        """Every allocation, with the stack that made it."""
        torch.cuda.memory._record_memory_history(max_entries=EVENTS)

        def stop(last: int) -> Path:
            path = self._path(last, ".pickle")
            torch.cuda.memory._dump_snapshot(str(path))
            torch.cuda.memory._record_memory_history(enabled=None)
            return path

        return stop

    def _nsight(self) -> Callable[[int], None]:
        """NVTX ranges of steps and of torch's operations, between the calls that Nsight Systems waits for."""
        torch.cuda.cudart().cudaProfilerStart()
        ranges = torch.autograd.profiler.emit_nvtx()
        ranges.__enter__()

        def stop(last: int) -> None:
            torch.cuda.synchronize(self.device)
            ranges.__exit__(None, None, None)
            torch.cuda.cudart().cudaProfilerStop()

        return stop

"""What DeepSpeed measures of times, told as one line a step, and only where `wall_clock_breakdown` asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class StepTimes:
    """The times of an engine of DeepSpeed's. By itself it tells them part by part, and of each micro-batch too.

    Its profiler of operations keeps the same times, and would tell them at every step unasked.
    """

    def __init__(self, runtime: Any, asked: bool, pipeline: bool) -> None:
        self._timers, self._asked, self._names = runtime.timers, asked, list[str]()
        kept = bool(runtime.engine_timers.global_timers)
        # A pipeline's schedule starts and stops those of micro-batches, which add up over a step.
        runtime.engine_timers = type(runtime.engine_timers)(kept and pipeline, kept and not pipeline)
        self._log = self._timers.log
        self._timers.log = self._collect

    def _collect(self, names: Sequence[str], **_: Any) -> None:
        """In place of DeepSpeed's own line."""
        self._names += names

    def tell(self, more: Sequence[str] = ()) -> None:
        """Tell what the step that has just ended took; `more` are timers that DeepSpeed itself does not tell."""
        names, self._names = list(dict.fromkeys([*self._names, *more])), []
        if self._asked:
            self._log(names)
            return
        for name in names:
            self._timers(name).reset()

"""DeepSpeed's times of a step: one line, where they are asked for."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

from neoxkit.train.deepspeed.engine import load_deepspeed
from neoxkit.train.deepspeed.timing import StepTimes


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("pipeline", [True, False])
def test_times_are_one_line_a_step(
    asked: bool, pipeline: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """DeepSpeed tells those of ZeRO, of each micro-batch and of the step on a line each."""
    pytest.importorskip("deepspeed")
    load_deepspeed(torch.device("cpu"))
    from deepspeed.runtime.engine import EngineTimers
    from deepspeed.utils import timer

    monkeypatch.setattr(timer, "print_dist", lambda line, ranks: print(line))
    timers = timer.SynchronizedWallClockTimer()
    runtime = SimpleNamespace(timers=timers, engine_timers=EngineTimers(asked, True))
    times = StepTimes(runtime, asked, pipeline)
    for _ in range(2):
        for name in (*runtime.engine_timers.forward_timers, "optimizer_step", "pipe_send_output"):
            timers(name).start()
            time.sleep(0.001)
            timers(name).stop()
        timers.log(["optimizer_step"])
        timers.log(names=runtime.engine_timers.micro_timers, memory_breakdown=False)
        timers.log(runtime.engine_timers.global_timers)
        times.tell(["pipe_send_output", "optimizer_step"])
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("time (ms)")]
        assert len(lines) == asked
        for name in ("fwd_microstep" if pipeline else "fwd", "optimizer_step", "pipe_send_output"):
            assert not asked or lines[0].count(f" {name}: ") == 1
        assert all(timers(name).elapsed() == 0 for name in timers.timers), "they would add up over the run"

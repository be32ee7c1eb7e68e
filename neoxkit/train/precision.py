"""The precision that a run computes in: chosen once, and then recorded. And what fp16 needs."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from neoxkit.config.parallel import LossScale
from neoxkit.config.run import RunConfig
from neoxkit.errors import ConfigError
from neoxkit.parallel.device import beats_fp32
from neoxkit.train.engine import TrainingError

ROWS = 2048
"""Rows of the matrix product that is measured, at most."""

WIDEST = 16384
"""And its other sizes, at most: a gigabyte in fp32, also where a model is planned that is not for this machine."""


def choose_precision(config: RunConfig, device: torch.device) -> str:
    """fp32 or bf16. `auto` measures a matrix product of the model's own size, which takes a moment."""
    if config.precision != "auto":
        return config.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    rows = min(ROWS, config.micro * config.sequence)
    width, hidden = (min(WIDEST, size) for size in (config.model.width, config.model.mlp.hidden))
    return "bf16" if beats_fp32(torch.bfloat16, rows, width, hidden) else "fp32"


def check_precision(config: RunConfig, device: torch.device) -> None:
    """Raise ConfigError when the run's engine does not compute in the run's precision, as chosen, on such a device."""
    config.check()
    if config.precision == "fp16" and device.type == "cpu" and config.runs_on_deepspeed:
        raise ConfigError(
            "precision fp16 on a CPU: DeepSpeed has it on GPUs only",
            "set precision=bf16, or zero.stage=0 for neoxkit's own engine",
        )


class Scaler:
    """The factor of the loss in fp16, and the rules that move it, which are DeepSpeed's (and so gpt-neox's).

    The step after `window` good ones doubles it. The first overflows are borne, `hysteresis` - 1 of them since
    it last doubled; each later one halves it.
    """

    def __init__(self, options: LossScale) -> None:
        self.options = options
        self.scale = options.initial
        self.borne = options.hysteresis
        """Overflows until the scale is halved."""
        self.good = 0
        """Steps since the last overflow."""
        self.skipped = 0
        """Steps that were skipped, in a row."""

    @property
    def exhausted(self) -> bool:
        """Whether too many steps were skipped in a row."""
        return self.skipped >= self.options.most_skipped

    def judge(self, finite: bool) -> bool:
        """Take note of a step's gradient; returns whether the step is to be made."""
        if finite:
            self.good, self.skipped = self.good + 1, 0
            if self.good > 1 and (self.good - 1) % self.options.window == 0 and not self.options.fixed:
                self.scale, self.borne = self.scale * 2, self.options.hysteresis
            return True
        self.good, self.skipped = 0, self.skipped + 1
        if self.options.fixed:
            return False
        if self.borne > 1:
            self.borne -= 1
        else:
            self.scale = max(self.scale / 2, self.options.lowest)
        return False

    def state(self) -> dict[str, float | int]:
        """What resuming needs, as JSON."""
        return {"scale": self.scale, "borne": self.borne, "good": self.good, "skipped": self.skipped}

    def load(self, state: Mapping[str, float | int]) -> None:
        """Go on from a `state`. A fixed scale is what the configuration says."""
        self.scale = self.options.initial if self.options.fixed else float(state["scale"])
        self.borne, self.good, self.skipped = (int(state[key]) for key in ("borne", "good", "skipped"))

    def give_up(self, error: TrainingError) -> None:
        """Raise the error of the step that is being skipped when too many were skipped in a row."""
        if self.exhausted:
            raise TrainingError(f"{self.skipped} steps in a row were skipped, and {error.cause}", error.remedy)


def loss_factor(scaler: Scaler | None, config: RunConfig) -> float:
    """What the loss of a micro-batch, a sum over tokens, is multiplied by before its gradients are taken.

    Gradients of a sum would overflow long before those of a mean, of which the scale is told: so the
    tokens of a micro-batch divide it. 1 without a scaler.
    """
    return 1.0 if scaler is None else scaler.scale / (config.micro * config.sequence)

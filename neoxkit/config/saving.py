"""When a run is saved, and which checkpoints stay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from neoxkit.config.model import Node


class Save(Node):
    """Where the run lives, and which checkpoints are kept there."""

    folder: str = Field(description="The run's folder: checkpoints, metrics.jsonl, loss.png.")
    every: int | None = Field(None, gt=0, description="Steps between checkpoints; null: only after the last step.")
    steps: tuple[int, ...] = Field(
        (), description="Save after each of these steps too, and keep those; 0: before the first."
    )
    log_factor: float | None = Field(
        None,
        gt=1,
        description="Save after steps 1, f, f^2, ... too, each rounded down, and keep those (Pythia: 2, up to 512).",
    )
    log_last: int | None = Field(None, gt=0, description="The last step that save.log_factor may give; null: no limit.")
    keep_last: int | None = Field(
        None, gt=0, description="Of the checkpoints that save.every gives keep the newest; null: all."
    )
    keep_every: int | None = Field(
        None, gt=0, description="Beside the newest keep_last, keep each whose step is a multiple of this."
    )
    background: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Write while training goes on, from a copy in memory. auto: where a process saves 64 MB or more.",
    )

    @model_validator(mode="after")
    def _steps_that_may_come(self) -> Save:
        if any(step < 0 for step in self.steps):
            raise ValueError(f"steps {list(self.steps)} must each be at least 0")
        if self.log_last is not None and self.log_factor is None:
            raise ValueError("log_last is the last step of log_factor, which is not given; give both, or neither")
        if self.keep_every is not None and self.keep_last is None:
            raise ValueError(
                "keep_every is what stays beside keep_last, which is not given; keep_last: 1 is the newest"
            )
        return self

    def wants(self, step: int) -> bool:
        """Whether the run is saved after a step, whatever else is due."""
        return self.stays(step) or (self.every is not None and step > 0 and step % self.every == 0)

    def stays(self, step: int) -> bool:
        """Whether the checkpoint of a step was asked for by itself, so that `keep_last` does not concern it."""
        return step in self.steps or step in self._logarithmic(step)

    def _logarithmic(self, most: int) -> Iterator[int]:
        """The steps of `log_factor` up to `most`: the power is multiplied up, as gpt-neox does, and then rounded."""
        power, limit = 1.0, min(most, self.log_last or most)
        while self.log_factor is not None and int(power) <= limit:
            yield int(power)
            power *= self.log_factor

"""What a run does when something goes wrong."""

from __future__ import annotations

from pydantic import Field, model_validator

from neoxkit.config.model import Node


class Faults(Node):
    """Lost processes, lost numbers, spikes of the loss."""

    timeout: int = Field(1800, gt=0, description="Seconds that a process waits for the others before it gives up.")
    rewinds: int = Field(
        0,
        ge=0,
        description="How often a run may go back to its newest checkpoint, and pass over the samples since then "
        "(arXiv 2204.02311), when the loss spikes or is no number.",
    )
    spike: float | None = Field(
        None, gt=0, description="Nats by which the loss must exceed the mean of the last faults.window steps."
    )
    window: int = Field(100, gt=1, description="Steps of that mean; none is a spike before there are so many.")

    @model_validator(mode="after")
    def _spikes_rewind(self) -> Faults:
        if self.spike is not None and not self.rewinds:
            raise ValueError("spike says when to go back, and rewinds is 0; allow some")
        if self.spike is None and self.window != type(self).model_fields["window"].default:
            raise ValueError("window is of the mean that spike is measured from, which is not given; give both")
        return self

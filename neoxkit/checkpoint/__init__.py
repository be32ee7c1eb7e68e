"""Source and Sink: everything that tensors are copied from and to.

A checkpoint, a Hugging Face folder and a live model are all one or both of these. Importing this
package imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from neoxkit.spec import Box, Run, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

    from neoxkit.config.model import ModelConfig


class Source(Protocol):
    """Something that reads boxes of logical tensors."""

    @property
    def config(self) -> ModelConfig:
        """What the network computes."""

    def names(self) -> Sequence[str]:
        """Logical names, with their component: "model/layers.0.attn.q.weight"."""

    def spec(self, name: str) -> TensorSpec:
        """Whole shape, splits and role. The spec's own name has no component."""

    def dtype(self, name: str) -> str:
        """The dtype as safetensors spells it: "BF16"."""

    def read(self, name: str, want: Box | None = None) -> Tensor:
        """A contiguous CPU tensor of the box (all of it, when None), of the box's shape.

        Raises CheckpointError, naming the file and the tensor, when it cannot be had whole.
        """

    def stream(self, name: str, want: Box | None = None) -> Iterator[tuple[Box, Tensor]]:
        """The same in blocks, which together are the box: a tensor is never in memory whole without need.

        CheckpointError comes at the end where damage shows only then: commit nothing before it.
        """


class Sink(Protocol):
    """Something that boxes of logical tensors are written to."""

    def write(self, name: str, box: Box, value: Tensor, run: Run | None = None) -> None:
        """Take the elements of a box, or of a run of it, of the tensor called `name`.

        `value` has the box's shape, or is flat for a run. Boxes may come in any order and any size
        within what was planned.
        """

    def commit(self) -> None:
        """Make everything visible, whole. Nothing is visible before this."""

    def abort(self) -> None:
        """Remove what was written. Safe after commit, when it does nothing."""

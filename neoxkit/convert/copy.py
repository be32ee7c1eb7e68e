"""The one verb: read every tensor that a sink wants from a source, block by block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from neoxkit.checkpoint import Sink, Source
from neoxkit.checkpoint.dtypes import TORCH
from neoxkit.checkpoint.format import MODEL
from neoxkit.config.model import ModelConfig
from neoxkit.errors import ConversionError
from neoxkit.log import Progress, Silent
from neoxkit.spec import Box, TensorSpec

SILENT = Silent()


def copy(source: Source, sink: Sink, names: Iterable[str], progress: Progress = SILENT) -> None:
    """Read these tensors and write them.

    `progress` is told of the bytes written. Raises what the source and the sink raise; then nothing
    may be committed.
    """
    with one_thread():
        for name in names:
            for box, value in source.stream(name):
                sink.write(name, box, value)
                progress.advance(value.nbytes)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread.

    Moving elements is bound by memory: two threads took 2 to 4 times the CPU seconds of one, most of them spent
    waiting for each other, and were no sooner done.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Converted:
    """A source whose weights are read in another dtype (as safetensors spells it); None changes nothing.

    Only floating-point tensors of the model's component are converted. Raises ConversionError,
    naming the tensor, when a number is too large for its new dtype.
    """

    def __init__(self, source: Source, dtype: str | None) -> None:
        self._source, self._dtype = source, dtype

    @property
    def config(self) -> ModelConfig:
        """What the network computes."""
        return self._source.config

    def names(self) -> Sequence[str]:
        """As the source has them."""
        return self._source.names()

    def spec(self, name: str) -> TensorSpec:
        """As the source has it."""
        return self._source.spec(name)

    def dtype(self, name: str) -> str:
        """The dtype that `read` gives."""
        own = self._source.dtype(name)
        if self._dtype is None or not name.startswith(MODEL) or not TORCH[own].is_floating_point:
            return own
        return self._dtype

    def read(self, name: str, want: Box | None = None) -> Tensor:
        """A box, converted. See Source."""
        return converted(name, self._source.read(name, want), TORCH[self.dtype(name)])

    def stream(self, name: str, want: Box | None = None) -> Iterator[tuple[Box, Tensor]]:
        """Blocks, converted. See Source."""
        dtype = TORCH[self.dtype(name)]
        for box, value in self._source.stream(name, want):
            yield box, converted(name, value, dtype)


def converted(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in another dtype. A finite number that would become infinite is an error, not a surprise."""
    if value.dtype == dtype:
        return value
    result = value.to(dtype)
    if not torch.equal(result.isfinite(), value.isfinite()):
        largest = value[value.isfinite()].abs().max().item()
        raise ConversionError(
            f"{name}: {largest:g} does not fit in {str(dtype).removeprefix('torch.')}, "
            f"whose largest number is {torch.finfo(dtype).max:g}",
            "choose another --dtype",
        )
    return result

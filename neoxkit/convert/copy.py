"""The one verb: read every tensor that a sink wants from a source, block by block."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from neoxkit.checkpoint import Sink, Source
from neoxkit.checkpoint.dtypes import TORCH
from neoxkit.errors import ConversionError
from neoxkit.log import Progress, Silent

SILENT = Silent()


def copy(
    source: Source, sink: Sink, names: Iterable[str], dtypes: Mapping[str, str], progress: Progress = SILENT
) -> None:
    """Read these tensors and write them, each converted to the dtype that `dtypes` gives it.

    `progress` is told of bytes read. Raises ConversionError, naming the tensor, when a number is too
    large for its new dtype, and CheckpointError when the source is damaged.
    """
    for name in names:
        dtype = TORCH[dtypes[name]]
        for box, value in source.stream(name):
            sink.write(name, box, converted(name, value, dtype))
            progress.advance(value.nbytes)


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

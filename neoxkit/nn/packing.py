"""A decoder made ready to decode on a CPU: see parallel/packed.py."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from neoxkit.nn.decoder import Decoder
from neoxkit.nn.norm import RMSNorm, quick_rms_norm
from neoxkit.parallel.layers import Column, Embed, Head, Row
from neoxkit.parallel.packed import Make


@torch.no_grad()
def pack(model: Decoder, make: Make) -> None:
    """Let all matrices of a model be multiplied by what `make` makes of them, and all else be computed in fp32.

    One matrix is converted after the other, so that no more than one is there twice. Tables stay in their dtype, of
    which rows are widened. The model can neither learn nor be saved afterwards.
    """
    for module in model.modules():
        if isinstance(module, Column | Row | Head):
            module.multiply_by(make)
        elif isinstance(module, RMSNorm):
            module.normalise = quick_rms_norm
        elif isinstance(module, Embed) and module.weight.dtype != torch.float32:
            module.look_up = _widened(module.look_up)
    tables = {id(module.weight) for module in model.modules() if isinstance(module, Embed)}
    for parameter in model.parameters():
        if id(parameter) not in tables:
            parameter.data = parameter.data.float()


def _widened(look_up: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda ids, table: look_up(ids, table).float()

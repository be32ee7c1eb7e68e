"""A decoder made ready to decode on a CPU: see parallel/packed.py."""

from __future__ import annotations

import torch
from torch import nn

from neoxkit.native import ops as native
from neoxkit.nn.decoder import Decoder
from neoxkit.nn.mlp import GatedMlp, Mlp
from neoxkit.nn.norm import LayerNorm, RMSNorm, WideRMSNorm, quick_rms_norm
from neoxkit.parallel.layers import Column, Embed, Read, Row
from neoxkit.parallel.packed import Make


@torch.no_grad()
def pack(model: Decoder, make: Make) -> None:
    """Let all matrices of a model be multiplied by what `make` makes of them, and all else be computed in fp32.

    One matrix is converted after the other, so that no more than one is there twice. Tables stay in their dtype, of
    which rows are widened. The model can neither learn nor be saved afterwards.
    """
    for module in model.modules():
        if isinstance(module, Embed):
            module.read = _widened(module.read)
        elif isinstance(module, Column | Row):
            module.multiply_by(make)
    _pack_head(model, make)
    tables = {id(module.weight) for module in model.modules() if isinstance(module, Embed)}
    for parameter in model.parameters():
        if id(parameter) not in tables:
            parameter.data = parameter.data.float()
    for module in model.modules():
        if native.available():
            _use_native(module)
        elif isinstance(module, RMSNorm):
            module.apply_norm = quick_rms_norm


def _pack_head(model: Decoder, make: Make) -> None:
    """A tied table is from then on read from what the head has made of it, where that can be read."""
    tied = model.head.weight is model.embed.weight
    product = model.head.multiply_by(make)
    if tied and isinstance(product, native.Panels):
        model.embed.read = lambda ids, _: product.rows(ids)
        model.embed.weight = nn.Parameter(model.embed.weight.new_empty(0), requires_grad=False)


def _use_native(module: nn.Module) -> None:
    if isinstance(module, RMSNorm) or (isinstance(module, WideRMSNorm) and not module.divided):
        module.apply_norm = native.rms_norm
    elif isinstance(module, LayerNorm):
        module.apply_norm = native.layer_norm
    elif isinstance(module, GatedMlp):
        module.activate = native.gated
    elif isinstance(module, Mlp):
        module.activate = native.activated


def _widened(read: Read) -> Read:
    return lambda ids, table: read(ids, table).float()

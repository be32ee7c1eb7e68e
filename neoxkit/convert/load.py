"""A live decoder as a sink: the weights of any source, in any dtype, on any device."""

from __future__ import annotations

import torch

from neoxkit.checkpoint import Source
from neoxkit.checkpoint.dtypes import TORCH
from neoxkit.checkpoint.format import MODEL
from neoxkit.nn.decoder import Decoder, pieces


def load_weights(source: Source, model: Decoder) -> None:
    """Fill a decoder's parameters in place, in their own dtype and on their own device."""
    for spec, box, value in pieces(model):
        value.copy_(source.read(MODEL + spec.name, box))


def load_decoder(source: Source, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Decoder:
    """The model of a source, ready to run; in the dtype of its embedding unless told otherwise."""
    model = Decoder(source.config, device, dtype or TORCH[source.dtype(MODEL + "embed.weight")])
    load_weights(source, model)
    return model.eval()

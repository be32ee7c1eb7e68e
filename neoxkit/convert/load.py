"""A live decoder as a sink: the weights of any source, in any dtype, on any device."""

from __future__ import annotations

import torch

from neoxkit.checkpoint import Source
from neoxkit.checkpoint.dtypes import TORCH
from neoxkit.checkpoint.format import MODEL
from neoxkit.errors import ConversionError
from neoxkit.nn.decoder import Decoder, pieces, specs
from neoxkit.parallel.groups import LOCAL, Groups
from neoxkit.spec import volume

_REMEDY = "is config.json the one that belongs to these weights?"


def check_model(source: Source) -> None:
    """Raise ConversionError unless a source holds exactly the tensors that its configuration asks for.

    Without this a smaller configuration would read a corner of each tensor: another model, silently.
    """
    wanted = {MODEL + name: spec.shape for name, spec in specs(source.config).items()}
    held = {name: source.spec(name).shape for name in source.names() if name.startswith(MODEL)}
    for name, shape in wanted.items():
        if name not in held:
            raise ConversionError(f"{name} is missing, and config.json asks for it", _REMEDY)
        if held[name] != shape:
            raise ConversionError(f"{name} is {list(held[name])}, and config.json asks for {list(shape)}", _REMEDY)
    for name in held:
        if name not in wanted:
            raise ConversionError(f"{name} is there, and config.json asks for no such tensor", _REMEDY)


def load_weights(source: Source, model: Decoder) -> None:
    """Fill a decoder's parameters in place, in their own dtype and on their own device.

    Raises ConversionError when the source's tensors are not those of its configuration.
    """
    check_model(source)
    for spec, box, value in pieces(model):
        if volume(box):  # a rank may have none of a small vocabulary
            value.copy_(source.read(MODEL + spec.name, box))


def load_decoder(
    source: Source,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    groups: Groups = LOCAL,
) -> Decoder:
    """The model of a source, ready to run; in the dtype of its embedding unless told otherwise.

    Of a model that is divided over processes it is the part that belongs here, and nothing else is
    read. Raises as `load_weights` does.
    """
    model = Decoder(source.config, device, dtype or TORCH[source.dtype(MODEL + "embed.weight")], groups)
    load_weights(source, model)
    return model.eval()

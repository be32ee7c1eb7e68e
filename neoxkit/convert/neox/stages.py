"""Which parameters a group of the optimizer holds, in which order: told by DeepSpeed, or found by shapes.

gpt-neox makes two groups, the decayed parameters and then biases and those of norms, each in the order
of the network; one group when nothing is decayed. A pipeline stage has the parameters of its layers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod
from pathlib import Path

from neoxkit.convert.neox.optimizer import MASTER, WITHOUT, Group
from neoxkit.convert.neox.tensors import Key, Tensors, newest_name
from neoxkit.errors import ConversionError

Orders = list[list[Key]]
"""The parameters of each group, in their order."""

ALIGNED = 4
"""Elements for each data-parallel rank, to a multiple of which DeepSpeed pads a buffer, at most."""

_NAME = re.compile(r"(?:module\.)?(?:sequential\.)?(\d{1,6})\.(.+)")
_TIED = re.compile(r"(?:module\.)?tied_modules\.\w+\.(.+)")


def told_orders(tensors: Tensors, shapes: object, groups: Sequence[Group], file: Path) -> Orders | None:
    """What DeepSpeed says of the parameters in each group's buffers (`param_shapes`); None where it says nothing.

    Its `param_slice_mappings` say the same but for round_robin_gradients, of which they do not know.
    Raises ConversionError for a name that no weight has.
    """
    if not isinstance(shapes, list) or len(shapes) != len(groups):
        return None  # DeepSpeed of 2021 listed all groups as one
    if not all(isinstance(each, dict) and all(isinstance(name, str) for name in each) for each in shapes):
        return None
    found: Orders = []
    for each in shapes:
        keys = [_key(tensors, name) for name in each]
        for name, key in zip(each, keys, strict=True):
            if key not in tensors.places:
                raise ConversionError(f"{file}: its optimizer has {name!r}, which no weight is called", WITHOUT)
        found.append(keys)
    return found


def _key(tensors: Tensors, name: str) -> Key:
    if match := _TIED.fullmatch(name):
        return tensors.embed, match[1]
    match = _NAME.fullmatch(name)
    return (int(match[1]), newest_name(match[2])) if match else (-1, name)


def found_orders(
    tensors: Tensors, groups: Sequence[Group], first: int, last_stage: bool, file: Path
) -> tuple[Orders, int]:
    """The parameters of a stage that begins at layer number `first` of those that have any, and where it ends.

    Shapes and sizes tell: a stage ends where they are no longer those of the next layer. Raises
    ConversionError when they are those of no stretch of layers.
    """
    layers: dict[int, list[Key]] = {}
    for key in tensors.places:
        layers.setdefault(key[0], []).append(key)
    numbers = sorted(layers)
    ahead = layers[tensors.embed] if last_stage and first and tensors.head is None else []
    for stop in range(len(numbers) if last_stage else first + 1, len(numbers) + 1):
        keys = [*ahead, *(key for layer in numbers[first:stop] for key in layers[layer])]
        orders = [keys] if len(groups) == 1 else [[k for k in keys if _decays(k[1]) == yes] for yes in (True, False)]
        if len(orders) == len(groups) and all(_fits(tensors, *each) for each in zip(groups, orders, strict=True)):
            return orders, stop
    raise ConversionError(f"{file}: its optimizer has parameters of other shapes than the weights", WITHOUT)


def _decays(name: str) -> bool:
    """Whether gpt-neox decays a parameter: neither a bias nor of a norm."""
    return not (name.endswith("bias") or "norm." in name)


def _fits(tensors: Tensors, group: Group, keys: Sequence[Key]) -> bool:
    shapes = [tensors.places[key][0].shape for key in keys]
    if not group.apart:
        buffers = group.buffers(MASTER)
        spare = sum(buffer.shape[0] for buffer in buffers) - sum(prod(shape) for shape in shapes)
        return 0 <= spare <= ALIGNED * len(buffers)
    same = (own is None or own == shape for own, shape in zip(group.shapes, shapes, strict=False))
    return len(shapes) == len(group.shapes) and all(same)

"""Where the fp32 masters and Adam's moments of each weight lie, rank by rank, as Tensors has the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from neoxkit.convert.neox.flat import Part, Spliced, cut
from neoxkit.convert.neox.folder import RANK
from neoxkit.convert.neox.optimizer import AGAIN, MASTER, WITHOUT, Group, Held, of_rank, of_zero, zero_files
from neoxkit.convert.neox.stages import found_orders, told_orders
from neoxkit.convert.neox.tensors import Key, Tensors
from neoxkit.convert.pickles.storage import Files
from neoxkit.convert.pickles.torch_file import read_objects
from neoxkit.errors import CheckpointError, ConversionError

FLOATS = ("F16", "BF16", "F32")


@dataclass
class States:
    """The optimizer's state.

    `places` has, by kind (master, exp_avg, exp_avg_sq) and by key, a part for each tensor-parallel rank.
    `about` is what is said of each group of parameters beside its tensors.
    """

    places: dict[str, dict[Key, tuple[Part, ...]]] = field(default_factory=dict)
    steps: int = -1
    scale: float | None = None
    about: list[dict[str, Any]] = field(default_factory=list)


def has_states(tensors: Tensors) -> bool:
    """Whether there is state of an optimizer, be it whole or not."""
    return tensors.optimizer or bool(zero_files(tensors.folder))


def read_states(tensors: Tensors, files: Files) -> States:
    """The places of the optimizer's state; no tensor is read.

    Raises CheckpointError or ConversionError, naming the file or the weight, when it is not whole, not
    Adam's, or not of these weights.
    """
    folder, tp = tensors.folder, tensors.tp
    zero = zero_files(folder)
    ranks = {int(m[1]): path for path in sorted(folder.iterdir()) if (m := RANK.fullmatch(path.name))}
    count = 1 + max([*ranks, *zero])
    stages = -(-count // tp)
    found = States()
    parts: dict[str, dict[Key, dict[int, Part]]] = {}
    first = 0  # of the layers that have parameters, that which the stage begins with
    for rank in range(stages * tp):
        if rank not in ranks:
            raise CheckpointError(f"{folder / f'mp_rank_{rank:02d}_model_states.pt'}: missing", AGAIN)
        about = read_objects(ranks[rank])
        if not isinstance(about, dict):
            raise CheckpointError(f"{ranks[rank]}: not a mapping", AGAIN)
        if zero:
            held = of_zero(folder, rank, zero, about, files)
        else:
            held = of_rank(ranks[rank], about.get("optimizer"), files)
        orders, stop = told_orders(tensors, about.get("param_shapes"), held.groups, held.file), first
        if orders is None:
            orders, stop = found_orders(tensors, held.groups, first, rank // tp == stages - 1, held.file)
        for group, keys in zip(held.groups, orders, strict=True):
            for kind, key, part in _split(held.file, tensors, group, keys):
                # The embedding of a later stage, where it is the tied head, is a copy: the first counts.
                parts.setdefault(kind, {}).setdefault(key, {}).setdefault(rank % tp, part)
        _agree(found, held)
        first = stop if rank % tp == tp - 1 else first
    _complete(found, parts, tensors)
    return found


def _split(file: Path, tensors: Tensors, group: Group, keys: Sequence[Key]) -> Iterator[tuple[str, Key, Part]]:
    """Each kind of state of each parameter of a group."""
    for kind, values in group.kinds.items():
        if group.apart:
            yield from ((kind, key, value) for key, value in zip(keys, values, strict=True) if value is not None)
            continue
        paddings = group.paddings if len(group.paddings) == len(keys) else [0] * len(keys)
        at = 0
        for key, padding in zip(keys, paddings, strict=True):
            shape = tensors.places[key][0].shape
            try:
                yield kind, key, Spliced(shape, tuple(cut(group.buffers(kind), at, at + prod(shape))))
            except ValueError as error:
                raise CheckpointError(f"{file}: ends inside {kind} of {_said(key)}: {error}", AGAIN) from None
            at += prod(shape) + padding


def _said(key: Key) -> str:
    return f"{key[1]!r} of layer {key[0]}"


def _agree(found: States, held: Held) -> None:
    """All groups of all ranks have made as many steps."""
    for group in held.groups:
        if not any(shape and prod(shape) for shape in group.shapes):
            continue
        if found.steps == -1:
            found.steps, found.scale, found.about = group.steps, held.scale, [each.about for each in held.groups]
        if group.steps != found.steps:
            raise CheckpointError(f"{held.file}: {group.steps} steps of Adam, and elsewhere {found.steps}", WITHOUT)


def _complete(found: States, parts: Mapping[str, Mapping[Key, Mapping[int, Part]]], tensors: Tensors) -> None:
    """Every weight has its moments on every rank, in its own shape, and a master where others have."""
    for kind, held in parts.items():
        for key, weights in tensors.places.items():
            there = held.get(key, {})
            for rank, weight in enumerate(weights):
                part = there.get(rank)
                if part is None:
                    raise ConversionError(
                        f"{tensors.folder}: the optimizer has no {kind} of {_said(key)} on rank {rank}", WITHOUT
                    )
                if part.shape != weight.shape:
                    raise ConversionError(
                        f"{part.storage.file}: {kind} of {_said(key)} is {list(part.shape)}, the weight "
                        f"{list(weight.shape)}",
                        WITHOUT,
                    )
                if part.dtype not in (FLOATS if kind != MASTER else ("F32", weight.dtype)):
                    raise ConversionError(f"{part.storage.file}: {kind} of {_said(key)} is {part.dtype}", WITHOUT)
            found.places.setdefault(kind, {})[key] = tuple(there[rank] for rank in range(len(weights)))

"""The tensors of a gpt-neox checkpoint by layer and name, one part for each tensor-parallel rank.

Layers are numbered as gpt-neox does: the embedding is 0, blocks begin at 2, the final norm follows the
last block after one number that has no tensors, and the head follows the norm. Names are those of the
newest generation; the gate, up and down of the Llama generation keep their w1, w3 and w2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from neoxkit.convert.neox.folder import LAYER, RANK
from neoxkit.convert.pickles.storage import Stored
from neoxkit.convert.pickles.torch_file import read_objects
from neoxkit.errors import CheckpointError, ConversionError

Key = tuple[int, str]

RENAMED = (("mlp.dense_h_to_4h.", "mlp.linear1."), ("mlp.dense_4h_to_h.", "mlp.linear2."))

UNSUPPORTED = (
    (r"\bmixer\.", "Mamba layers"),
    (r"^(att|ffn)\.|^ln[12]\.", "RWKV layers"),
    (r"^mlp\.(experts|router)\.", "a mixture of experts"),
    (r"\bsgu\.", "gMLP layers"),
    (r"_extra_state|^mlp\.(fc[12]_|layer_norm_)|^attention\.(qkv|proj)\.|norm\.norm\.", "TransformerEngine layers"),
    (r"^attention\.rpe\.", "relative position embeddings"),
    (r"^position_embeddings\.inv_freq", "sinusoidal positions"),
    (r"soft_embedding", "soft prompts"),
    (r"qk_layernorm", "a norm over the queries and keys of all heads"),
    (r"^rm_linear\.", "the head of a reward model"),
    (r"norm\.g$", "ScaleNorm"),
)
"""Tensors of networks that neoxkit does not compute, and what they are of."""

ROTARY = "attention.rotary_emb.inv_freq"
BUFFERS = (ROTARY, "attention.alibi_embed.slopes")
"""Numbers that follow from the settings."""


@dataclass
class Tensors:
    """What the files of a checkpoint hold. `places` has a part of each tensor for each rank, in their order."""

    folder: Path
    paths: list[Path]
    tp: int
    places: dict[Key, tuple[Stored, ...]]
    buffers: dict[Key, Stored]
    generation: Literal[1, 2, 3]
    blocks: range = range(0)
    about: dict[str, Any] = field(default_factory=dict)  # what an mp_rank file says beside tensors
    optimizer: bool = False  # an mp_rank file holds an optimizer's state
    embed: int = 0
    norm: int = 0
    head: int | None = None
    pipelined: bool = False  # in files for each layer

    def block(self, name: str) -> tuple[Stored, ...]:
        """A tensor of the first block; empty when it has none."""
        return self.places.get((self.blocks[0], name), ())

    @property
    def bytes(self) -> int:
        """Of all parts."""
        return sum(part.bytes for parts in self.places.values() for part in parts)


def read_tensors(folder: Path) -> Tensors:
    """The places of all tensors of a checkpoint. Raises CheckpointError or ConversionError, naming file or tensor."""
    names = sorted(path.name for path in folder.iterdir())
    ranks = {int(match[1]): folder / name for name in names if (match := RANK.fullmatch(name))}
    layers = {(int(m[1]), int(m[2])): folder / name for name in names if (m := LAYER.fullmatch(name))}
    if not ranks and not layers:
        raise ConversionError(
            f"{folder}: the weights are cut by ZeRO stage 3",
            "join them with the zero_to_fp32.py beside it, or save with stage 1",
        )
    about = _mapping(ranks[0]) if 0 in ranks else {}
    if layers:
        tp, raw = _of_layers(folder, layers)
        files = list(layers.values())
    else:
        tp, raw = _of_ranks(folder, ranks, about)
        files = list(ranks.values())
    found = _sorted_out(folder, raw, tp, files)
    found.pipelined = bool(layers)
    found.about = {key: value for key, value in about.items() if key not in ("module", "optimizer")}
    found.optimizer = bool(about.get("optimizer"))
    _number(found)
    return found


def _mapping(file: Path) -> dict[str, Any]:
    held = read_objects(file)
    if not isinstance(held, dict):
        raise CheckpointError(f"{file}: holds no mapping of names to tensors", "choose a gpt-neox checkpoint")
    return held


Raw = dict[Key, dict[int, tuple[Stored, Path]]]


def _of_layers(folder: Path, layers: dict[tuple[int, int], Path]) -> tuple[int, Raw]:
    """Files for each layer and rank. Pipeline stages do not show in them."""
    tp = 1 + max(rank for _, rank in layers)
    raw: Raw = {}
    for layer in sorted({layer for layer, _ in layers}):
        for rank in range(tp):
            if (layer, rank) not in layers:
                raise CheckpointError(
                    f"{folder}: layer_{layer:02d}-model_{rank:02d}-model_states.pt is missing", "fetch it again"
                )
            file = layers[layer, rank]
            _add(raw, rank, file, ((layer, name, value) for name, value in _mapping(file).items()))
    return tp, raw


def _of_ranks(folder: Path, ranks: dict[int, Path], about: dict[str, Any]) -> tuple[int, Raw]:
    """Files for each rank, without pipeline stages: names are sequential.LAYER.NAME."""
    tp, stated = 1 + max(ranks), about.get("mp_world_size")
    if missing := [rank for rank in range(tp) if rank not in ranks]:
        raise CheckpointError(f"{folder}: mp_rank_{missing[0]:02d}_model_states.pt is missing", "fetch it again")
    raw: Raw = {}
    for rank, file in ranks.items():
        module = (about if rank == 0 else _mapping(file)).get("module")
        if not isinstance(module, dict) or not module:
            raise CheckpointError(f"{file}: holds no weights, and there are no layer_*.pt", "fetch the missing files")
        _add(raw, rank, file, (_split(file, name, value) for name, value in module.items()))
    if isinstance(stated, int) and stated != tp:
        raise CheckpointError(
            f"{folder}: {tp} files of ranks, but mp_rank_00_model_states.pt says {stated}", "fetch the missing files"
        )
    return tp, raw


def _split(file: Path, name: object, value: object) -> tuple[int, object, object]:
    match = re.fullmatch(r"sequential\.(\d{1,6})\.(.+)", name) if isinstance(name, str) else None
    if match is None:
        raise ConversionError(f"{file}: the tensor {name!r} is not one of gpt-neox", "choose a gpt-neox checkpoint")
    return int(match[1]), match[2], value


def _add(raw: Raw, rank: int, file: Path, items: Iterator[tuple[int, object, object]]) -> None:
    for layer, name, value in items:
        if not isinstance(name, str):
            raise CheckpointError(f"{file}: {name!r} is no name of a tensor", "fetch it again")
        for pattern, what in UNSUPPORTED:
            if re.search(pattern, name):
                raise ConversionError(f"{file}: the tensor {name!r} is of {what}", "neoxkit does not compute these")
        if not isinstance(value, Stored):
            raise CheckpointError(f"{file}: {name!r} is no tensor", "fetch it again")
        raw.setdefault((layer, name), {})[rank] = value, file


def _sorted_out(folder: Path, raw: Raw, tp: int, files: list[Path]) -> Tensors:
    """The same parts on all ranks, buffers apart, names of the newest generation."""
    names = {name for _, name in raw}
    old = any(name.startswith("mlp.dense_h_to_4h.") for name in names)
    llama = "mlp.w1.weight" in names
    if old + llama + any(name.startswith("mlp.linear1.") for name in names) > 1:
        raise ConversionError(f"{folder}: layers of two generations of names", "remove the files that do not belong")
    found = Tensors(folder, files, tp, {}, {}, 1 if old else 2 if llama else 3)
    for (layer, name), parts in raw.items():
        first, file = parts.get(0, next(iter(parts.values())))
        for rank in range(tp):
            if rank not in parts:
                raise CheckpointError(f"{file}: rank {rank} has no {name!r} of layer {layer}", "fetch it again")
            other, at = parts[rank]
            if (other.shape, other.dtype) != (first.shape, first.dtype):
                kinds = f"{list(other.shape)} {other.dtype}, on rank 0 {list(first.shape)} {first.dtype}"
                raise CheckpointError(f"{at}: {name!r} is {kinds}", "fetch it again")
        if name in BUFFERS:
            found.buffers[layer, name] = first
            continue
        found.places[layer, newest_name(name)] = tuple(parts[rank][0] for rank in range(tp))
    return found


def newest_name(name: str) -> str:
    """What the newest generation calls a tensor of the first."""
    for before, after in RENAMED:
        name = name.replace(before, after)
    return name


def _number(found: Tensors) -> None:
    """Find out which layer is which. Raises CheckpointError when one is missing."""
    folder, names = found.folder, found.places
    blocks = sorted({layer for layer, name in names if name.startswith(("attention.", "mlp.", "input_layernorm."))})
    embed = [layer for layer, name in names if name == "word_embeddings.weight"]
    norm = sorted({layer for layer, name in names if name.startswith("norm.")})
    head = [layer for layer, name in names if name == "final_linear.weight"]
    for what, layers in (("block", blocks), ("word_embeddings.weight", embed), ("final norm", norm)):
        if not layers:
            raise CheckpointError(f"{folder}: no {what} among the tensors", "fetch the missing files")
    expected = [embed[0], *range(embed[0] + 2, embed[0] + 2 + len(blocks)), embed[0] + len(blocks) + 3]
    if len(embed) > 1 or len(norm) > 1 or [embed[0], *blocks, *norm] != expected:
        here = {embed[0], *blocks, *norm}
        gaps = [layer for layer in range(embed[0] + 2, blocks[-1]) if layer not in here]
        missing = f"layer {gaps[0]} is missing" if gaps else f"layers {sorted(here)} are not those of one model"
        raise CheckpointError(f"{folder}: {missing}", "fetch the missing files")
    if head and head != [norm[0] + 1]:
        raise CheckpointError(f"{folder}: layer {head[0]} holds the head, not {norm[0] + 1}", "fetch it again")
    found.embed, found.norm, found.head = embed[0], norm[0], head[0] if head else None
    found.blocks = range(blocks[0], blocks[-1] + 1)

"""Checkpoints of gpt-neox for tests: those that it wrote itself, and those made of them by moving tensors."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from neoxkit.checkpoint import Source
from neoxkit.convert.load import load_decoder

ARCHIVE = Path(__file__).parent / "fixtures" / "neox" / "oracles.tar.xz"
DEEPSPEED = ARCHIVE.with_name("deepspeed.tar.xz")
ORACLES = ("neox_tp1pp0", "neox_tp2pp1", "seqres_tp2pp1", "llama_mha_tp2pp1", "llama_gqa_tp1pp1", "learned_tied_tp1pp1")
STEP = "global_step6"

Layers = dict[tuple[int, int], dict[str, Tensor]]
"""Tensors by name, for each layer and rank."""


def unpack(folder: Path, archived: Path = ARCHIVE) -> Path:
    """Put the checkpoints into a folder."""
    with tarfile.open(archived) as archive:
        for member in archive:
            content = archive.extractfile(member)
            assert content is not None
            path = folder / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.read())
    return folder


def logits_error(source: Source, oracle: Path) -> float:
    """The greatest difference between the logits of our decoder and those of gpt-neox."""
    ids, wanted = (torch.from_numpy(np.load(oracle / name)) for name in ("input_ids.npy", "ref_logits.npy"))
    with torch.inference_mode():
        return float((load_decoder(source, torch.float32)(ids) - wanted).abs().max())


def read_layers(oracle: Path) -> Layers:
    """What the layer files of a checkpoint hold."""
    found: Layers = {}
    for path in sorted((oracle / STEP).glob("layer_*.pt")):
        found[int(path.name[6:8]), int(path.name[15:17])] = torch.load(path)
    return found


def settings(oracle: Path, **changes: Any) -> dict[str, Any]:
    """The settings of a checkpoint, some changed; `...` takes one away."""
    given = {**yaml.safe_load((oracle / STEP / "configs" / "config.yml").read_text()), **changes}
    return {key: value for key, value in given.items() if value is not ...}


def write(
    folder: Path,
    layers: Layers,
    options: dict[str, Any],
    ranks: Iterable[dict[str, Any]] = (),
    save: Callable[[Any, Path], Any] = torch.save,
) -> Path:
    """A checkpoint of these layers, in a file for each, with `ranks` as the files of ranks."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "config.yml").write_text(yaml.safe_dump(options))
    for (layer, rank), tensors in layers.items():
        save(tensors, folder / f"layer_{layer:02d}-model_{rank:02d}-model_states.pt")
    for rank, held in enumerate(ranks):
        save(held, folder / f"mp_rank_{rank:02d}_model_states.pt")
    return folder


def sequential(layers: Layers, rank: int) -> dict[str, Any]:
    """The file of a rank without pipeline stages."""
    module = {
        f"sequential.{layer}.{name}": tensor
        for (layer, at), tensors in layers.items()
        if at == rank
        for name, tensor in tensors.items()
    }
    return {"module": module, "mp_world_size": 1 + max(at for _, at in layers), "dp_world_size": 1}


def first_names(layers: Layers) -> Layers:
    """The same tensors under the names of before 2024-09-07, with the rotary frequencies that were saved then."""
    renamed: Layers = {}
    for at, tensors in layers.items():
        renamed[at] = {
            name.replace("linear1", "dense_h_to_4h").replace("linear2", "dense_4h_to_h"): tensor
            for name, tensor in tensors.items()
        }
        if any(name.startswith("attention") for name in tensors):
            renamed[at]["attention.rotary_emb.inv_freq"] = 10000 ** -(torch.arange(0, 4, 2) / 4)
    return renamed


def llama_names(layers: Layers) -> Layers:
    """The same gated MLPs as w1 (gate), w3 (up) and w2 (down)."""
    renamed: Layers = {}
    for at, tensors in layers.items():
        renamed[at] = {name: tensor for name, tensor in tensors.items() if not name.startswith("mlp.")}
        if "mlp.linear1.weight" in tensors:
            up, gate = tensors["mlp.linear1.weight"].chunk(2)
            renamed[at] |= {"mlp.w1.weight": gate.clone(), "mlp.w3.weight": up.clone()}
            renamed[at]["mlp.w2.weight"] = tensors["mlp.linear2.weight"]
    return renamed


def per_head(layers: Layers, heads: int = 4, kv_heads: int = 2, size: int = 16) -> Layers:
    """Query, key and value as gpt-neox fused them before 2024-11-14, from [Q | K | V]."""
    share = size * kv_heads // heads
    moved: Layers = {}
    for at, tensors in layers.items():
        moved[at] = dict(tensors)
        if (name := "attention.query_key_value.weight") in tensors:
            q, k, v = tensors[name].split([heads * size, kv_heads * size, kv_heads * size])
            parts = (q.view(heads, size, -1), k.reshape(heads, share, -1), v.reshape(heads, share, -1))
            moved[at][name] = torch.cat(parts, dim=1).reshape(tensors[name].shape).contiguous()
    return moved

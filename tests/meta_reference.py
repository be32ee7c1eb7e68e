"""Meta's reference model in plain torch, and its files made of a transformers model: no code of neoxkit.

The forward pass, the rotation of complex numbers and the scaling are those that Meta and Mistral
publish (llama-models: models/llama3/model.py; mistral-inference: transformer_layers.py, rope.py).
The permutation of rows is spelled by index.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Scaling:
    """Llama 3.1's: the three constants stand in Meta's program."""

    factor: float
    low: float = 1.0
    high: float = 4.0
    original: int = 8192


def pairs_apart(heads: int, rows: int) -> Tensor:
    """For each row of transformers' layout, Meta's row that holds it: row j of half p of a head is row 2 j + p."""
    half = rows // heads // 2
    return torch.tensor([h * 2 * half + 2 * j + p for h in range(heads) for p in range(2) for j in range(half)])


def permute(weight: Tensor, heads: int) -> Tensor:
    """Meta's rows to transformers'."""
    return weight[pairs_apart(heads, len(weight))]


def unpermute(weight: Tensor, heads: int) -> Tensor:
    """Transformers' rows to Meta's."""
    found = torch.empty_like(weight)
    found[pairs_apart(heads, len(weight))] = weight
    return found


def meta_tensors(model: Any) -> Tensors:
    """The whole tensors of a transformers Llama or Mistral, as Meta names and lays them out."""
    theirs, config = model.state_dict(), model.config
    found = {
        "tok_embeddings.weight": theirs["model.embed_tokens.weight"],
        "norm.weight": theirs["model.norm.weight"],
        "output.weight": theirs["lm_head.weight"],
    }
    names = {
        "attention.wv": "self_attn.v_proj",
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}."
        for ours, other in names.items():
            found[f"layers.{i}.{ours}.weight"] = theirs[f"{layer}{other}.weight"]
        for part, heads in (("q", config.num_attention_heads), ("k", config.num_key_value_heads)):
            weight = theirs[f"{layer}self_attn.{part}_proj.weight"]
            found[f"layers.{i}.attention.w{part}.weight"] = unpermute(weight, heads)
    return {key: value.detach().clone() for key, value in found.items()}


def divided(tensors: Tensors, shards: int, embedding: int) -> list[Tensors]:
    """Model-parallel shards, as fairscale's layers hold them; the embedding is divided on this dimension."""
    dims = {"wq": 0, "wk": 0, "wv": 0, "wo": 1, "w1": 0, "w2": 1, "w3": 0, "output": 0, "tok_embeddings": embedding}
    found: list[Tensors] = [{} for _ in range(shards)]
    for key, value in tensors.items():
        dim = dims.get(key.split(".")[-2])
        parts = [value] * shards if dim is None else value.chunk(shards, dim)
        for shard, part in zip(found, parts, strict=True):
            shard[key] = part.clone()
    return found


def write_meta(folder: Path, tensors: Tensors, params: dict[str, Any], shards: int = 1, embedding: int = 1) -> Path:
    """consolidated.NN.pth and params.json."""
    folder.mkdir(parents=True)
    half = params["dim"] // params["n_heads"] // 2
    for rank, shard in enumerate(divided(tensors, shards, embedding)):
        buffer = {"rope.freqs": torch.arange(half).float()}  # Llama 1 and 2 files hold it
        torch.save({**shard, **buffer}, folder / f"consolidated.{rank:02}.pth")
    (folder / "params.json").write_text(json.dumps(params))
    return folder


def scaled(freqs: Tensor, scaling: Scaling) -> Tensor:
    """`apply_scaling` of Meta's model.py."""
    found = []
    for freq in freqs.tolist():
        length = 2 * math.pi / freq
        if length < scaling.original / scaling.high:
            found.append(freq)
        elif length > scaling.original / scaling.low:
            found.append(freq / scaling.factor)
        else:
            smooth = (scaling.original / length - scaling.low) / (scaling.high - scaling.low)
            found.append((1 - smooth) * freq / scaling.factor + smooth * freq)
    return torch.tensor(found)


def rotations(head_dim: int, theta: float, length: int, scaling: Scaling | None) -> Tensor:
    """`precompute_freqs_cis`: complex [length, head_dim / 2]."""
    freqs = 1.0 / (theta ** (torch.arange(0, head_dim, 2)[: head_dim // 2].float() / head_dim))
    freqs = scaled(freqs, scaling) if scaling else freqs
    angles = torch.outer(torch.arange(length).float(), freqs)
    return torch.polar(torch.ones_like(angles), angles)


def rotated(value: Tensor, by: Tensor) -> Tensor:
    """`apply_rotary_emb`: neighbours are one complex number. value: [tokens, heads, head_dim]."""
    pairs = torch.view_as_complex(value.float().reshape(*value.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * by[:, None]).flatten(2)


def normed(value: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm."""
    return value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + eps) * weight


@torch.no_grad()
def logits(tensors: Tensors, params: dict[str, Any], ids: Tensor, scaling: Scaling | None = None) -> Tensor:
    """The reference model's logits [tokens, vocab] of ids [tokens], by Meta's whole tensors."""
    heads, kv_heads = params["n_heads"], params.get("n_kv_heads") or params["n_heads"]
    head_dim = params.get("head_dim") or params["dim"] // heads
    eps, window, length = params["norm_eps"], params.get("sliding_window"), len(ids)
    by = rotations(head_dim, params.get("rope_theta", 10000.0), length, scaling)
    distance = torch.arange(length)[:, None] - torch.arange(length)
    seen = (distance >= 0) & (distance < (window or length))
    mask = torch.zeros(length, length).masked_fill(~seen, float("-inf"))
    h = tensors["tok_embeddings.weight"][ids]
    for i in range(params["n_layers"]):
        w = {key.removeprefix(f"layers.{i}."): value for key, value in tensors.items()}
        x = normed(h, w["attention_norm.weight"], eps)
        q = rotated((x @ w["attention.wq.weight"].T).view(length, heads, head_dim), by)
        k = rotated((x @ w["attention.wk.weight"].T).view(length, kv_heads, head_dim), by)
        v = (x @ w["attention.wv.weight"].T).view(length, kv_heads, head_dim)
        k, v = (each.repeat_interleave(heads // kv_heads, dim=1) for each in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(head_dim) + mask
        mixed = torch.einsum("hqk,khd->qhd", torch.softmax(scores, dim=-1), v).reshape(length, -1)
        h = h + mixed @ w["attention.wo.weight"].T
        x = normed(h, w["ffn_norm.weight"], eps)
        gate = torch.nn.functional.silu(x @ w["feed_forward.w1.weight"].T)
        h = h + (gate * (x @ w["feed_forward.w3.weight"].T)) @ w["feed_forward.w2.weight"].T
    return normed(h, tensors["norm.weight"], eps) @ tensors["output.weight"].T

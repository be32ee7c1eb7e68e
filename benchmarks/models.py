"""Large random models on disk, written a block at a time. For the scripts beside this."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from measuring import flush

from neoxkit.checkpoint.checksum import crc64nvme
from neoxkit.checkpoint.safetensors_file import build_header, read_header
from neoxkit.families import FAMILIES
from neoxkit.families.schema import expand
from neoxkit.families.spelling import read_config
from neoxkit.nn.decoder import specs

SHARD = 2_000_000_000
BLOCK = 16 << 20


def model_config(family: str, billions: float) -> Any:
    """A transformers configuration of about so many parameters: the layers of a 1B model, or half as wide."""
    import transformers

    width = 2048 if billions >= 1 else 1024
    sizes = {"hidden_size": width, "num_attention_heads": width // 128, "max_position_embeddings": 2048}
    vocab = 50304 if family == "gpt_neox" else 32000
    if family == "gpt_neox":
        layer = 12 * width * width
        kind, rest = transformers.GPTNeoXConfig, {"intermediate_size": 4 * width}
    else:
        layer = (2 * width + 2 * width // 4) * width + 3 * (11 * width // 4) * width
        kind, rest = (
            transformers.LlamaConfig,
            {"intermediate_size": 11 * width // 4, "num_key_value_heads": width // 512},
        )
    depth = max(1, round((billions * 1e9 - 2 * vocab * width) / layer))
    return kind(**sizes, **rest, vocab_size=vocab, num_hidden_layers=depth, dtype="bfloat16")


def make_tiny(folder: Path, family: str) -> None:
    """A model that takes no time: what remains is starting up."""
    import transformers

    sizes = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "num_hidden_layers": 2}
    kind = transformers.GPTNeoXConfig if family == "gpt_neox" else transformers.LlamaConfig
    config = kind(**sizes, vocab_size=256, max_position_embeddings=64, dtype="bfloat16")
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def theirs(family: str, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a model's files and their shapes. (In memory, transformers 5 calls some of them otherwise.)"""
    import torch

    ours = read_config(FAMILIES[family], config)
    known = specs(ours)
    found: dict[str, tuple[int, ...]] = {}
    for rule in expand(FAMILIES[family], ours):
        parts = [torch.empty(known[name].shape, device="meta") for name in rule.ours]
        found |= {key: tuple(t.shape) for key, t in zip(rule.theirs, rule.layout.join(parts), strict=True)}
    return found


def make(folder: Path, family: str, billions: float) -> int:
    """Write a random model, a block at a time; returns its parameters."""
    config = model_config(family, billions)
    config.architectures = [FAMILIES[family].architecture]
    config.save_pretrained(folder)
    shapes = theirs(family, config.to_dict())
    shards: list[dict[str, tuple[str, tuple[int, ...]]]] = [{}]
    size = 0
    for key, shape in shapes.items():
        bytes_ = 2 * int(np.prod(shape))
        if size and size + bytes_ > SHARD:
            shards.append({})
            size = 0
        shards[-1][key] = "BF16", shape
        size += bytes_
    names = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    seed = np.random.default_rng(0)
    for name, tensors in zip(names, shards, strict=True):
        head, header = build_header(tensors, {"format": "pt"})
        with (folder / name).open("wb") as file:
            file.write(head)
            left = header.size - len(head)
            while left:
                bits = seed.integers(0, 1 << 16, min(left, BLOCK) // 2, np.uint16)
                file.write((bits & 0x80FF) | 0x3C00)  # either sign, 2^-7 to 2^-5
                left -= 2 * len(bits)
    places = {key: name for name, tensors in zip(names, shards, strict=True) for key in tensors}
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    index = {"metadata": {"total_size": 2 * count}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    flush(folder)
    return count


def same(one: Path, other: Path) -> bool:
    """Whether two models hold the same tensors, bit for bit."""
    return sums(one) == sums(other)


def sums(folder: Path) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """Dtype, shape and checksum of each tensor of a model."""
    found = {}
    for path in folder.glob("*.safetensors"):
        data = np.memmap(path, mode="r", dtype=np.uint8)
        for key, entry in read_header(path).entries.items():
            found[key] = entry.dtype, entry.shape, crc64nvme(data[entry.first : entry.last])
    return found

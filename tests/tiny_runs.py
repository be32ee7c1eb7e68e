"""Tiny runs for the tests of training: configurations of each family, tokens on disk, twins elsewhere."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neoxkit.config.load import load_tree, validate
from neoxkit.config.run import RunConfig
from neoxkit.data.tokens.indexed import IndexedWriter

VOCAB = 61

MODELS: dict[str, dict[str, Any]] = {
    "gpt_neox": {"residual": "parallel", "position": {"kind": "rotary", "fraction": 0.25}, "mixer": {"heads": 2}},
    "llama": {
        "tied": True,
        "norm": {"kind": "rms"},
        "mixer": {"heads": 4, "kv_heads": 2, "bias": False, "out_bias": False},
        "mlp": {"hidden": 24, "gated": True, "activation": "silu", "bias": False},
    },
    "mistral": {
        "norm": {"kind": "rms"},
        "mixer": {"heads": 4, "kv_heads": 2, "bias": False, "out_bias": False, "window": 5},
        "mlp": {"hidden": 24, "gated": True, "activation": "silu", "bias": False},
    },
}


def tree(family: str, folder: Path, **options: Any) -> dict[str, Any]:
    """The options of a tiny run whose tokens are in `folder`; keywords replace top-level options."""
    return {
        "model": {"family": family, "depth": 2, "width": 16, "vocab": VOCAB, "context": 12, **deepcopy(MODELS[family])},
        "data": {"train": str(folder / "tokens"), "valid": str(folder / "held-out")},
        "batch": {"size": 4, "micro": 2},
        "optimizer": {"lr": 0.01},
        "schedule": {"warmup_steps": 1, "min_lr": 1e-3},
        "steps": 6,
        "clip": 0.5,
        "precision": "fp32",
        "device": "cpu",
        "threads": 1,
        "save": {"folder": str(folder / "run")},
        "logging": {"every": 1},
        **options,
    }


def config(family: str = "gpt_neox", folder: Path = Path("/nowhere"), *overrides: str, **options: Any) -> RunConfig:
    """A tiny run, with overrides as `--set` takes them."""
    found = load_tree([], overrides)
    given = load_tree([])
    given.values, given.origins = tree(family, folder, **options), {(): "test"}
    given.merge(found) if overrides else None
    return validate(given)


def write_tokens(folder: Path, documents: int = 40, seed: int = 0) -> None:
    """Training and held-out tokens: documents of 5 to 30 tokens in which the next token is often last + 1."""
    generator = np.random.default_rng(seed)
    for name, count in (("tokens", documents), ("held-out", 6)):
        with IndexedWriter(folder / name, vocab=VOCAB) as writer:
            for _ in range(count):
                size = int(generator.integers(5, 30))
                writer.add((int(generator.integers(VOCAB)) + np.arange(size)) % VOCAB)
            writer.commit()


def batch(rows: int, seed: int, length: int = 12, masked: bool = False) -> Any:
    """A random batch; with `masked`, one whose rows differ in how many tokens count."""
    from neoxkit.data.rows.batch import Batch

    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCAB, (rows, length + 1), generator=generator)
    mask = torch.rand(rows, length, generator=generator) < torch.linspace(0.2, 1, rows)[:, None] if masked else None
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), mask)


def packed(rows: int, seed: int, length: int = 12, masked: bool = False) -> Any:
    """The same, of documents of 1 to 7 tokens that attention stays within."""
    from neoxkit.data.rows.batch import positions_of

    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 8, (rows, length), generator=generator)
    segments = torch.stack([torch.arange(length).repeat_interleave(each)[:length] for each in sizes]).int()
    return replace(batch(rows, seed, length, masked), segments=segments, positions=positions_of(segments))


def alone(given: Any) -> list[Any]:
    """The documents of a batch, each in a row of its own: what a batch of several must equal."""
    from neoxkit.data.rows.batch import Batch

    found = []
    for row in range(len(given.ids)):
        ends = [0, *(given.segments[row].diff().nonzero().flatten() + 1).tolist(), given.ids.shape[1]]
        for here in (slice(*each) for each in pairwise(ends)):
            mask = None if given.mask is None else given.mask[row : row + 1, here]
            found.append(Batch(given.ids[row : row + 1, here], given.labels[row : row + 1, here], mask))
    return found

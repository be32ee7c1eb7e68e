"""Initial values, chosen by a tensor's role and drawn from (seed, logical name) alone.

So the same seed gives the same model however it is cut over processes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from neoxkit.config.model import ModelConfig
from neoxkit.config.optimizer import Init
from neoxkit.nn.decoder import pieces
from neoxkit.spec import Box, Role, TensorSpec


def deviations(config: ModelConfig, init: Init) -> dict[Role, float]:
    """The standard deviation that tensors of each drawn role have.

    small: sqrt(2 / (5 width)) (arXiv 1910.05895). scaled: std / sqrt(2 depth) (GPT-2). wang:
    2 / (depth sqrt(width)) (mesh-transformer-jax, GPT-NeoX-20B).
    """
    known = {
        "normal": init.std,
        "small": math.sqrt(2 / (5 * config.width)),
        "scaled": init.std / math.sqrt(2 * config.depth),
        "wang": 2 / (config.depth * math.sqrt(config.width)),
    }
    weights = known[init.weights]
    return {Role.MATRIX: weights, Role.EMBED: weights, Role.HEAD: weights, Role.OUTPUT: known[init.output]}


def initial(spec: TensorSpec, seed: int, std: dict[Role, float]) -> Tensor:
    """The whole initial value of a logical tensor, fp32: norms 1, biases 0, the rest normal."""
    if spec.role is Role.NORM:
        return torch.ones(spec.shape)
    if spec.role is Role.BIAS:
        return torch.zeros(spec.shape)
    digest = hashlib.sha256(f"{seed}/{spec.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return torch.empty(spec.shape).normal_(0.0, std[spec.role], generator=generator)


def initialise(model: nn.Module, config: ModelConfig, init: Init, seed: int) -> None:
    """Fill a decoder's parameters in place, whatever their dtype and device."""
    fill(pieces(model), config, init, seed)


def fill(held: Iterable[tuple[TensorSpec, Box, Tensor]], config: ModelConfig, init: Init, seed: int) -> None:
    """Fill boxes of a decoder's logical tensors in place: its weights, or the masters of an optimiser."""
    std = deviations(config, init)
    for spec, box, value in held:
        drawn = initial(spec, seed, std)
        value.copy_(drawn[tuple(slice(start, stop) for start, stop in box)])

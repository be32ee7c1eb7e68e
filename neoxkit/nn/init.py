"""Initial values, chosen by a tensor's role and drawn from (seed, logical name) alone.

So the same seed gives the same model however it is cut over processes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from neoxkit.config.model import ModelConfig
from neoxkit.config.optimizer import Init, Mup
from neoxkit.nn.decoder import pieces
from neoxkit.nn.mup import factors
from neoxkit.spec import Box, Role, TensorSpec, extent, overlap, relative, rows, whole

BLOCK = 2**22
"""Elements that are drawn at once. A process draws those blocks of a tensor's rows which its own rows lie in."""


class Method(NamedTuple):
    """How a tensor is drawn: normal of a deviation, uniform up to a bound, or orthogonal times a factor."""

    kind: str
    size: float


def method_of(name: str, shape: tuple[int, ...], config: ModelConfig, std: float) -> Method:
    """How gpt-neox draws a matrix of this shape [out, in] by an initialiser of this name.

    small: sqrt(2 / (5 width)) (arXiv 1910.05895). scaled: std / sqrt(2 depth) (GPT-2). wang:
    2 / (depth sqrt(width)) (mesh-transformer-jax, GPT-NeoX-20B). xavier: of deviation
    sqrt(2 / (in + out)) (Glorot and Bengio, 2010). orthogonal: arXiv 1312.6120.
    """
    if name.startswith("xavier"):
        deviation = math.sqrt(2 / sum(shape))
        normal = name == "xavier_normal"
        return Method("normal", deviation) if normal else Method("uniform", math.sqrt(3) * deviation)
    if name in ("orthogonal", "scaled_orthogonal"):
        return Method("orthogonal", 1.0 if name == "orthogonal" else math.sqrt(2 / config.depth))
    deviations = {
        "normal": std,
        "small": math.sqrt(2 / (5 * config.width)),
        "scaled": std / math.sqrt(2 * config.depth),
        "single_residual": std / math.sqrt(config.depth),
        "wang": 2 / (config.depth * math.sqrt(config.width)),
    }
    return Method("normal", deviations[name])


Draw = Callable[[TensorSpec], Method]


def drawing(config: ModelConfig, init: Init, mup: Mup | None = None) -> Draw:
    """How each tensor of a model is drawn that is no norm and no bias. With muP: as at the base width, then scaled."""
    base = config if mup is None else config.model_copy(update={"width": mup.base_width})

    def draw(spec: TensorSpec) -> Method:
        method = method_of(init.output if spec.role is Role.OUTPUT else init.weights, spec.shape, base, init.std)
        return method if mup is None else method._replace(size=method.size * factors(spec, config, mup)[0])

    return draw


def initial(spec: TensorSpec, seed: int, draw: Draw, box: Box | None = None) -> Tensor:
    """A box (None: all) of the initial value of a logical tensor, fp32: norms 1, biases 0, the rest drawn."""
    here = whole(spec.shape) if box is None else box
    if spec.role is Role.NORM:
        return torch.ones(extent(here))
    if spec.role is Role.BIAS:
        return torch.zeros(extent(here))
    method, found = draw(spec), torch.empty(extent(here))
    if method.kind == "orthogonal":  # no part of it is known without the rest
        drawn = nn.init.orthogonal_(torch.empty(spec.shape), method.size, generator=_generator(seed, spec.name))
        return found.copy_(drawn[_slices(here)])
    for number, block in enumerate(rows(whole(spec.shape), BLOCK)):
        if (common := overlap(block, here)) is None:
            continue
        generator = _generator(seed, f"{spec.name}/{number}" if number else spec.name)
        drawn = torch.empty(extent(block))
        if method.kind == "normal":
            drawn.normal_(0.0, method.size, generator=generator)
        else:
            assert method.kind == "uniform", method.kind
            drawn.uniform_(-method.size, method.size, generator=generator)
        found[_slices(relative(common, here))] = drawn[_slices(relative(common, block))]
    return found


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def _slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in box)


def initialise(model: nn.Module, config: ModelConfig, init: Init, seed: int, mup: Mup | None = None) -> None:
    """Fill a decoder's parameters in place, whatever their dtype and device."""
    fill(pieces(model), config, init, seed, mup)


def fill(
    held: Iterable[tuple[TensorSpec, Box, Tensor]], config: ModelConfig, init: Init, seed: int, mup: Mup | None = None
) -> None:
    """Fill boxes of a decoder's logical tensors in place: its weights, or the masters of an optimiser."""
    draw = drawing(config, init, mup)
    for spec, box, value in held:
        value.copy_(initial(spec, seed, draw, box))

"""The decoder as a row of layers, each from one tensor to one tensor, and where a pipeline is best cut.

What passes from layer to layer is the stream alone. What attention needs besides follows from its shape and from where
documents begin, which each stage is told: nothing else is sent.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import inf
from typing import Any

from torch import Tensor, nn

from neoxkit.config.kernels import DEFAULT, Kernels
from neoxkit.config.model import Learned, ModelConfig
from neoxkit.config.parallel import Recompute
from neoxkit.errors import ConfigError
from neoxkit.nn.attention import Context, build_context
from neoxkit.nn.block import build_block
from neoxkit.nn.compiling import compile_layers
from neoxkit.nn.decoder import specs
from neoxkit.nn.norm import build_norm
from neoxkit.nn.recompute import recompute
from neoxkit.parallel.division import Division
from neoxkit.parallel.layers import Embed, Head
from neoxkit.spec import volume, whole


@dataclass(frozen=True)
class Layer:
    """A layer that is not built yet, and what it costs: multiplications of a token.

    A `tied` one holds the embedding's weight; at the end of the model it is there for its weight alone.
    """

    kind: type[nn.Module]
    arguments: tuple[Any, ...]
    cost: float = 0.0
    tied: bool = False
    block: bool = False


class Contexts:
    """What the attention of a stage's layers shares: made once for each length, and for each pass with documents."""

    def __init__(self, config: ModelConfig, division: Division, kernels: Kernels) -> None:
        self.config, self.division, self.kernels = config, division, kernels
        self._given: tuple[Tensor | None, Tensor | None] = (None, None)
        self._key: tuple[object, ...] = ()
        self._made: Context | None = None

    def begin(self, positions: Tensor | None, segments: Tensor | None) -> None:
        """Say of the next pass what `Decoder.hidden` is told: [B, T] of whole rows, or None."""
        if positions is not self._given[0] or segments is not self._given[1]:
            self._made = None
        self._given = positions, segments

    def tokens(self, stream: Tensor) -> int:
        """T, of which a divided stream has only this rank's part."""
        return stream.shape[1] * (self.division.groups.mesh.tp if self.division.stream else 1)

    def positions(self, stream: Tensor) -> Tensor:
        """Those of its tokens, [B or 1, T]."""
        given = self._given[0]
        return self.division.positions(self.tokens(stream), stream.device) if given is None else given

    def of(self, stream: Tensor) -> Context:
        """The context of a stream [B, T, width]."""
        key = self.tokens(stream), len(stream), stream.dtype, stream.device
        if self._made is None or key != self._key:
            positions, segments = self.positions(stream), self._given[1]
            self._made = build_context(self.config, stream, positions, segments, None, self.division, self.kernels)
            self._key = key
        return self._made


class Entry(nn.Module):
    """What is done to embeddings before the first layer: learned positions, a norm."""

    def __init__(self, config: ModelConfig, division: Division, contexts: Contexts) -> None:
        super().__init__()
        learned = isinstance(config.position, Learned)
        self.position = Embed("position", config.context, config.width, False, division) if learned else None
        self.norm = build_norm(config.norm, "embed.norm", config.width, division) if config.embed_norm else None
        self.share, self.contexts = division.share, contexts

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] -> [B, T, width]."""
        if self.position is not None:
            x = x + self.position(self.share(self.contexts.positions(x)))
        return x if self.norm is None else self.norm(x)


class Middle(nn.Module):
    """One layer of the decoder."""

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        division: Division,
        contexts: Contexts,
        options: Recompute,
        compiled: bool,
    ) -> None:
        super().__init__()
        self.block = build_block(config, layer, division)
        self.contexts = contexts
        compile_layers([self.block], compiled)
        recompute([(layer, self.block)], options)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] -> [B, T, width]."""
        found: Tensor = self.block(x, self.contexts.of(x))
        return found


class Exit(nn.Module):
    """The final norm, and the whole stream."""

    def __init__(self, config: ModelConfig, division: Division) -> None:
        super().__init__()
        self.norm = build_norm(config.norm, "norm", config.width, division)
        self.whole = division.whole

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] -> [B, T, width]."""
        return self.whole(self.norm(x))


class Ending(nn.Module):
    """Holds the head, by which a loss is taken from the stream: it says no logits itself."""

    def __init__(self, config: ModelConfig, division: Division) -> None:
        super().__init__()
        self.head = Head("head", config.vocab, config.width, None, division)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width], as it is."""
        return x


def layers(
    config: ModelConfig,
    division: Division,
    options: Recompute,
    sequence: int,
    kernels: Kernels = DEFAULT,
    contexts: Contexts | None = None,
) -> list[Layer]:
    """The layers of a decoder in the order of the forward pass, with their costs at `sequence` tokens.

    Costs are those of the matrices and of causal attention. A block on the way back is twice that on the way
    forward, and is run forward once more where it is recomputed. `contexts` are asked by the layers of a stage.
    """
    contexts = contexts or Contexts(config, division, kernels)
    sizes = {name: volume(whole(spec.shape)) for name, spec in specs(config).items() if len(spec.shape) == 2}
    attention = sequence * config.mixer.heads * config.mixer.head_dim
    found = [Layer(Embed, ("embed", config.vocab, config.width, True, division), tied=config.tied)]
    if isinstance(config.position, Learned) or config.embed_norm:
        found.append(Layer(Entry, (config, division, contexts)))
    for layer in range(config.depth):
        cost = attention + sum(size for name, size in sizes.items() if name.startswith(f"layers.{layer}."))
        again = options.layers == "full" and layer % options.every == 0
        arguments = (config, layer, division, contexts, options, kernels.compile)
        found.append(Layer(Middle, arguments, cost * (4 / 3 if again else 1), block=True))
    found.append(Layer(Exit, (config, division)))
    cost = config.vocab * config.width
    if config.tied:
        found.append(Layer(found[0].kind, found[0].arguments, cost, tied=True))
    else:
        found.append(Layer(Ending, (config, division), cost))
    return found


def balance(row: Sequence[Layer], stages: int) -> list[int]:
    """Where to cut a row of layers: stage i has those from bound i to bound i + 1.

    The dearest stage is as cheap as can be, and the others as alike as that allows. Each has a block.
    Raises ConfigError when there are more stages than blocks.
    """
    blocks = [0, *accumulate(int(layer.block) for layer in row)]
    costs = [0.0, *accumulate(layer.cost for layer in row)]
    if stages > blocks[-1]:
        raise ConfigError(f"pp {stages} is more stages than the model's {blocks[-1]} layers", "lower mesh.pp")
    bounds = _cut(costs, blocks, stages, inf, dearest=True)
    most = max(costs[stop] - costs[start] for start, stop in pairwise(bounds))
    return _cut(costs, blocks, stages, most * (1 + 1e-9), dearest=False)


def _cut(costs: Sequence[float], blocks: Sequence[int], stages: int, most: float, dearest: bool) -> list[int]:
    """The cut whose dearest stage is cheapest, or the one with the smallest sum of squares and no stage above `most`.

    `costs` and `blocks` are sums up to each layer. The best cut of so many stages up to a layer is built from the
    best of one stage fewer.
    """
    size = len(costs)
    best = [[inf] * size for _ in range(stages + 1)]
    came = [[0] * size for _ in range(stages + 1)]
    best[0][0] = 0.0
    for stage in range(1, stages + 1):
        for stop in range(1, size):
            for start in range(stop):
                cost = costs[stop] - costs[start]
                if blocks[stop] == blocks[start] or cost > most or best[stage - 1][start] == inf:
                    continue
                worth = max(best[stage - 1][start], cost) if dearest else best[stage - 1][start] + cost * cost
                if worth < best[stage][stop]:
                    best[stage][stop], came[stage][stop] = worth, start
    bounds = [size - 1]
    for stage in range(stages, 0, -1):
        bounds.append(came[stage][bounds[-1]])
    return bounds[::-1]

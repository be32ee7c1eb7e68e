"""The memory of a run on each device, by part, from its configuration alone.

Activations are what autograd keeps of a forward pass. Korthikanti et al. (arXiv 2205.05198, section
4.1) count them for a Megatron layer: 34 sbh + 5 as^2b bytes. Here the same is done for the layers of
`neoxkit.nn`, whose attention is fused (no scores are kept), and which have no dropout. A tensor that
several operations keep is counted once; so is a view together with what it is a view of. The tests
compare the result with the tensors that autograd really keeps.

Shapes: N tokens of a micro-batch. Sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import NamedTuple

from neoxkit.config.model import Alibi, Learned, Rotary
from neoxkit.config.run import RunConfig
from neoxkit.mesh import Ends, layer_of
from neoxkit.nn.decoder import Decoder, holdings
from neoxkit.nn.loss import SLICE_ELEMENTS
from neoxkit.nn.stages import balance, layers
from neoxkit.parallel.context import traded_heads
from neoxkit.parallel.division import UNDIVIDED
from neoxkit.parallel.groups import Groups
from neoxkit.train.engine import DTYPES
from neoxkit.train.flops import recomputed
from neoxkit.train.optim import Learner

FULL, INDEX = 4, 8
"""Bytes of an fp32 number and of a token's id."""


class Memory(NamedTuple):
    """What one device of a pipeline stage holds at most, in bytes; `host` lies in the CPU's memory instead."""

    stage: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    host: int = 0

    @property
    def total(self) -> int:
        """All of it on the device."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.loss


class Layers:
    """What autograd keeps of a model's parts at one place of a mesh, for micro-batches of `micro` samples."""

    def __init__(self, config: RunConfig, micro: int) -> None:
        model, tp, cp = config.model, config.mesh.tp, config.mesh.cp
        self.model = model
        self.item = FULL if config.precision == "fp32" else 2
        self.length, self.positions, self.cp = config.sequence, config.sequence // cp, cp
        self.tokens = micro * self.positions
        self.heads = model.mixer.heads // tp
        self.kv_heads = max(1, model.mixer.kv_heads // tp)
        self.hidden = model.mlp.hidden // tp
        self.vocab = -(-model.vocab // tp)
        self.share = tp if config.mesh.sequence_parallel else 1
        """How many ranks the tokens of the stream are divided over."""

    @property
    def stream(self) -> int:
        """The residual stream once."""
        return self.tokens * self.model.width * self.item // self.share

    def _normed(self, elements: int, rows: int, rms: bool, own_input: bool) -> int:
        """What a norm keeps for itself, but for its output. `own_input`: its input is kept by nobody else.

        RMS norm keeps what it multiplies the weight by, and in half precision its input in fp32.
        """
        if not rms:
            return 2 * rows * FULL + own_input * elements * self.item
        kept_input = own_input * elements * FULL if self.item == FULL else elements * FULL
        return rows * FULL + kept_input + elements * self.item

    def norm(self, first: bool = True) -> int:
        """A norm of the stream with its output, which a linear layer keeps. A second one reads the same input."""
        elements, rows = self.stream // self.item, self.tokens // self.share
        return self._normed(elements, rows, self.model.norm.kind == "rms", first) + self.stream

    def attention(self) -> int:
        """From the fused queries, keys and values to the input of the output projection."""
        mixer, n, item = self.model.mixer, self.tokens, self.item
        queries, keys = n * self.heads * mixer.head_dim, n * self.kv_heads * mixer.head_dim
        fresh = isinstance(self.model.position, Rotary) or mixer.qk_norm
        repeated = self.heads != self.kv_heads
        kept = queries * item + n * self.heads * FULL  # the output, the logarithm of each row's sum
        if self.cp > 1:
            kept += self._traded()
        else:
            kept += fresh * queries * item
            kept += queries * item if repeated else fresh * keys * item
            kept += repeated * queries * item  # values
        if (self.cp == 1 and not (repeated and fresh)) or (mixer.qk_norm and item == FULL):
            kept += (queries + 2 * keys) * item  # a view keeps all of it
        if mixer.qk_norm:
            per_head = mixer.qk_norm_span == "head"
            for elements, heads in ((queries, self.heads), (keys, self.kv_heads)):
                kept += self._normed(elements, n * (heads if per_head else 1), rms=True, own_input=False)
        if self.windowed and not isinstance(self.model.position, Alibi):
            kept += self.length**2 * item  # torch makes numbers of the mask in each layer
        return kept

    def _traded(self) -> int:
        """With context parallelism: what was received, keys and values repeated, the output as it was sent back."""
        traded = traded_heads(self.kv_heads, self.cp)
        repeated = 2 * self.heads if traded != self.heads else 0
        return self.tokens * (2 * self.heads + 2 * traded + repeated) * self.model.mixer.head_dim * self.item

    @property
    def windowed(self) -> bool:
        """Whether a window hides anything."""
        return self.model.mixer.window is not None and self.model.mixer.window < self.length

    def mlp(self) -> int:
        """From the up projection's output to the input of the down projection."""
        whole = self.tokens * self.hidden * self.item
        if self.model.mlp.gated:
            return 4 * whole
        return whole if self.model.mlp.activation == "relu" else 2 * whole

    def layer(self) -> int:
        """A whole layer, with the stream as it comes in."""
        inner = self.attention() + self.mlp()
        if self.model.residual == "sequential":
            return inner + 2 * self.norm()
        if self.model.residual == "parallel":
            return inner + self.norm() + self.norm(first=False)
        if self.model.residual == "shared":
            return inner + self.norm()
        assert self.model.residual == "post", self.model.residual
        return inner + 2 * self.norm()  # the stream is kept in place of the norm's output

    def first(self) -> int:
        """Before the layers: ids, and the embedding where a norm reads it."""
        kept = self.tokens * INDEX
        if self.vocab < self.model.vocab:
            kept += self.tokens  # which of them are other ranks'
        if isinstance(self.model.position, Learned):
            kept += self.positions * INDEX
        if self.model.embed_norm:
            kept += self.norm() - self.stream  # its output is the first layer's input
        return kept

    def shared(self) -> int:
        """What is made once for all layers: the rotation or the biases of distance."""
        if isinstance(self.model.position, Alibi):
            return self.heads // self.cp * self.length**2 * self.item
        return self.positions * self.model.rotated * self.item

    def last(self) -> int:
        """The final norm and its output, which is not divided."""
        return self.norm() - self.stream + self.share * self.stream

    def loss(self) -> int:
        """What the sliced cross entropy keeps and works with: both gradients, and a slice of logits."""
        rows = max(1, min(self.tokens, SLICE_ELEMENTS // self.vocab))
        slices = rows * self.vocab * (self.item + FULL)
        if self.item < FULL:
            slices += rows * self.vocab * FULL  # torch makes fp32 numbers of logits before their softmax
        weight = self.vocab * self.model.width
        gradients = self.tokens * self.model.width * self.item + weight * FULL
        return slices + gradients


class Stage(NamedTuple):
    """A pipeline stage: which it is, and its layers."""

    number: int
    layers: range
    first: bool
    last: bool


def stages_of(config: RunConfig) -> list[Stage]:
    """The pipeline stages of a run, cut as the engine cuts them. Raises ConfigError for more stages than layers."""
    if config.mesh.pp == 1:
        return [Stage(0, range(config.model.depth), True, True)]
    row = layers(config.model, UNDIVIDED, config.recompute, config.sequence)
    bounds = balance(row, config.mesh.pp)
    blocks = [0, *accumulate(int(layer.block) for layer in row)]
    return [
        Stage(index, range(blocks[start], blocks[stop]), index == 0, index == config.mesh.pp - 1)
        for index, (start, stop) in enumerate(pairwise(bounds))
    ]


def activations(config: RunConfig, micro: int, stage: Stage) -> int:
    """What autograd keeps on a device of this stage when most micro-batches are on their way."""
    sizes, mode = Layers(config, micro), config.recompute.layers
    again = recomputed(config.recompute, stage.layers.stop, stage.layers.start)
    kept = (len(stage.layers) - again) * sizes.layer()
    if mode == "full":
        kept += again * sizes.stream
    elif mode == "selective":
        kept += again * (sizes.layer() - sizes.attention())
    if stage.first:
        kept += sizes.first()
    kept += sizes.last() if stage.last else sizes.stream  # what is sent is kept too
    # One forward, one backward: a stage has as many micro-batches in flight as stages follow, itself included.
    flying = min(config.accumulation, config.mesh.pp - stage.number)
    working = {"none": 0, "full": sizes.layer(), "selective": sizes.attention()}[mode] if again else 0
    return flying * kept + sizes.shared() + working


class State(NamedTuple):
    """Bytes of one device of a stage before anything is divided over data-parallel ranks."""

    weights: int
    parameters: int
    optimizer: int


def states_of(config: RunConfig, stages: Sequence[Stage]) -> list[State]:
    """The weights and the optimizer's state of the first device of each stage: of a model without memory."""
    tp = replace(config.placed, pp=1, dp=1)
    model = Decoder(config.model, "meta", DTYPES[config.precision], Groups(tp), config.mesh.sequence_parallel)
    bytes_of: dict[Ends | int, list[int]] = {}

    def add(where: Ends | int, *numbers: int) -> None:
        found = bytes_of.setdefault(where, [0, 0, 0])
        bytes_of[where] = [one + other for one, other in zip(found, numbers, strict=True)]

    for parameter in model.parameters():
        name = holdings(parameter)[0].spec.name
        learned = sum(value.nbytes for *_, value in Learner([parameter], config.optimizer).state())
        tied = parameter is model.head.weight and len(stages) > 1  # then both ends have it
        for where in {layer_of(name), *([Ends.LAST] if tied else [])}:
            add(where, parameter.nbytes, parameter.numel(), learned)
    found = []
    for stage in stages:
        places = [*stage.layers, *([Ends.FIRST] if stage.first else []), *([Ends.LAST] if stage.last else [])]
        sums = [sum(bytes_of.get(place, [0, 0, 0])[kind] for place in places) for kind in range(3)]
        found.append(State(*sums))
    return found


def divided(amount: int, ways: int) -> int:
    """The share of each of so many ranks."""
    return -(-amount // ways)


def of_stage(config: RunConfig, stage: Stage, state: State, micro: int) -> Memory:
    """The memory of a device of a stage. Gradients are summed in fp32; ZeRO has masters of fp32 weights too."""
    zero = config.zero
    weights, gradients, optimizer, host = state.weights, FULL * state.parameters, state.optimizer, 0
    if zero.stage and config.precision == "fp32":
        optimizer += FULL * state.parameters
    ranks = config.dp * config.mesh.cp
    if zero.stage >= 1:
        optimizer = divided(optimizer, ranks)
    if zero.stage >= 2:
        gradients = divided(gradients, ranks)
    if zero.stage == 3:
        weights = divided(weights, ranks)
    if zero.offload in ("optimizer", "all"):
        host, optimizer = optimizer, 0
    if zero.offload == "all":
        host, weights = host + weights, 0
    loss = Layers(config, micro).loss() if stage.last else 0
    return Memory(stage.number, weights, gradients, optimizer, activations(config, micro, stage), loss, host)


def of_run(config: RunConfig) -> list[Memory]:
    """The memory of a device of each pipeline stage.

    `config` is on its devices (`RunConfig.on`), in a stated precision. Raises ConfigError as the engine
    would for a mesh that does not fit the model.
    """
    stages = stages_of(config)
    states = states_of(config, stages)
    return [of_stage(config, stage, state, config.micro) for stage, state in zip(stages, states, strict=True)]


def largest_micro(config: RunConfig, room: int) -> int:
    """The most samples of a micro-batch that fit into `room` bytes on every device; 0 when not even one does."""
    stages = stages_of(config)
    states = states_of(config, stages)
    most, found = config.batch.size // config.dp, 0
    for micro in (micro for micro in range(1, most + 1) if most % micro == 0):
        run = config.model_copy(update={"batch": config.batch.model_copy(update={"micro": micro})})
        needs = (of_stage(run, stage, state, micro) for stage, state in zip(stages, states, strict=True))
        if max(need.total for need in needs) > room:
            break
        found = micro
    return found

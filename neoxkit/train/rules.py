"""How one step changes weights: AdamW, Lion, SGD, Muon, Adafactor, 8-bit AdamW, as functions over lists of tensors.

torch's own functions do the arithmetic, and bitsandbytes' for 8 bits. They are called without the
classes of torch.optim, which import torch's compiler when they are built: 3 s on a slow core. Only
Lion is written here, as torch has none.

A rule is chosen by the kind of optimizer and what a tensor is; each has its own state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.optim._adafactor import adafactor
from torch.optim._muon import muon
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from neoxkit.config.optimizer import Adafactor, AdamW, AdamW8bit, Lion, Muon, Optimizer, Sgd
from neoxkit.errors import ConfigError
from neoxkit.parallel.collectives import joined
from neoxkit.spec import Role, TensorSpec

MOMENTS = ("exp_avg", "exp_avg_sq")
"""The state of AdamW, as torch and the checkpoint call it."""

BLOCK, SMALL = 256, 4096
"""Elements that share a scale in 8 bits, and elements below which a tensor is not worth it (bitsandbytes')."""


@dataclass(frozen=True)
class Divided:
    """How the ranks of a group divide a tensor: along `dim`, neighbours of `alike` holding the same part."""

    group: ProcessGroup
    dim: int
    alike: int = 1

    def whole(self, mine: Tensor) -> Tensor:
        """The tensor, of this rank's part. Every rank of the group must ask for it."""
        found = joined(mine, self.dim, self.group)
        if self.alike == 1:
            return found
        return torch.cat(found.chunk(dist.get_world_size(self.group), self.dim)[:: self.alike], self.dim)

    def own(self, whole: Tensor) -> Tensor:
        """This rank's part of a tensor."""
        parts = whole.chunk(dist.get_world_size(self.group) // self.alike, self.dim)
        return parts[dist.get_rank(self.group) // self.alike]


@dataclass
class Group:
    """Tensors that one rule changes alike, at `lr_scale` times the learning rate.

    A tensor is a parameter, or the rows of it that hold a logical tensor. Of each there are the
    parameter that the model computes with and its rows, the fp32 master, and by name the state; and
    how it is divided, which is asked of tensors that are treated as a whole.
    """

    rule: Rule
    weight_decay: float
    lr_scale: float = 1.0
    weights: list[Tensor] = field(default_factory=list)
    rows: list[slice] = field(default_factory=list)
    masters: list[Tensor] = field(default_factory=list)
    state: dict[str, list[Tensor]] = field(default_factory=dict)
    counts: list[Tensor] = field(default_factory=list)
    divided: list[Divided | None] = field(default_factory=list)


class Rule(Protocol):
    """How a step changes the tensors of a group. Equal rules are of one group."""

    @property
    def states(self) -> tuple[str, ...]:
        """The names of the state."""

    def empty(self, name: str, master: Tensor) -> Tensor:
        """What a state of a tensor is before its first step."""

    def step(self, group: Group, gradients: list[Tensor], lr: float, divisor: float) -> None:
        """Change masters, state and counts by the gradients / `divisor`. The gradients may be changed too."""


class Elementwise:
    """A rule that treats each element by itself: state has the shape of the weight, and may be divided with it."""

    def empty(self, name: str, master: Tensor) -> Tensor:
        """Zeros of the weight's shape."""
        return torch.zeros_like(master)


@dataclass(frozen=True)
class AdamWRule(Elementwise):
    """Loshchilov and Hutter's AdamW (arXiv 1711.05101).

    torch's fused kernel divides the gradients on the way. Measured on one CPU core at 7.3M
    parameters it takes 7 ms a step, torch's foreach and plain loops 30 to 36.
    """

    betas: tuple[float, float]
    eps: float
    states: tuple[str, ...] = MOMENTS

    def step(self, group: Group, gradients: list[Tensor], lr: float, divisor: float) -> None:
        """As Rule says."""
        device = group.masters[0].device
        adamw(
            group.masters,
            gradients,
            group.state["exp_avg"],
            group.state["exp_avg_sq"],
            [],
            group.counts,
            fused=True,
            grad_scale=torch.tensor(divisor, dtype=torch.float32, device=device),
            found_inf=torch.zeros((), device=device),
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=lr,
            weight_decay=group.weight_decay,
            eps=self.eps,
            maximize=False,
        )


@dataclass(frozen=True)
class LionRule(Elementwise):
    """Chen et al.'s Lion (arXiv 2302.06675)."""

    betas: tuple[float, float]
    states: tuple[str, ...] = ("exp_avg",)

    def step(self, group: Group, gradients: list[Tensor], lr: float, divisor: float) -> None:
        """As Rule says."""
        torch._foreach_div_(gradients, divisor)
        lion(group.masters, gradients, group.state["exp_avg"], lr, self.betas, group.weight_decay)


def lion(
    weights: list[Tensor],
    gradients: list[Tensor],
    moments: list[Tensor],
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> None:
    """w -= lr (sign(b1 m + (1 - b1) g) + decay w); then m = b2 m + (1 - b2) g (arXiv 2302.06675, program 1)."""
    moves = torch._foreach_lerp(moments, gradients, 1 - betas[0])
    torch._foreach_sign_(moves)
    if weight_decay:
        torch._foreach_mul_(weights, 1 - lr * weight_decay)
    torch._foreach_add_(weights, moves, alpha=-lr)
    torch._foreach_lerp_(moments, gradients, 1 - betas[1])


@dataclass(frozen=True)
class SgdRule(Elementwise):
    """torch's SGD. A momentum of zeros is what torch begins with, since there is no dampening."""

    momentum: float
    nesterov: bool

    @property
    def states(self) -> tuple[str, ...]:
        """As Rule says."""
        return ("momentum_buffer",) if self.momentum else ()

    def step(self, group: Group, gradients: list[Tensor], lr: float, divisor: float) -> None:
        """As Rule says."""
        device = group.masters[0].device
        sgd(
            group.masters,
            gradients,
            list(group.state["momentum_buffer"]) if self.momentum else [None] * len(gradients),
            fused=True,
            grad_scale=torch.tensor(divisor, dtype=torch.float32, device=device),
            found_inf=torch.zeros((), device=device),
            weight_decay=group.weight_decay,
            momentum=self.momentum,
            lr=lr,
            dampening=0.0,
            nesterov=self.nesterov,
            maximize=False,
        )


@dataclass(frozen=True)
class MuonRule(Elementwise):
    """Jordan's Muon, as torch has it: the momentum of a matrix, made orthogonal by Newton-Schulz iterations.

    Of a matrix that ranks divide each joins the momentum, makes the whole step and keeps its own part.
    """

    momentum: float
    nesterov: bool
    iterations: int
    scale: str
    states: tuple[str, ...] = ("momentum_buffer",)

    def step(self, group: Group, gradients: list[Tensor], lr: float, divisor: float) -> None:
        """As Rule says."""
        torch._foreach_div_(gradients, divisor)
        means = group.state["momentum_buffer"]
        for master, gradient, mean, divided in zip(group.masters, gradients, means, group.divided, strict=True):
            if divided is None:
                self._move([master], [gradient], [mean], lr, group.weight_decay, self.momentum, self.nesterov)
                continue
            mean.lerp_(gradient, 1 - self.momentum)
            update = divided.whole(gradient.lerp(mean, self.momentum) if self.nesterov else mean)
            move, nothing = torch.zeros_like(update), torch.zeros_like(update)
            # Without momentum and decay the function leaves the orthogonal step alone in what was zero.
            self._move([move], [update], [nothing], lr, 0.0, 0.0, False)
            master.mul_(1 - lr * group.weight_decay).add_(divided.own(move))

    def _move(
        self,
        masters: list[Tensor],
        gradients: list[Tensor],
        means: list[Tensor],
        lr: float,
        weight_decay: float,
        momentum: float,
        nesterov: bool,
    ) -> None:
        """torch's step."""
        muon(
            masters,
            gradients,
            means,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            nesterov=nesterov,
            ns_coefficients=(3.4445, -4.7750, 2.0315),  # Jordan's
            ns_steps=self.iterations,
            eps=1e-7,
            adjust_lr_fn={"original": "original", "adamw": "match_rms_adamw"}[self.scale],
            has_complex=False,
        )


@dataclass(frozen=True)
class AdafactorRule:
    """Shazeer and Stern's Adafactor (arXiv 1804.04235), as torch has it; vectors have a whole second moment."""

    decay: float
    floor: float
    limit: float
    vector: bool

    @property
    def states(self) -> tuple[str, ...]:
        """As Rule says."""
        return ("variance",) if self.vector else ("row_var", "col_var")

    def empty(self, name: str, master: Tensor) -> Tensor:
        """As Rule says: of [rows, columns], a `row_var` is [rows, 1] and a `col_var` is [1, columns]."""
        shape = list(master.shape)
        if name != "variance":
            shape[{"row_var": -1, "col_var": -2}[name]] = 1
        return master.new_zeros(shape)

    def step(self, group: Group, gradients: list[Tensor], lr: float, divisor: float) -> None:
        """As Rule says."""
        torch._foreach_div_(gradients, divisor)
        nothing: list[Tensor | None] = [None] * len(gradients)
        rows, columns, whole = (list(group.state.get(n, nothing)) for n in ("row_var", "col_var", "variance"))
        adafactor(
            group.masters,
            gradients,
            rows,
            columns,
            whole,
            group.counts,
            foreach=False,
            grad_scale=None,
            found_inf=None,
            has_complex=False,
            d=self.limit,
            lr=lr,
            beta2_decay=-self.decay,
            weight_decay=group.weight_decay,
            eps1=torch.finfo(torch.float32).eps,
            eps2=self.floor,
            maximize=False,
        )


@dataclass(frozen=True)
class AdamW8bitRule:
    """Dettmers et al.'s 8-bit AdamW (arXiv 2110.02861): blocks of 256 elements share a scale."""

    betas: tuple[float, float]
    eps: float
    states: tuple[str, ...] = ("state1", "state2", "absmax1", "absmax2")
    maps: ClassVar[dict[torch.device, tuple[Tensor, Tensor]]] = {}

    def empty(self, name: str, master: Tensor) -> Tensor:
        """As Rule says: moments are places in a map of 256 values, and a block's are multiplied by its scale, 0 yet."""
        if name.startswith("absmax"):
            return master.new_zeros(-(-master.numel() // BLOCK))
        return torch.zeros_like(master, dtype=torch.uint8)

    def step(self, group: Group, gradients: list[Tensor], lr: float, divisor: float) -> None:
        """As Rule says."""
        update = _bitsandbytes().functional.optimizer_update_8bit_blockwise
        device = group.masters[0].device
        if device not in self.maps:
            self.maps[device] = (_map(True).to(device), _map(False).to(device))
        first, second = self.maps[device]
        torch._foreach_add_(group.counts, 1)
        kept = zip(*(group.state[name] for name in self.states), strict=True)
        for master, gradient, count, state in zip(group.masters, gradients, group.counts, kept, strict=True):
            update(
                "adam",
                gradient.contiguous(),
                master,
                state[0],
                state[1],
                *self.betas,
                0.0,
                0.0,
                self.eps,
                int(count),
                lr,
                first,
                second,
                state[2],
                state[3],
                group.weight_decay,
                1.0 / divisor,
                False,
            )


def _map(signed: bool) -> Tensor:
    """The 256 values of a moment in 8 bits."""
    found: Tensor = _bitsandbytes().functional.create_dynamic_map(signed=signed)
    return found


def _bitsandbytes() -> Any:
    """The library. Raises ConfigError where it is not installed."""
    try:
        import bitsandbytes  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ConfigError(
            f"optimizer.kind adamw8bit needs bitsandbytes, which cannot be imported ({error})",
            "pip install neoxkit[8bit], or choose another optimizer",
        ) from None
    return bitsandbytes


def rules(config: Optimizer) -> tuple[Callable[[TensorSpec], Rule], bool]:
    """The rule of each logical tensor; and whether logical tensors that a parameter fuses are treated one by one.

    Raises ConfigError when a library is not installed.
    """
    if isinstance(config, AdamW):
        adamw_rule = AdamWRule(config.betas, config.eps)
        return lambda spec: adamw_rule, False
    if isinstance(config, Lion):
        lion_rule = LionRule(config.betas)
        return lambda spec: lion_rule, False
    if isinstance(config, Sgd):
        sgd_rule = SgdRule(config.momentum, config.nesterov)
        return lambda spec: sgd_rule, False
    if isinstance(config, Adafactor):
        factors = {vector: AdafactorRule(config.decay, config.floor, config.limit, vector) for vector in (True, False)}
        return lambda spec: factors[len(spec.shape) < 2], True
    if isinstance(config, AdamW8bit):
        _bitsandbytes()
        low, high = AdamW8bitRule(config.betas, config.eps), AdamWRule(config.betas, config.eps)
        return lambda spec: high if _elements(spec) < SMALL else low, True
    assert isinstance(config, Muon), config.kind
    matrices = MuonRule(config.momentum, config.nesterov, config.iterations, config.scale)
    others = AdamWRule(config.rest.betas, config.rest.eps)
    return lambda spec: matrices if _is_hidden_matrix(spec) else others, True


def _elements(spec: TensorSpec) -> int:
    return int(torch.Size(spec.shape).numel())


def _is_hidden_matrix(spec: TensorSpec) -> bool:
    """Whether Muon takes a tensor: a matrix between hidden layers."""
    return spec.role in (Role.MATRIX, Role.OUTPUT) and len(spec.shape) == 2

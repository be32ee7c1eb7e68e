"""Where DeepSpeed keeps what: the fragments of masters, moments and gradients that this rank has, at every ZeRO stage.

DeepSpeed flattens the parameters of a group into one tensor and divides that over the data-parallel ranks
(stages 1 and 2), or divides each parameter (stage 3). Either way a rank has a *run* of a parameter's elements; and a
parameter is several logical tensors stacked on dimension 0, so a run of it is a run of each of their boxes.

What is read here is semi-private to DeepSpeed: tests compare all of it with DeepSpeed's own full gathers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from neoxkit.checkpoint import Source
from neoxkit.nn.decoder import holdings
from neoxkit.parallel.gradients import counted
from neoxkit.spec import Box, Coord, Run, TensorSpec, extent, run_boxes, volume


class Portion(NamedTuple):
    """A run of a logical tensor's box (None: all of it), and where in its fragment the values lie."""

    spec: TensorSpec
    box: Box
    run: Run | None
    within: slice

    def of(self, values: Tensor) -> Tensor:
        """Its values in those of the fragment, in the shape of the box where that is whole."""
        found = values[self.within]
        return found.view(extent(self.box)) if self.run is None else found


@dataclass(frozen=True)
class Fragment:
    """A run of a parameter's elements, and where they lie in a flat tensor that DeepSpeed's optimizer updates."""

    parameter: Tensor
    shape: tuple[int, ...]  # of the whole parameter
    run: Run
    group: int
    flat: Tensor
    offset: int

    def of(self, flat: Tensor) -> Tensor:
        """Its elements of a tensor that lies as `flat` does: masters, a moment."""
        return flat.detach().view(-1)[self.offset : self.offset + self.run[1] - self.run[0]]

    @property
    def row(self) -> int:
        """Elements of a row of the parameter."""
        return prod(self.shape[1:])

    def portions(self) -> Iterator[Portion]:
        """The logical tensors of which it has something."""
        for held in holdings(self.parameter):
            first, last = self._common(held.rows)
            if first < last:
                start = held.rows.start * self.row
                run = (first - start, last - start)
                within = slice(first - self.run[0], last - self.run[0])
                yield Portion(held.spec, held.box, None if run == (0, volume(held.box)) else run, within)

    def counted(self, at: Coord) -> Iterator[slice]:
        """The parts of it that count in a norm: each element of the model on one rank only."""
        for rows in counted(holdings(self.parameter), at):
            first, last = self._common(rows)
            if first < last:
                yield slice(first - self.run[0], last - self.run[0])

    def _common(self, rows: slice) -> Run:
        return max(self.run[0], rows.start * self.row), min(self.run[1], rows.stop * self.row)


class Plain:
    """No ZeRO: torch's optimizer updates the parameters themselves."""

    shared = True
    """Whether data-parallel ranks all have the same fragments, and not each its own."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def flats(self) -> list[Tensor]:
        """The tensors that the optimizer updates."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def fragments(self) -> Iterator[Fragment]:
        """What this rank has."""
        for index, group in enumerate(self.optimizer.param_groups):
            for parameter in group["params"]:
                run = (0, parameter.numel())
                yield Fragment(parameter, tuple(parameter.shape), run, index, parameter, 0)

    def gradients(self, fragments: Sequence[Fragment]) -> list[Tensor]:
        """The gradient of each, once backward is done."""
        return [each.parameter.grad.view(-1) for each in fragments]  # type: ignore[union-attr]

    def prepare(self, divisor: float, norm: Tensor) -> None:
        """Let the next step divide gradients by this. `norm` is their true one, before that."""
        divide(self.optimizer, [parameter.grad for parameter in self.flats()], divisor)  # type: ignore[misc]

    def drop(self) -> None:
        """Forget the gradients of a step that will not be made."""
        self.optimizer.zero_grad()

    def publish(self) -> None:
        """Round the masters into the weights that the model computes with."""


class _Flat:
    """What stages 1 to 3 have in common: DeepSpeed unscales gradients, and computes a norm. Both are ours here."""

    shared = False

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self._norm, self._divisor = torch.zeros(()), 1.0
        self._take_over()

    def _take_over(self) -> None:
        """Put our norm in the place of DeepSpeed's, which counts heads that neighbours share more than once."""
        self.optimizer.check_grad_overflow = False
        self.optimizer.scaled_global_norm = lambda norm_type=2: self._norm
        self.optimizer.unscale_and_clip_grads = lambda flats, norm: divide(self._base, flats, self._divisor)

    @property
    def _base(self) -> torch.optim.Optimizer:
        """What DeepSpeed's optimizer updates its flat tensors with."""
        base: torch.optim.Optimizer = self.optimizer.optimizer
        return base

    def prepare(self, divisor: float, norm: Tensor) -> None:
        """Let the next step divide gradients by this. `norm` is their true one, before that."""
        self._norm, self._divisor = norm, divisor

    def drop(self) -> None:
        """Forget the gradients of a step that will not be made: DeepSpeed skips a step whose gradients overflow."""
        self._norm = torch.full((), float("inf"))
        self.optimizer.check_grad_overflow = True
        self.optimizer.check_overflow = lambda partition_gradients=True: setattr(self.optimizer, "overflow", True)
        try:
            with _without_a_word():
                self.optimizer.step()
            self.optimizer.zero_grad()
            self._forget_offloaded()
        finally:
            del self.optimizer.check_overflow
            self.optimizer.check_grad_overflow = False

    def _forget_offloaded(self) -> None:
        """Forget what is kept on the CPU, to which DeepSpeed would add; it leaves that behind."""
        if self.optimizer.cpu_offload:
            for index in self.optimizer.averaged_gradients:
                self.optimizer.averaged_gradients[index] = None
            self.optimizer.accumulated_grads_in_cpu.clear()
            for flat in self.optimizer.single_partition_of_fp32_groups:
                flat.grad.zero_()


class Divided(_Flat):
    """Stages 1 and 2: each rank has an equal part of each group, flattened."""

    def flats(self) -> list[Tensor]:
        """The tensors that the optimizer updates."""
        return list(self.optimizer.single_partition_of_fp32_groups)

    def fragments(self) -> Iterator[Fragment]:
        """What this rank has."""
        yield from _mapped(self.optimizer.bit16_groups, self.flats())

    def gradients(self, fragments: Sequence[Fragment]) -> list[Tensor]:
        """The gradient of each, once backward is done."""
        if self.optimizer.cpu_offload:
            self.optimizer._wait_for_offload_copies()
            return [each.of(each.flat.grad) for each in fragments]  # type: ignore[arg-type]
        lie = [_lying(grads) for _, grads in sorted(self.optimizer.averaged_gradients.items())]
        return [_part(lie[each.group], each) for each in fragments]

    def publish(self) -> None:
        """Round the masters into the weights that the model computes with."""
        self.optimizer.update_lp_params()


class Bf16(_Flat):
    """Stage 1 in bf16: DeepSpeed's BF16_Optimizer, with whole fp32 gradients on every rank and no loss scale."""

    def _take_over(self) -> None:
        self.optimizer.get_grads_for_norm = lambda for_clipping=False: ([self._norm], {})
        # DeepSpeed forgets bf16 gradients when that of a module's output arrives. That of a pipeline's head is there
        # before, and would be lost: so they are forgotten when they have been added to the fp32 ones.
        add = self.optimizer.update_hp_grads
        self.optimizer.backward_prologue = lambda: None
        self.optimizer.update_hp_grads = lambda clear_lp_grads=False: self._collect(add)

    def _collect(self, add: Callable[[], None]) -> None:
        add()
        self.optimizer.clear_lp_grads(set_to_none=True)

    def flats(self) -> list[Tensor]:
        """The tensors that the optimizer updates."""
        return list(self.optimizer.fp32_groups_flat_partition)

    def fragments(self) -> Iterator[Fragment]:
        """What this rank has."""
        yield from _mapped(self.optimizer.bf16_groups, self.flats())

    def gradients(self, fragments: Sequence[Fragment]) -> list[Tensor]:
        """The gradient of each, once backward is done."""
        return [each.of(self.optimizer.fp32_groups_gradient_flat_partition[each.group]) for each in fragments]

    def prepare(self, divisor: float, norm: Tensor) -> None:
        """Let the next step divide gradients by this. `norm` is their true one, before that."""
        self._norm = norm
        divide(self._base, self.optimizer.fp32_groups_gradient_flat_partition, divisor)

    def drop(self) -> None:
        """Forget the gradients of a step that will not be made."""
        self.optimizer.clear_hp_grads()
        self.optimizer.clear_lp_grads()

    def publish(self) -> None:
        """Round the masters into the weights that the model computes with."""
        self.optimizer.update_lp_params()


class Scattered(_Flat):
    """Stage 3: each rank has an equal part of each parameter, of the weights too."""

    def _take_over(self) -> None:
        self.optimizer._get_norm_groups = lambda: [self._norm]
        self.optimizer.unscale_and_clip_grads = lambda index, norm: self._divide(index)

    def _divide(self, index: int) -> None:
        divide(self._base, [self.optimizer.fp32_partitioned_groups_flat[index].grad], self._divisor)

    def flats(self) -> list[Tensor]:
        """The tensors that the optimizer updates."""
        return list(self.optimizer.fp32_partitioned_groups_flat)

    def fragments(self) -> Iterator[Fragment]:
        """What this rank has. The last ranks' parts may be shorter, or nothing: the rest is padding."""
        for index, group in enumerate(self.optimizer.fp16_groups):
            for parameter in group:
                _, offset, each = self.optimizer.grad_position[self.optimizer.get_param_id(parameter)]
                first = dist.get_rank(self.optimizer.dp_process_group) * each
                run = (first, min(first + each, parameter.ds_numel))
                if run[0] < run[1]:
                    flat = self.optimizer.fp32_partitioned_groups_flat[index]
                    yield Fragment(parameter, tuple(parameter.ds_shape), run, index, flat, offset)

    def gradients(self, fragments: Sequence[Fragment]) -> list[Tensor]:
        """The gradient of each, once backward is done."""
        if self.optimizer.offload_optimizer:
            return [each.of(each.flat.grad) for each in fragments]  # type: ignore[arg-type]
        lie = {index: _lying(grads) for index, grads in self.optimizer.averaged_gradients.items()}
        return [_part(lie[each.group], each) for each in fragments]

    def drop(self) -> None:
        """Forget the gradients of a step that will not be made: DeepSpeed skips a step whose norm is not finite."""
        self._norm = torch.full((), float("inf"))
        with _without_a_word():
            self.optimizer.step()
        self._join_kept()

    def publish(self) -> None:
        """Round the masters into the weights that the model computes with; those that are kept whole are joined."""
        self.optimizer._partition_all_parameters()
        for index in range(len(self.optimizer.fp16_groups)):
            self.optimizer._reassign_or_swap_out_partitioned_parameters(index)
        self._join_kept()

    def _join_kept(self) -> None:
        """Gather the small weights that every rank keeps whole, as a step does at its end."""
        if kept := self.optimizer.persistent_parameters:
            kept[0].all_gather(kept)


Layout = Plain | Divided | Bf16 | Scattered


@contextmanager
def _without_a_word() -> Iterator[None]:
    """Keep DeepSpeed from warning of a step that it skips because it was told to."""
    logger = logging.getLogger("DeepSpeed")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def divide(optimizer: torch.optim.Optimizer, gradients: Sequence[Tensor], divisor: float) -> None:
    """Let the next step of torch's optimizer see gradients divided by this.

    Its fused kernels divide on the way, as they do for torch's GradScaler: one pass over memory less.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.grad_scale = torch.tensor(divisor, dtype=torch.float32, device=gradients[0].device)  # type: ignore[attr-defined]
        optimizer.found_inf = torch.zeros((), device=gradients[0].device)  # type: ignore[attr-defined]
    else:
        torch._foreach_div_(list(gradients), divisor)


def _mapped(groups: Iterable[Iterable[Any]], flats: Sequence[Tensor]) -> Iterator[Fragment]:
    """The fragments of parameters that DeepSpeed has mapped to parts of flat tensors."""
    for index, group in enumerate(groups):
        for parameter in group:
            if (mapping := parameter._hp_mapping) is not None:
                start, count = mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel
                offset = mapping.hp_fragment_address.start
                yield Fragment(parameter, tuple(parameter.shape), (start, start + count), index, flats[index], offset)


def _lying(gradients: Any) -> dict[int, Tensor] | Tensor:
    """The gradients of a group: one flat tensor, or tensors that lie one behind the other, by where each begins."""
    if (flat := getattr(gradients, "flat_partition", None)) is not None:
        return flat.view(-1)
    found, at = {}, 0
    for gradient in gradients:
        found[at] = gradient.view(-1)
        at += gradient.numel()
    return found


def _part(lie: dict[int, Tensor] | Tensor, fragment: Fragment) -> Tensor:
    """The gradient of a fragment."""
    if isinstance(lie, Tensor):
        return fragment.of(lie)
    return lie[fragment.offset][: fragment.run[1] - fragment.run[0]]


def fill(values: Tensor, portion: Portion, source: Source, name: str) -> None:
    """Read a portion from a source into a fragment's values."""
    into = portion.of(values)
    if portion.run is None:
        into.copy_(source.read(name, portion.box))
        return
    at = 0
    for part in run_boxes(portion.box, portion.run):
        read = source.read(name, part).reshape(-1)
        into[at : at + read.numel()].copy_(read)
        at += read.numel()

"""Optimizers over the parameters of a decoder: masters, state, and which tensors learn alike.

The state exists, as it is before the first step, from the beginning, so that a checkpoint can be
loaded before it. `groups_of` and `build` serve an engine that wants an optimizer of torch's own
kind; `Learner` is what the plain engine learns with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from neoxkit.config.optimizer import AdamW, Lion, Muon, Optimizer, Sgd
from neoxkit.mesh import holders
from neoxkit.nn.decoder import holdings
from neoxkit.parallel.groups import LOCAL, Groups
from neoxkit.parallel.layers import Held
from neoxkit.spec import Axis, Box, Role, TensorSpec, whole
from neoxkit.train.rules import AdafactorRule, AdamW8bitRule, Divided, Elementwise, Group, MuonRule, Rule, lion, rules

UNDECAYED = frozenset({Role.NORM, Role.BIAS})


def decays(role: Role, config: Optimizer) -> bool:
    """Whether tensors of this role are decayed."""
    return role not in UNDECAYED and (role is not Role.EMBED or config.decay_embeddings)


def groups_of(
    parameters: Iterable[Tensor], config: Optimizer, scales: Mapping[str, float] | None = None
) -> list[Group]:
    """The parameters in groups that share a rule, a weight decay and a rate; no group is empty.

    Logical tensors that a parameter fuses are apart where the rule wants it, or they learn differently.
    The tensors of these names (`scales`) learn at so many times the rate. Raises ConfigError when
    the optimizer is of a library that is not installed.
    """
    rule_of, apart = rules(config)
    given = scales or {}
    rest = config.rest.lr / config.lr if isinstance(config, Muon) and config.rest.lr else 1.0
    groups: dict[tuple[Rule, float, float], Group] = {}
    for parameter in parameters:
        held = holdings(parameter)
        keys = []
        for spec, _, _ in held:
            rule = rule_of(spec)
            own = rest if isinstance(config, Muon) and not isinstance(rule, MuonRule) else 1.0
            decay = config.weight_decay if decays(spec.role, config) else 0.0
            keys.append((rule, decay, own * float(given.get(spec.name, 1.0))))
        whole_rows = slice(0, len(parameter))
        alike = not apart and len(set(keys)) == 1
        for key, rows in [(keys[0], whole_rows)] if alike else [(k, h.rows) for k, h in zip(keys, held, strict=True)]:
            group = groups.setdefault(key, Group(*key))
            group.weights.append(parameter)
            group.rows.append(rows)
    return list(groups.values())


def build(config: Optimizer, groups: Iterable[Group]) -> torch.optim.Optimizer:
    """An optimizer of torch's own kind over groups of whole parameters: for adamw, lion and sgd.

    Each of its param_groups has `lr_scale` beside its `lr`, which is the highest rate. The names of
    its state are the rule's `states`, and AdamW's has `step` too.
    """
    options = [
        {"params": group.weights, "weight_decay": group.weight_decay, "lr": config.lr * group.lr_scale}
        | {"lr_scale": group.lr_scale}
        for group in groups
    ]
    if isinstance(config, AdamW):
        return torch.optim.AdamW(options, betas=config.betas, eps=config.eps, fused=True)
    if isinstance(config, Lion):
        return LionOptimizer(options, betas=config.betas)
    assert isinstance(config, Sgd), f"{config.kind} treats tensors as a whole"
    return torch.optim.SGD(options, momentum=config.momentum, nesterov=config.nesterov)


class LionOptimizer(torch.optim.Optimizer):
    """Lion (arXiv 2302.06675) as an optimizer of torch's kind."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step with the gradients that the parameters carry."""
        assert closure is None, "its gradients are there before it steps"
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            for weight in weights:
                if "exp_avg" not in self.state[weight]:
                    self.state[weight]["exp_avg"] = torch.zeros_like(weight)
            if weights:
                moments = [self.state[weight]["exp_avg"] for weight in weights]
                gradients = [weight.grad for weight in weights]
                lion(weights, gradients, moments, group["lr"], group["betas"], group["weight_decay"])


class Learner:
    """The optimizer of the plain engine: fp32 masters of the weights, and what a rule keeps of each tensor.

    A master is the parameter itself where that is fp32.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        config: Optimizer,
        scales: Mapping[str, float] | None = None,
        groups: Groups = LOCAL,
    ) -> None:
        """`scales` are rates by name, where not 1; `groups` those of the processes that divide the model."""
        self.config, self._groups = config, groups
        self._masters = {
            parameter: parameter.detach() if parameter.dtype == torch.float32 else parameter.detach().float()
            for parameter in parameters
        }
        self._scales = {name: float(scale) for name, scale in (scales or {}).items() if scale != 1}
        self._steps = 0
        self.groups: list[Group] = []
        self._begin()

    def _begin(self) -> None:
        """Make the groups anew, with the state that is before the first step."""
        self.groups = groups_of(self._masters, self.config, self._scales)
        for group in self.groups:
            for weight, rows in zip(group.weights, group.rows, strict=True):
                master = self._masters[weight][rows]
                group.masters.append(master)
                for name in group.rule.states:
                    group.state.setdefault(name, []).append(group.rule.empty(name, master))
                group.divided.append(self._divided(_within(weight, rows)))
                # What reads the count in every step would have to wait for a device.
                host = isinstance(group.rule, AdafactorRule | AdamW8bitRule) and master.device.type != "meta"
                group.counts.append(torch.zeros((), device="cpu" if host else master.device))

    def _divided(self, held: list[Held]) -> Divided | None:
        """How tensor parallelism divides a logical tensor; None where it does not, or several are together."""
        along, split = self._groups.along.get(Axis.TP), [s for s in held[0].spec.splits if s.axis is Axis.TP]
        if along is None or not split or len(held) > 1:
            return None
        alike = len(holders(held[0].spec, self._groups.mesh.coord(), Axis.TP))
        return Divided(along, split[0].dim, alike)

    @property
    def steps(self) -> int:
        """Steps that the state has seen."""
        return self._steps

    @steps.setter
    def steps(self, value: int) -> None:
        self._steps = value
        for group in self.groups:
            for count in group.counts:
                count.fill_(value)

    def scale(self, scales: Mapping[str, float]) -> None:
        """Let the tensors of these names learn at so many times the rate, and all others at the rate itself.

        Where that is another division than now, the state begins anew.
        """
        wanted = {name: float(scale) for name, scale in scales.items() if scale != 1}
        if wanted != self._scales:
            self._scales = wanted
            self._begin()

    @torch.no_grad()
    def step(self, gradients: dict[Tensor, Tensor], lr: float, divisor: float) -> None:
        """One step with the gradients (by parameter, fp32) divided by `divisor`; they may be changed."""
        self._steps += 1
        for group in self.groups:
            found = [gradients[weight][rows] for weight, rows in zip(group.weights, group.rows, strict=True)]
            group.rule.step(group, found, lr * group.lr_scale, divisor)
        self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the weights that the model computes with."""
        rounded = [weight for weight, master in self._masters.items() if master.dtype != weight.dtype]
        if rounded:
            torch._foreach_copy_([weight.detach() for weight in rounded], [self._masters[w] for w in rounded])

    def masters(self) -> Iterator[tuple[TensorSpec, Box, Tensor]]:
        """Each logical tensor held here: its spec, the box, and a view of its fp32 values. Then `publish`."""
        for weight, master in self._masters.items():
            for held in holdings(weight):
                yield held.spec, held.box, master[held.rows]

    def state(self) -> Iterator[tuple[str, TensorSpec, Box, Tensor]]:
        """Each state of each logical tensor: its name, what it is a box of, and a view of it.

        The fp32 values are among them, as `master`, where the model computes with others.
        """
        for group in self.groups:
            for index, (weight, rows) in enumerate(zip(group.weights, group.rows, strict=True)):
                kept = [(name, group.state[name][index]) for name in group.rule.states]
                if weight.dtype != torch.float32:
                    kept.insert(0, ("master", group.masters[index]))
                for held in _within(weight, rows):
                    for name, value in kept:
                        if name == "master" or isinstance(group.rule, Elementwise):
                            yield name, held.spec, held.box, value[held.rows]
                        else:
                            spec = replace(held.spec, shape=tuple(value.shape), splits=())
                            yield name, spec, whole(spec.shape), value

    def about(self) -> dict[str, Any]:
        """What of it is no tensor, as JSON: its kind, its steps, its groups by name."""
        return {"kind": self.config.kind, "steps": self.steps, "groups": [self._told(group) for group in self.groups]}

    def _told(self, group: Group) -> dict[str, Any]:
        """A group. AdamW is what a group without `states` has."""
        names = [h.spec.name for w, rows in zip(group.weights, group.rows, strict=True) for h in _within(w, rows)]
        told: dict[str, Any] = {"weight_decay": group.weight_decay}
        if scale := self._scales.get(names[0]):  # (what the kind of optimizer says by itself is no news)
            told["lr_scale"] = scale
        if self.config.kind != "adamw":
            told["states"] = list(group.rule.states)
        return told | {"names": names}


def _within(weight: Tensor, rows: slice) -> list[Held]:
    """What the rows of a parameter hold, by rows that count from the first of these."""
    return [
        held._replace(rows=slice(held.rows.start - rows.start, held.rows.stop - rows.start))
        for held in holdings(weight)
        if rows.start <= held.rows.start and held.rows.stop <= rows.stop
    ]

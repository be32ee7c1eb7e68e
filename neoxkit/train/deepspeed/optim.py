"""The optimizer that DeepSpeed is given, and its state as zeros from the beginning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from neoxkit.config.run import RunConfig
from neoxkit.nn.decoder import Decoder
from neoxkit.train.optim import Learner, build, groups_of
from neoxkit.train.rules import Group


class GroupedOptimizer:
    """torch's optimizer over the groups of a model's parameters, and what it keeps of each: `states`."""

    def __init__(self, parameters: Iterable[Tensor], config: RunConfig, scales: Mapping[str, float]) -> None:
        """`scales` are rates by logical name, where they are not 1."""
        groups = groups_of(parameters, config.optimizer, scales)
        self.states: tuple[str, ...] = tuple(groups[0].rule.states)
        assert all(tuple(group.rule.states) == self.states for group in groups), "it treats all tensors alike"
        self.on_the_cpu = config.zero.offload != "none"
        self.base = cpu_optimizer(config, groups) if self.on_the_cpu else build(config.optimizer, groups)

    def begin(self, flats: Sequence[Tensor]) -> None:
        """Make the state that the first step would make, so that there is something to load into."""
        for flat in flats:
            state = self.base.state[flat]
            if isinstance(self.base, torch.optim.AdamW):
                state["step"] = torch.zeros((), device=flat.device)
            elif self.on_the_cpu:
                state["step"] = 0
            for name in self.states:
                state[name] = torch.zeros_like(flat, requires_grad=False)

    def set_steps(self, flats: Sequence[Tensor], steps: int) -> None:
        """Say how many steps the state has seen."""
        for flat in flats:
            state = self.base.state[flat]
            if isinstance(state.get("step"), Tensor):
                state["step"].fill_(steps)
            elif self.on_the_cpu:
                state["step"] = steps


def cpu_optimizer(config: RunConfig, groups: Sequence[Group]) -> Any:
    """DeepSpeed's own AdamW or Lion, for state that is kept in the CPU's memory."""
    options = config.optimizer
    given = [
        {
            "params": group.weights,
            "weight_decay": group.weight_decay,
            "lr": options.lr * group.lr_scale,
            "lr_scale": group.lr_scale,
        }
        for group in groups
    ]
    if options.kind == "adamw":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(given, betas=options.betas, eps=options.eps, adamw_mode=True)
    assert options.kind == "lion", options.kind
    from deepspeed.ops.lion import DeepSpeedCPULion

    return DeepSpeedCPULion(given, betas=options.betas)


def told(config: RunConfig, scales: Mapping[str, float], steps: int) -> dict[str, Any]:
    """What of the optimizer is no tensor, of the whole model: as the plain engine tells it."""
    learner = Learner(Decoder(config.model, device="meta").parameters(), config.optimizer)
    learner.scale(scales)
    return learner.about() | {"steps": steps}

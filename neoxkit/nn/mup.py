"""Maximal update parametrisation: rates and initial values that fit any width, found at a small one.

The form is that of table 3 of Tensor Programs V (arXiv 2203.03466), which changes initial values and
learning rates alone: the network is an ordinary one, and exports as such. gpt-neox (and table 8)
divides the logits and the attention scores instead, which for Adam is the same run.
"""

from __future__ import annotations

from neoxkit.config.model import ModelConfig
from neoxkit.config.optimizer import Mup
from neoxkit.spec import Role, TensorSpec

HIDDEN = (Role.MATRIX, Role.OUTPUT)


def factors(spec: TensorSpec, config: ModelConfig, mup: Mup) -> tuple[float, float]:
    """What a tensor's initial deviation (at the base width) and its learning rate are multiplied by.

    With m = width / base width: hidden matrices 1 / sqrt(m) and 1 / m, the head 1 / m and 1 / m, the
    rest 1 and 1. Scores are a sum over a head's elements: queries are sqrt(base head / head) as large,
    which makes their 1 / sqrt(head) the 1 / head of the paper.
    """
    wider = config.width / mup.base_width
    first, rate = 1.0, 1.0
    if spec.role in HIDDEN:
        first, rate = wider**-0.5, 1 / wider
    elif spec.role is Role.HEAD:
        first, rate = 1 / wider, 1 / wider
    if ".attn.q." in spec.name:
        smaller = ((mup.base_head_dim or config.mixer.head_dim) / config.mixer.head_dim) ** 0.5
        first, rate = first * smaller, rate * smaller
    return first, rate


def rates(config: ModelConfig, specs: dict[str, TensorSpec], mup: Mup | None) -> dict[str, float]:
    """By what each tensor's learning rate is multiplied, where that is not 1."""
    if mup is None:
        return {}
    found = {name: factors(spec, config, mup)[1] for name, spec in specs.items()}
    return {name: rate for name, rate in found.items() if rate != 1}

"""How likely given tokens are, from logits: their sum alone, for whoever wants no more."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from neoxkit.serve.request import Likelihood

_SLICE = 2**20
"""As many logits are looked at once: 4 MB, which a processor's cache holds."""


def likelihood(logits: Tensor, tokens: Sequence[int]) -> Likelihood:
    """The log-likelihood of a token in each row of logits [R, V], summed, and whether each is the likeliest.

    In fp32, the sum in fp64. Of equally likely ones the lowest id is the likeliest.
    """
    chosen = torch.tensor(list(tokens), dtype=torch.int64).to(logits.device)
    step = max(1, _SLICE // max(logits.shape[1], 1))
    total, greedy = 0.0, True
    for rows, wanted in zip(logits.detach().split(step), chosen.split(step), strict=True):
        rows = rows.float()
        own = rows.gather(1, wanted[:, None])[:, 0]
        best = rows.amax(1)
        normal = (rows - best[:, None]).exp_().sum(1).log_().add_(best)
        total += (own - normal).double().sum().item()
        greedy = greedy and bool((own == best).all()) and bool((rows.argmax(1) == wanted).all())
    return Likelihood(total, greedy)

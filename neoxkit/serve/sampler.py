"""From logits to a token: pure functions of logits, settings and a generator.

Shapes: V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. Temperature 0 takes the likeliest; top_k 0 and top_p 1 keep every token."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """The probabilities, [V] fp32, that a token is drawn with.

    top_k keeps tokens at least as likely as the k-th (ties too). top_p then drops tokens that are
    outweighed: those whose likelier companions already hold more than p. The best is always kept.
    """
    scores = logits.float()
    if sampling.temperature == 0:
        chosen = torch.zeros_like(scores)
        chosen[scores.argmax()] = 1
        return chosen
    scores = scores / sampling.temperature
    if 0 < sampling.top_k < len(scores):
        scores = scores.masked_fill(scores < scores.topk(sampling.top_k).values[-1], float("-inf"))
    if sampling.top_p < 1:
        ordered, order = scores.sort(descending=True)
        chances = ordered.softmax(0)
        outweighed = chances.cumsum(0) - chances > sampling.top_p
        scores = scores.masked_fill(torch.zeros_like(outweighed).scatter(0, order, outweighed), float("-inf"))
    return scores.softmax(0)


def sample(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next token's id, from logits [V]."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial(distribution(logits, sampling).cpu(), 1, generator=generator))

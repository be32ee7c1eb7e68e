"""Bits per byte and perplexity of texts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from neoxkit.eval.desk import in_good_order, likelihood_of
from neoxkit.eval.replicas import Model
from neoxkit.log import Progress, Silent
from neoxkit.serve.request import Likelihood

SILENT = Silent()


@dataclass(frozen=True, slots=True)
class Perplexity:
    """How well a model foretells texts: the sum of nats over all their tokens, and what they hold."""

    nats: float
    tokens: int
    bytes: int

    @property
    def bits_per_byte(self) -> float:
        """Bits that the model needs for each byte of UTF-8; comparable between tokenizers, and with a compressor."""
        return self.nats / math.log(2) / self.bytes

    @property
    def per_token(self) -> float:
        """The perplexity: e to the mean nats of a token."""
        return math.exp(self.nats / self.tokens)


def windows(ids: Sequence[int], before: int, context: int) -> Iterator[list[int]]:
    """Rows of at most `context` + 1 tokens, of which all but the first are foretold: each of `ids` once.

    The first token is foretold from the token `before`, the first of a later window from the token
    before it. Example, context 3, ids 5 6 7 8: (before 5 6 7), (7 8).
    """
    row = [before, *ids]
    for first in range(0, len(ids), context):
        yield row[first : first + context + 1]


def perplexity(
    model: Model, texts: Sequence[tuple[Sequence[int], int]], before: int, progress: Progress = SILENT
) -> Perplexity:
    """The perplexity of texts, each given as its ids and its bytes; each begins after the token `before`.

    `progress` is told of tokens.
    """
    cut = [window for ids, _ in texts for window in windows(ids, before, model.facts.context)]
    asks = [likelihood_of(window, len(window) - 1) for window in cut]
    nats = 0.0
    for number, answer in model.answered(in_good_order(asks)):
        assert isinstance(answer, Likelihood)
        nats -= answer.logprob
        progress.advance(len(cut[number]) - 1)
    return Perplexity(nats, sum(len(ids) for ids, _ in texts), sum(size for _, size in texts))

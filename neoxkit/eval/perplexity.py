"""Bits per byte and perplexity of texts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from neoxkit.log import Progress, Silent
from neoxkit.nn.decoder import Decoder
from neoxkit.nn.loss import cross_entropy

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


def windows(ids: Sequence[int], before: int, context: int) -> Iterator[tuple[list[int], list[int]]]:
    """Inputs and labels that foretell each of `ids` once, in windows of at most `context` tokens.

    The first token is foretold from the token `before`, the first of a later window from the token
    before it. Example, context 3, ids 5 6 7 8: (before 5 6 -> 5 6 7), (7 -> 8).
    """
    inputs = [before, *ids[:-1]]
    for first in range(0, len(ids), context):
        yield inputs[first : first + context], list(ids[first : first + context])


@torch.inference_mode()
def perplexity(
    model: Decoder,
    texts: Sequence[tuple[Sequence[int], int]],
    before: int,
    batch_tokens: int = 8192,
    progress: Progress = SILENT,
) -> Perplexity:
    """The perplexity of texts, each given as its ids and its bytes; each begins after the token `before`.

    Windows are batched by length, at most `batch_tokens` tokens at once. `progress` is told of tokens.
    """
    cut = [window for ids, _ in texts for window in windows(ids, before, model.config.context)]
    cut.sort(key=lambda window: -len(window[0]))
    device = model.embed.weight.device
    nats, first = 0.0, 0
    while first < len(cut):
        longest = len(cut[first][0])
        rows = cut[first : first + max(1, batch_tokens // longest)]
        first += len(rows)
        ids, labels = (torch.tensor([row[side] + [0] * (longest - len(row[0])) for row in rows]) for side in (0, 1))
        mask = torch.tensor([[1.0] * len(row[0]) + [0.0] * (longest - len(row[0])) for row in rows])
        hidden = model.hidden(ids.to(device)).flatten(0, 1)
        total, count = cross_entropy(hidden, model.head, labels.flatten().to(device), mask.flatten().to(device))
        nats += total.item()
        progress.advance(int(count.item()))
    return Perplexity(nats, sum(len(ids) for ids, _ in texts), sum(size for _, size in texts))

"""Documents turned so that their middle comes last, for models that are to fill gaps (arXiv 2207.14255)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.integer[Any]]

EXTRA = 3
"""Tokens that a document grows by."""


@dataclass(frozen=True)
class FillInMiddle:
    """A share `rate` of documents is turned, of these `spm_rate` with the suffix first; the ids of three tokens.

    Prefix, suffix, middle: [prefix] P [suffix] S [middle] M. Suffix first: [prefix] [suffix] S [middle] P M, in which
    prefix and middle stay together (section 3 of the paper, its second variant of SPM).
    """

    rate: float
    spm_rate: float
    prefix: int
    middle: int
    suffix: int

    def apply(
        self, ids: Tokens, labels: Tokens | None, end: int | None, generator: np.random.RandomState
    ) -> tuple[Tokens, Tokens | None]:
        """A document, or what of it is in a row, and the labels aligned with it; as given, or turned.

        It is cut at two places of equal chance. The `end` token stays last. The three tokens are learned from.
        """
        if generator.random_sample() >= self.rate:
            return ids, labels
        length = len(ids) - int(len(ids) > 0 and int(ids[-1]) == end)
        first, last = sorted(generator.randint(0, length + 1, size=2).tolist())
        spm = generator.random_sample() < self.spm_rate

        def turned(row: Tokens) -> Tokens:
            before, between, after, rest = row[:first], row[first:last], row[last:length], row[length:]
            prefix, middle, suffix = (np.array([token], np.int64) for token in (self.prefix, self.middle, self.suffix))
            if spm:
                return np.concatenate((prefix, suffix, after, middle, before, between, rest))
            return np.concatenate((prefix, before, suffix, after, middle, between, rest))

        return turned(ids), None if labels is None else turned(labels)

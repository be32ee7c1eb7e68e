"""Documents divided by weights."""

from __future__ import annotations

from collections.abc import Sequence


def borders(weights: Sequence[float], documents: int) -> list[int]:
    """Where the stretches of documents begin that each weight gets, and the end of the last: [weights + 1].

    As in gpt-neox, each share is rounded, halves to even, and what that leaves over is taken off every border but
    the first.
    """
    total = sum(weights)
    found = [0]
    for weight in weights:
        found.append(found[-1] + round(weight / total * float(documents)))
    over = found[-1] - documents
    return [0, *(max(0, border - over) for border in found[1:])]  # below 0 for many weights and few documents alone

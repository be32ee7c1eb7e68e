"""Invertible re-layouts between our tensors and theirs: join(split(x)) == x, bit for bit.

`split` takes their tensors and returns ours, `join` goes back. Both only move elements. The first
dimension of a tensor is its output rows: a bias is laid out as its matrix is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Layout(Protocol):
    """How our tensors lie in theirs."""

    def split(self, theirs: list[Tensor]) -> list[Tensor]:
        """Ours, in the order of the rule's names."""

    def join(self, ours: list[Tensor]) -> list[Tensor]:
        """Theirs, in the order of the rule's names."""


@dataclass(frozen=True)
class Same:
    """One of ours is one of theirs, as it is."""

    def split(self, theirs: list[Tensor]) -> list[Tensor]:
        """Ours is theirs."""
        return theirs

    def join(self, ours: list[Tensor]) -> list[Tensor]:
        """Theirs is ours."""
        return ours


@dataclass(frozen=True)
class PerHead:
    """Our n tensors of [heads * D, ...] are one of theirs, [heads, n, D, ...]: for each head q, k, v.

    Example, 2 heads of 1 row: q = (q0, q1), k and v alike are theirs (q0, k0, v0, q1, k1, v1).
    """

    heads: int
    parts: int = 3

    def split(self, theirs: list[Tensor]) -> list[Tensor]:
        """[heads * parts * D, ...] -> parts tensors of [heads * D, ...]."""
        (fused,) = theirs
        rows, rest = fused.shape[0], fused.shape[1:]
        grouped = fused.reshape(self.heads, self.parts, rows // (self.heads * self.parts), *rest)
        return [grouped[:, part].reshape(rows // self.parts, *rest) for part in range(self.parts)]

    def join(self, ours: list[Tensor]) -> list[Tensor]:
        """parts tensors of [heads * D, ...] -> [heads * parts * D, ...]."""
        rows, rest = ours[0].shape[0], ours[0].shape[1:]
        # Filled, not stacked: on the meta device torch.stack imports half of torch's compiler, for a second.
        grouped = ours[0].new_empty(self.heads, self.parts, rows // self.heads, *rest)
        for index, part in enumerate(ours):
            grouped[:, index] = part.reshape(self.heads, rows // self.heads, *rest)
        return [grouped.reshape(rows * self.parts, *rest)]

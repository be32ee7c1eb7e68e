"""Invertible re-layouts between our tensors and theirs: join(split(x)) == x, bit for bit.

`split` takes their tensors and returns ours, `join` goes back. Both only move elements. The first
dimension of a tensor is its output rows: a bias is laid out as its matrix is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
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
    """Our tensors lie in one of theirs head by head: for each of `heads`, `parts` of the heads of each of ours.

    Example, 2 heads of 1 row: q = (q0, q1), k and v alike are theirs (q0, k0, v0, q1, k1, v1). With
    parts (2, 1, 1), where two query heads share a key, theirs are (q0, q1, k0, v0, q2, q3, k1, v1).
    """

    heads: int
    parts: tuple[int, ...] = (1, 1, 1)

    def split(self, theirs: list[Tensor]) -> list[Tensor]:
        """[heads * sum of parts * D, ...] -> one tensor of [heads * part * D, ...] for each part."""
        (fused,) = theirs
        return [part.reshape(-1, *fused.shape[1:]) for part in self._parts(fused)]

    def join(self, ours: list[Tensor]) -> list[Tensor]:
        """One tensor of [heads * part * D, ...] for each part -> [heads * sum of parts * D, ...]."""
        # Filled, not stacked: on the meta device torch.stack imports half of torch's compiler, for a second.
        fused = ours[0].new_empty(sum(part.shape[0] for part in ours), *ours[0].shape[1:])
        for part, place in zip(ours, self._parts(fused), strict=True):
            place.copy_(part.reshape(place.shape))
        return [fused]

    def _parts(self, fused: Tensor) -> list[Tensor]:
        """Views [heads, part * D, ...]."""
        grouped = fused.reshape(self.heads, fused.shape[0] // self.heads, *fused.shape[1:])
        rows = grouped.shape[1] // sum(self.parts)
        ends = accumulate(self.parts)
        return [grouped[:, (end - part) * rows : end * rows] for part, end in zip(self.parts, ends, strict=True)]


@dataclass(frozen=True)
class Interleaved:
    """Our rows j and j + D / 2 of each head, a pair that rotary positions turn, are theirs 2j and 2j + 1.

    Meta's and Mistral's own files: complex numbers lie there as neighbours. Example, 1 head of 4
    rows: ours (a0, a1, b0, b1) are theirs (a0, b0, a1, b1).
    """

    heads: int

    def split(self, theirs: list[Tensor]) -> list[Tensor]:
        """[heads * D, ...] -> the same shape, pairs apart."""
        return [self._swapped(each, (-1, 2)) for each in theirs]

    def join(self, ours: list[Tensor]) -> list[Tensor]:
        """[heads * D, ...] -> the same shape, pairs side by side."""
        return [self._swapped(each, (2, -1)) for each in ours]

    def _swapped(self, value: Tensor, pairs: tuple[int, int]) -> Tensor:
        return value.reshape(self.heads, *pairs, *value.shape[1:]).transpose(1, 2).reshape(value.shape)


@dataclass(frozen=True)
class Stacked:
    """Ours lie one below the other in one of theirs; `rows` are those of each of ours.

    Example, rows (2, 1, 1): theirs (q0, q1, k0, v0) are q = (q0, q1), k = (k0), v = (v0).
    """

    rows: tuple[int, ...]

    def split(self, theirs: list[Tensor]) -> list[Tensor]:
        """[sum of rows, ...] -> one tensor of each number of rows."""
        (fused,) = theirs
        return self._parts(fused)

    def join(self, ours: list[Tensor]) -> list[Tensor]:
        """One tensor of each number of rows -> [sum of rows, ...]."""
        fused = ours[0].new_empty(sum(self.rows), *ours[0].shape[1:])  # filled, as in PerHead
        for part, place in zip(ours, self._parts(fused), strict=True):
            place.copy_(part)
        return [fused]

    def _parts(self, fused: Tensor) -> list[Tensor]:
        ends = list(accumulate(self.rows))
        return [fused[end - rows : end] for rows, end in zip(self.rows, ends, strict=True)]


@dataclass(frozen=True)
class Transposed:
    """Theirs are matrices [in, out] (GPT-2's Conv1D); turned round, they hold ours as `inner` says."""

    inner: Layout = field(default_factory=Same)

    def split(self, theirs: list[Tensor]) -> list[Tensor]:
        """[in, out] -> what `inner` makes of [out, in]."""
        return self.inner.split([each.t().contiguous() for each in theirs])

    def join(self, ours: list[Tensor]) -> list[Tensor]:
        """What `inner` makes of ours, [out, in] -> [in, out]."""
        return [each.t().contiguous() for each in self.inner.join(ours)]

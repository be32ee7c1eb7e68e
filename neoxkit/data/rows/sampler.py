"""Which rows each rank reads: pure arithmetic, so resuming needs one integer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sampler:
    """How a step's rows are dealt, as in gpt-neox: in order, micro-batch by micro-batch, rank by rank.

    A step takes the same rows for any (micro_batch, accumulation, dp) of the same product.
    """

    micro_batch: int
    accumulation: int = 1
    dp: int = 1

    @property
    def batch(self) -> int:
        """Rows of one optimiser step, over all ranks."""
        return self.micro_batch * self.accumulation * self.dp

    def rows(self, done: int, micro: int, dp_rank: int = 0) -> range:
        """The rows that a data-parallel rank reads in a micro-batch of the step that follows `done` rows.

        `done` is what earlier steps took together: step x batch where the batch never changed. It is
        all that resuming needs, and it stays true when the batch changes. Example: micro_batch 2, dp
        2, done 8, micro 1, dp_rank 1: rows 14 and 15.
        """
        assert 0 <= micro < self.accumulation, micro
        assert 0 <= dp_rank < self.dp, dp_rank
        first = done + (micro * self.dp + dp_rank) * self.micro_batch
        return range(first, first + self.micro_batch)

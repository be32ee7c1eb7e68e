"""How rows are dealt to steps, micro-batches and ranks."""

from __future__ import annotations

import pytest

from neoxkit.data.rows.sampler import Sampler


def step(sampler: Sampler, done: int) -> list[list[int]]:
    return [
        list(sampler.rows(done, micro, rank)) for micro in range(sampler.accumulation) for rank in range(sampler.dp)
    ]


def test_micro_batches_are_dealt_before_ranks_repeat() -> None:
    assert step(Sampler(2, 2, 2), 8) == [[8, 9], [10, 11], [12, 13], [14, 15]]


@pytest.mark.parametrize("cut", [(1, 1, 12), (12, 1, 1), (1, 12, 1), (3, 2, 2), (2, 3, 2)])
def test_a_step_takes_the_same_rows_however_it_is_cut(cut: tuple[int, int, int]) -> None:
    sampler = Sampler(*cut)
    assert sampler.batch == 12
    assert [row for part in step(sampler, 24) for row in part] == list(range(24, 36))

"""What a tape writes down is done as it would have been at once, for any number of tokens, and nothing else is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from neoxkit.native import ops
from neoxkit.native.program import ALIGNMENT, UnknownOperationError, place

pytestmark = pytest.mark.skipif(not ops.available(), reason="there is no C++ compiler")


def layers(x: Tensor, products: list[ops.Panels], weight: Tensor) -> Tensor:
    """Something like a model, with nothing but what a tape knows."""
    for product in products:
        x = x + product(ops.rms_norm(x, weight, 1e-5))
        left, right = x.split((8, 16), dim=-1)
        assert left.shape[-1] == 8
        assert right.shape[-1] == 16
        x = ops.activated("gelu", x.view(1, -1, 3, 8).flatten(-2)) + x
    return x


@torch.inference_mode()
def test_a_program_does_what_was_written_down() -> None:
    drawn = torch.Generator().manual_seed(3)
    products = [ops.Panels(torch.randn(24, 24, generator=drawn) / 5) for _ in range(6)]
    weight = torch.rand(24, generator=drawn)
    stream = torch.zeros(1, 9, 24)
    with ops.listen() as tape:
        result = layers(stream[:, :2], products, weight)
    program = tape.program(result, 2, 9)
    for tokens in (1, 2, 5, 9, 3):
        x = torch.randn(1, tokens, 24, generator=drawn)
        stream[:, :tokens] = x
        assert torch.equal(program.run(tokens), layers(x, products, weight))


@torch.inference_mode()
def test_a_tape_refuses_what_it_does_not_know() -> None:
    x = torch.ones(1, 2, 8)
    unknown = (
        lambda: x * 2,
        lambda: torch.add(x, x, alpha=2),
        lambda: x.transpose(1, 2).reshape(1, 2, 8),
        lambda: x.sum(),
    )
    for act in unknown:
        with pytest.raises(UnknownOperationError), ops.listen():
            act()
    assert torch.equal(ops.add(x, x), 2 * x), "afterwards things are done again"


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6), st.integers(1, 500)), max_size=14))
def test_results_of_one_time_lie_apart(drawn: list[tuple[int, int, int]]) -> None:
    lives = {index: (first, first + more) for index, (first, more, _) in enumerate(drawn)}
    sizes = {index: size for index, (_, _, size) in enumerate(drawn)}
    offsets, total = place(lives, sizes)
    for one in lives:
        assert offsets[one] % ALIGNMENT == 0
        assert offsets[one] + sizes[one] <= total
        for other in lives:
            if one < other and lives[one][0] <= lives[other][1] and lives[other][0] <= lives[one][1]:
                apart = offsets[one] + sizes[one] <= offsets[other] or offsets[other] + sizes[other] <= offsets[one]
                assert apart, (lives, sizes, offsets)


def test_memory_is_used_again() -> None:
    assert place({0: (0, 1), 1: (1, 2), 2: (2, 3)}, {0: 64, 1: 64, 2: 64}) == ({0: 0, 1: 64, 2: 0}, 128)

"""Law 3: join(split(x)) is x, and split(join(y)) is y, bit for bit."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from neoxkit.families.layout import PerHead, Same

SIZES = st.integers(1, 5)


@given(heads=SIZES, parts=SIZES, rows=SIZES, columns=st.one_of(st.none(), SIZES))
def test_per_head(heads: int, parts: int, rows: int, columns: int | None) -> None:
    shape = (heads * parts * rows,) if columns is None else (heads * parts * rows, columns)
    theirs = torch.randn(shape)
    layout = PerHead(heads, parts)
    ours = layout.split([theirs])
    assert len(ours) == parts
    assert torch.equal(layout.join(ours)[0], theirs)
    again = layout.split(layout.join(ours))
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))


def test_per_head_interleaves_by_head() -> None:
    """The example of the docstring: 2 heads of 1 row."""
    theirs = torch.tensor([[10], [20], [30], [11], [21], [31]])  # q0 k0 v0 q1 k1 v1
    q, k, v = PerHead(heads=2).split([theirs])
    assert (q.flatten().tolist(), k.flatten().tolist(), v.flatten().tolist()) == ([10, 11], [20, 21], [30, 31])


def test_same() -> None:
    x = [torch.randn(2)]
    assert Same().split(x) is x
    assert Same().join(x) is x

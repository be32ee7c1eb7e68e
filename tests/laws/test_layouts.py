"""Law 3: join(split(x)) is x, and split(join(y)) is y, bit for bit."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from neoxkit.families.layout import PerHead, Same, Stacked, Transposed

SIZES = st.integers(1, 5)


@given(heads=SIZES, parts=st.lists(SIZES, min_size=1, max_size=4), rows=SIZES, columns=st.one_of(st.none(), SIZES))
def test_per_head(heads: int, parts: list[int], rows: int, columns: int | None) -> None:
    shape = (heads * sum(parts) * rows, *([] if columns is None else [columns]))
    theirs = torch.randn(shape)
    layout = PerHead(heads, tuple(parts))
    ours = layout.split([theirs])
    assert [each.shape[0] for each in ours] == [heads * part * rows for part in parts]
    assert torch.equal(layout.join(ours)[0], theirs)
    again = layout.split(layout.join(ours))
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))


def test_per_head_interleaves_by_head() -> None:
    """The examples of the docstring: heads of 1 row."""
    theirs = torch.tensor([[10], [20], [30], [11], [21], [31]])  # q0 k0 v0 q1 k1 v1
    q, k, v = PerHead(heads=2).split([theirs])
    assert (q.flatten().tolist(), k.flatten().tolist(), v.flatten().tolist()) == ([10, 11], [20, 21], [30, 31])
    q, k, v = PerHead(2, (2, 1, 1)).split([torch.tensor([10, 11, 20, 30, 12, 13, 21, 31])])
    assert (q.tolist(), k.tolist(), v.tolist()) == ([10, 11, 12, 13], [20, 21], [30, 31])


def test_same() -> None:
    x = [torch.randn(2)]
    assert Same().split(x) is x
    assert Same().join(x) is x


@given(rows=st.lists(SIZES, min_size=1, max_size=4), columns=st.one_of(st.none(), SIZES), turned=st.booleans())
def test_stacked(rows: list[int], columns: int | None, turned: bool) -> None:
    turned = turned and columns is not None
    layout = Transposed(Stacked(tuple(rows))) if turned else Stacked(tuple(rows))
    theirs = torch.randn(sum(rows) if columns is None else (columns, sum(rows)) if turned else (sum(rows), columns))
    ours = layout.split([theirs])
    assert [each.shape[0] for each in ours] == rows
    assert torch.equal(layout.join(ours)[0], theirs)
    assert layout.join(ours)[0].is_contiguous()
    again = layout.split(layout.join(ours))
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))


def test_stacked_is_one_below_the_other() -> None:
    q, k, v = Stacked((2, 1, 1)).split([torch.arange(4)])
    assert (q.tolist(), k.tolist(), v.tolist()) == ([0, 1], [2], [3])


def test_transposed() -> None:
    theirs = torch.tensor([[1, 2, 3], [4, 5, 6]])
    (ours,) = Transposed().split([theirs])
    assert ours.tolist() == [[1, 4], [2, 5], [3, 6]]
    assert torch.equal(Transposed().join([ours])[0], theirs)

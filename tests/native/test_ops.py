"""Native functions compute what torch does, whatever the sizes, and the same for a token whoever stands beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from neoxkit.native import ops
from neoxkit.nn.mlp import ACTIVATIONS
from neoxkit.nn.position import Rotation, rotate

pytestmark = pytest.mark.skipif(not ops.available(), reason="there is no C++ compiler")

TOKENS = (1, 2, 3, 5, 6, 7, 13, 49)
"""Around the sizes of tiles, and of what stays in a cache."""


@pytest.fixture
def drawn() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def close(found: Tensor, wanted: Tensor, error: float = 1e-5) -> None:
    torch.testing.assert_close(found, wanted, atol=error, rtol=error)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 3), (16, 8), (31, 576), (70, 1025), (33, 2)])
def test_linear(dtype: torch.dtype, outputs: int, inputs: int, drawn: torch.Generator) -> None:
    weight = torch.randn(outputs, inputs, generator=drawn).to(dtype)
    bias = torch.randn(outputs, generator=drawn)
    for tokens in TOKENS:
        x = torch.randn(1, tokens, inputs, generator=drawn)
        for added in (None, bias):
            found = ops.Panels(weight.clone(), added)(x)
            close(found, F.linear(x, weight.float(), added), 1e-4)
    ids = torch.tensor([[outputs - 1, 0, outputs // 2]])
    assert torch.equal(ops.Panels(weight.clone()).rows(ids), weight.float()[ids])


def test_panels_take_the_memory_of_the_weight(drawn: torch.Generator) -> None:
    """All but what does not fill one: a model is not there twice while it is made ready."""
    weight = torch.randn(100, 700, generator=drawn)
    product = ops.Panels(weight)
    before = product.rows(torch.tensor([0, 99]))
    weight.zero_()
    after = product.rows(torch.tensor([0, 99]))
    assert before.all()
    assert not after[0].any()
    assert torch.equal(before[1], after[1])


def test_linear_of_all_numbers_of_half_precision() -> None:
    """Subnormal numbers, infinities and what is no number are widened as torch does."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        weight = every.view(dtype)[:, None]
        found = ops.Panels(weight.clone())(torch.ones(1, 1, 1))[0, 0]
        torch.testing.assert_close(found, weight.float()[:, 0], atol=0, rtol=0, equal_nan=True)


def test_a_token_does_not_depend_on_others(drawn: torch.Generator) -> None:
    """Bit for bit: so an answer is the same in any batch, and with any number of threads."""
    weight, x = torch.randn(100, 700, generator=drawn).bfloat16(), torch.randn(1, 50, 700, generator=drawn)
    product = ops.Panels(weight)
    alone = torch.cat([product(x[:, each : each + 1]) for each in range(50)], dim=1)
    for count in (1, 2, 3):
        with threads(count):
            assert torch.equal(product(x), alone)


@pytest.mark.parametrize("width", [1, 7, 8, 64, 100])
def test_norms(width: int, drawn: torch.Generator) -> None:
    weight, bias = torch.randn(2, width, generator=drawn)
    for tokens in TOKENS[:4]:
        x = torch.randn(1, tokens, width, generator=drawn) * 3 + 1
        close(ops.rms_norm(x, weight, 1e-5), F.rms_norm(x, (width,), weight, 1e-5))
        for added in (None, bias):
            close(ops.layer_norm(x, weight, added, 1e-5), F.layer_norm(x, (width,), weight, added, 1e-5), 1e-4)
        heads = torch.randn(1, tokens, 6, width, generator=drawn)[:, :, 1:4]  # as queries lie beside keys
        close(ops.rms_norm(heads, weight, 1e-5), F.rms_norm(heads, (width,), weight, 1e-5))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str, drawn: torch.Generator) -> None:
    x = torch.cat([torch.linspace(-100, 100, 2003), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 88.5, -88.5])])[None, None]
    close(ops.activated(name, x), ACTIVATIONS[name](x), 1e-6)
    fused = torch.randn(1, 3, 2 * 77, generator=drawn) * 4
    gate, up = fused.chunk(2, dim=-1)
    close(ops.gated(name, fused), ACTIVATIONS[name](gate) * up)
    wrong = torch.full((1, 1, 9), float("nan"))
    assert ops.activated(name, wrong).isnan().all(), "what is no number stays so"


@pytest.mark.parametrize("rotated", [0, 4, 20, 32])
def test_enter(rotated: int, drawn: torch.Generator) -> None:
    fused = torch.randn(1, 5, 8, 32, generator=drawn)
    q, k, v = fused.split((4, 2, 2), dim=2)
    angles = torch.randn(1, 5, 1, rotated // 2, generator=drawn)
    by = Rotation(angles.cos(), angles.sin()) if rotated else None
    wanted = (q.clone(), k.clone()) if by is None else (rotate(q, by), rotate(k, by))
    keys, values = torch.zeros(2, 3, 4, 2, 32)
    slots = torch.tensor([4, 0, 11, 7, 2])
    ops.enter(q, k, v, by, slots, keys, values)
    close(q, wanted[0], 1e-6)
    close(keys.view(12, 2, 32)[slots], wanted[1][0], 1e-6)
    assert torch.equal(values.view(12, 2, 32)[slots], v[0])
    assert not keys.view(12, 2, 32)[[1, 3, 5, 6, 8, 9, 10]].any(), "other slots are left alone"


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 8), (9, 3, 64), (5, 1, 20), (8, 2, 3)])
@pytest.mark.parametrize("window", [None, 1, 6])
@pytest.mark.parametrize("alibi", [False, True])
def test_attend(heads: int, kv_heads: int, dim: int, window: int | None, alibi: bool, drawn: torch.Generator) -> None:
    """Against softmax(q k / sqrt(D) - slope x distance) v, written out; alone and with others; any threads."""
    size, lengths = 4, torch.tensor([1, 4, 5, 18, 33, 8])
    pages = torch.randperm(60, generator=drawn)[:54].view(6, 9)
    keys, values = torch.randn(2, 60, size, kv_heads, dim, generator=drawn) * 2
    q = torch.randn(6, heads + 3, dim, generator=drawn)[:, :heads]
    slopes = torch.rand(heads, generator=drawn) if alibi else None
    out = torch.empty(6, heads, dim)
    ops.attend(q, keys, values, pages, lengths, window, slopes, out)
    for text, length in enumerate(lengths.tolist()):
        first = 0 if window is None else max(0, length - window)
        k, v = (
            pool[pages[text]].flatten(0, 1)[first:length].repeat_interleave(heads // kv_heads, dim=1)
            for pool in (keys, values)
        )
        scores = torch.einsum("hd,shd->hs", q[text], k) / dim**0.5
        if slopes is not None:
            scores = scores - slopes[:, None] * torch.arange(length - 1 - first, -1, -1)
        close(out[text], torch.einsum("hs,shd->hd", scores.softmax(-1), v))
        alone = torch.empty(1, heads, dim)
        one = slice(text, text + 1)
        with threads(1 + text % 3):
            ops.attend(q[one], keys, values, pages[one], lengths[one], window, slopes, alone)
        assert torch.equal(alone[0], out[text]), "whoever else is there"


def test_add(drawn: torch.Generator) -> None:
    a, b = torch.randn(2, 1, 3, 50, generator=drawn)
    assert torch.equal(ops.add(a, b), a + b)

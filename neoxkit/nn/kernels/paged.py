"""Attention to keys and values that lie in pages, for tokens of several texts in one row.

Shapes: T tokens of the pass, N texts of one batch, S keys, H query heads, G key/value heads, R = H / G, D head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import signature
from itertools import chain
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from neoxkit.native import ops as native
from neoxkit.native.program import new as native_new
from neoxkit.nn.kernels.flash import FLASH
from neoxkit.nn.kernels.sight import Prepared, Setting

NEAR = 256
"""Code of our own attends to tokens one by one. Where a text gets several at once, that is fast up to this length: on
their way through a longer one, torch's code reads its keys less often."""

WASTE = 2
"""Texts are attended to in one batch when the longest has at most so many times the pages of the shortest."""


@dataclass(frozen=True, slots=True)
class Packing:
    """Whose tokens the row of a pass holds, text after text, and where their keys and values lie.

    Text n has `counts[n]` tokens in the row and is `lengths[n]` tokens long with them. Its t-th token lies in page
    `tables[n, t // size]`, at offset t % size; rows of shorter texts are filled up with 0. `slots` are the places of
    the row's own tokens: page x size + offset. Texts with one token come first. `ready` is what layers attend
    with, where that was made already.
    """

    counts: Sequence[int]
    lengths: Sequence[int]
    tables: Tensor  # int [N, P]
    slots: Tensor  # int [T]
    size: int
    ready: Prepared | None = None

    @property
    def singles(self) -> int:
        """How many texts have one token."""
        return sum(count == 1 for count in self.counts)

    @property
    def near(self) -> int:
        """How many texts come before the first that has several tokens and is longer than NEAR."""
        sizes = enumerate(zip(self.counts, self.lengths, strict=True))
        return next((n for n, (count, length) in sizes if count > 1 and length > NEAR), len(self.counts))

    def one_by_one(self, texts: int) -> tuple[Tensor, Tensor]:
        """The tokens of the first texts as if each were the last of a text: tables int64 [t, P], and lengths [t]."""
        counts, lengths = self.counts[:texts], self.lengths[:texts]
        if texts <= self.singles:
            return self.tables[:texts], torch.tensor(lengths)
        tables = self.tables[:texts].repeat_interleave(torch.tensor(counts), 0)
        each = (range(length - count + 1, length + 1) for count, length in zip(counts, lengths, strict=True))
        return tables, torch.tensor(list(chain.from_iterable(each)))


class Singles(NamedTuple):
    """Texts with one token each: tokens `first` to `last` of the row, their pages, and what is added to scores.

    Texts of the same length see `keys` keys and nothing is added; others see those of all their pages but for a bias.
    """

    first: int
    last: int
    pages: Tensor  # int [N x P]
    keys: int | None
    bias: Tensor | None  # [N, 1, 1, S], or [N, G, R, S] with ALiBi


class Chunk(NamedTuple):
    """Tokens `first` to `last` of the row are those of one text; its pages, its keys, and what each token sees."""

    first: int
    last: int
    pages: Tensor  # int [P]
    keys: int
    bias: Tensor | None  # [1, 1 or H, T, S]; None is plain causal


class Gathered:
    """Attention by copies: keys of a text are brought together from its pages, then torch's attention is used.

    Of a single token, the query heads that share a key head are told as so many tokens: nothing is copied for them.
    """

    def __init__(self, singles: Sequence[Singles], chunks: Sequence[Chunk]) -> None:
        self.singles, self.chunks = singles, chunks

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of q [1, T, H, D] to keys and values in pages, [pages, size, G, D], as q."""
        # What one of them attends to alone need not be put together.
        covers = [each.last - each.first for each in self.singles] + [each.last - each.first for each in self.chunks]
        if covers == [q.shape[1]]:
            each = [self._single(q, k, v, batch) for batch in self.singles]
            return (each or [self._chunk(q, k, v, chunk) for chunk in self.chunks])[0]
        mixed = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        for batch in self.singles:
            mixed[:, batch.first : batch.last] = self._single(q, k, v, batch)
        for chunk in self.chunks:
            mixed[:, chunk.first : chunk.last] = self._chunk(q, k, v, chunk)
        return mixed

    def _single(self, q: Tensor, k: Tensor, v: Tensor, batch: Singles) -> Tensor:
        rows, heads, dim = batch.last - batch.first, q.shape[2], q.shape[3]
        k, v = (_bring(x, batch.pages, rows)[:, : batch.keys].transpose(1, 2) for x in (k, v))
        q = q[0, batch.first : batch.last].reshape(rows, k.shape[1], -1, dim)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=batch.bias).reshape(1, rows, heads, dim)

    def _chunk(self, q: Tensor, k: Tensor, v: Tensor, chunk: Chunk) -> Tensor:
        q = q[:, chunk.first : chunk.last].transpose(1, 2)
        k, v = (_bring(x, chunk.pages, 1)[:, : chunk.keys].transpose(1, 2) for x in (k, v))
        if (groups := q.shape[1] // k.shape[1]) > 1:
            k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
        causal = chunk.bias is None
        return F.scaled_dot_product_attention(q, k, v, attn_mask=chunk.bias, is_causal=causal).transpose(1, 2)


def _bring(pool: Tensor, pages: Tensor, rows: int) -> Tensor:
    """Pages of a pool [pages, size, G, D], in order, as [rows, P x size, G, D]."""
    return pool.flatten(1).index_select(0, pages).view(rows, -1, *pool.shape[2:])


class PagedNative(NamedTuple):
    """Attention by code of our own for a CPU: the first t tokens, each by itself, read keys where they lie."""

    tables: Tensor  # int64 [t, P]
    lengths: Tensor  # int64 [t], of the texts up to these tokens
    window: int | None
    slopes: Tensor | None
    rest: Gathered  # the other tokens

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As Gathered."""
        count = len(self.lengths)
        mixed = native_new(*q.shape) if count == q.shape[1] else self.rest.attend(q, k, v)
        native.attend(q[0, :count], k, v, self.tables, self.lengths, self.window, self.slopes, mixed[0])
        return mixed


class PagedFlash(NamedTuple):
    """FlashAttention, which reads pages where they lie."""

    begins: Tensor  # int32 [N + 1], where texts begin in the row
    ends: Tensor  # int32 [N + 1], where they would begin if all their tokens were in one
    lengths: Tensor  # int32 [N]
    tables: Tensor  # int32 [N, P]
    most: int  # tokens of a text in the row
    longest: int
    before: int  # how many keys before its own a token sees; -1 is all

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As Gathered."""
        from torch.nn.attention.varlen import varlen_attn

        mixed = varlen_attn(
            q[0], k, v, self.begins, self.ends, self.most, self.longest,
            window_size=(self.before, 0), enable_gqa=q.shape[2] != k.shape[2],
            seqused_k=self.lengths, block_table=self.tables,
        )  # fmt: skip
        assert isinstance(mixed, Tensor)
        return mixed[None]


FLASH_PAGE = 256
"""Tokens of a page that FlashAttention 2 reads: a multiple of this."""


@cache
def reads_pages() -> bool:
    """Whether torch's flash attention takes pages: that of its older releases does not."""
    from torch.nn.attention.varlen import varlen_attn

    return "block_table" in signature(varlen_attn).parameters


def prepare_paged(
    packing: Packing, window: int | None, slopes: Tensor | None, setting: Setting, kv_heads: int
) -> Prepared:
    """What the layers of a pass attend with. `slopes` [H] are ALiBi's; `window` counts the token itself."""
    dtype = setting.dtype
    if slopes is None and packing.size % FLASH_PAGE == 0 and reads_pages() and FLASH.lacks(setting) is None:
        device = packing.tables.device
        sizes = torch.tensor([packing.counts, packing.lengths], dtype=torch.int32)
        begins, ends = F.pad(sizes.cumsum(1, dtype=torch.int32), (1, 0)).to(device)
        lengths = sizes[1].to(device)
        most, longest = max(packing.counts), max(packing.lengths)
        before = -1 if window is None else window - 1
        return PagedFlash(begins, ends, lengths, packing.tables.int(), most, longest, before)
    grouped = None if slopes is None else slopes.view(1, kv_heads, -1, 1)
    native_texts = packing.near if native.takes(dtype, setting.device) else 0
    begin = native_texts or packing.singles
    chunks = []
    first = sum(packing.counts[:begin])
    for text in range(begin, len(packing.counts)):
        chunks.append(_chunk_of(packing, text, first, window, slopes, dtype))
        first += packing.counts[text]
    if native_texts:
        return PagedNative(*packing.one_by_one(native_texts), window, slopes, Gathered([], chunks))
    singles = [_single_batch(packing, first, last, window, grouped, dtype) for first, last in batches(packing)]
    return Gathered(singles, chunks)


def batches(packing: Packing) -> Iterator[tuple[int, int]]:
    """Runs of the texts with one token whose lengths are alike. They come in order of length, so runs are few."""
    first = 0
    used = [-(-length // packing.size) for length in packing.lengths[: packing.singles]]
    for text in range(1, len(used) + 1):
        run = used[first : text + 1]
        if text == len(used) or max(run) > WASTE * min(run):
            yield first, text
            first = text


def _single_batch(
    packing: Packing, first: int, last: int, window: int | None, slopes: Tensor | None, dtype: torch.dtype
) -> Singles:
    lengths = packing.lengths[first:last]
    wide = -(-max(lengths) // packing.size)
    device = packing.tables.device
    pages = packing.tables[first:last, :wide].reshape(-1)
    if slopes is None and min(lengths) == max(lengths) and (window is None or window >= lengths[0]):
        return Singles(first, last, pages, lengths[0], None)
    own = torch.tensor(lengths, device=device)[:, None] - 1
    distance = own - torch.arange(wide * packing.size, device=device)
    bias = _bias(distance, window, dtype)[:, None, None]
    if slopes is not None:
        bias = (bias.float() - slopes * distance[:, None, None]).to(dtype)
    return Singles(first, last, pages, None, bias)


def _chunk_of(
    packing: Packing, text: int, first: int, window: int | None, slopes: Tensor | None, dtype: torch.dtype
) -> Chunk:
    count, length = packing.counts[text], packing.lengths[text]
    pages = packing.tables[text, : -(-length // packing.size)]
    bias = None
    if slopes is not None or count < length or (window is not None and window < length):
        device = packing.tables.device
        distance = torch.arange(length - count, length, device=device)[:, None] - torch.arange(length, device=device)
        bias = _bias(distance, window, dtype)[None, None]
        if slopes is not None:
            bias = (bias.float() - slopes.view(1, -1, 1, 1) * distance).to(dtype)
    return Chunk(first, first + count, pages, length, bias)


def _bias(distance: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """What is added to scores of keys at a distance: 0, or -inf where they are not seen."""
    unseen = distance < 0
    if window is not None:
        unseen = unseen | (distance >= window)
    return torch.zeros(distance.shape, dtype=dtype, device=distance.device).masked_fill(unseen, float("-inf"))

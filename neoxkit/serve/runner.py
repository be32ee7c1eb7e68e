"""A pass of the model over tokens of several texts, the same on every rank.

Shapes: T tokens of the pass, N texts, P pages of the longest, R rows whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neoxkit.nn.decoder import Decoder
from neoxkit.nn.kernels.paged import Packing
from neoxkit.nn.paged import PagedState
from neoxkit.nn.step import build_step
from neoxkit.serve.scheduler import Work

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass, in integers: the tokens and their positions, whose they are, and which of them need logits.

    `counts`, `lengths` and `tables` are those of a Packing. `wanted` are indices into `ids`.
    """

    ids: Integers  # [T]
    positions: Integers  # [T]
    counts: Integers  # [N]
    lengths: Integers  # [N]
    tables: Integers  # [N, P]
    wanted: Integers  # [R]

    def pack(self) -> Integers:
        """All of it as one row of integers, to be sent."""
        sizes = [len(self.ids), *self.tables.shape, len(self.wanted)]
        parts = (self.ids, self.positions, self.counts, self.lengths, self.tables.ravel(), self.wanted)
        return np.concatenate([np.array(sizes, dtype=np.int64), *parts])

    @staticmethod
    def unpack(row: Integers) -> Pass:
        """The pass that was packed."""
        tokens, texts, pages, wanted = (int(size) for size in row[:4])
        ends = np.cumsum([4, tokens, tokens, texts, texts, texts * pages, wanted])
        parts = [row[first:last] for first, last in pairwise(ends.tolist())]
        return Pass(parts[0], parts[1], parts[2], parts[3], parts[4].reshape(texts, pages), parts[5])


def pass_of(works: Sequence[Work], wanted: Sequence[int]) -> Pass:
    """The pass that does these works, with logits after the tokens of these indices in its row."""
    pages = max(len(work.text.pages) for work in works)
    tables = np.zeros((len(works), pages), dtype=np.int64)
    ids: list[int] = []
    positions: list[int] = []
    for index, (text, count) in enumerate(works):
        first, last = text.computed, text.computed + count
        ids += text.ids[first:last]
        positions += range(first, last)
        tables[index, : len(text.pages)] = text.pages
    counts = np.array([work.tokens for work in works], dtype=np.int64)
    lengths = np.array([work.text.computed + work.tokens for work in works], dtype=np.int64)
    row, places, rows = (np.array(each, dtype=np.int64) for each in (ids, positions, wanted))
    return Pass(row, places, counts, lengths, tables, rows)


class Runner:
    """A model, and the pages that remember what it has read."""

    def __init__(self, model: Decoder, pages: int, size: int, tokens: int = 0) -> None:
        """Room for `pages` pages of `size` tokens each, and one program for passes of up to `tokens` tokens."""
        self.model, self.pages, self.size = model, pages, size
        self.device = model.embed.weight.device
        self.state = PagedState(model.config, pages, size, model.dtype, self.device, model.kv_heads)
        self.step = build_step(model, self.state, tokens) if tokens else None

    @torch.inference_mode()
    def run(self, what: Pass) -> Tensor:
        """Logits [R, V] after the tokens that are wanted."""
        texts = np.repeat(np.arange(len(what.counts)), what.counts)
        slots = what.tables[texts, what.positions // self.size] * self.size + what.positions % self.size
        ids, positions, tables, places, wanted = (
            torch.from_numpy(np.ascontiguousarray(each)).to(self.device, non_blocking=True)
            for each in (what.ids, what.positions, what.tables, slots, what.wanted)
        )
        packing = Packing(what.counts.tolist(), what.lengths.tolist(), tables, places, self.size)
        if self.step is not None and self.step.takes(packing):
            hidden = self.step.run(ids, positions, packing)
        else:
            self.state.begin(packing)
            hidden = self.model.hidden(ids[None], positions[None], state=self.state)[0]
        in_order = np.array_equal(what.wanted, np.arange(len(what.ids)))
        rows = hidden if in_order else hidden.index_select(0, wanted)
        logits: Tensor = self.model.head(rows)
        return logits

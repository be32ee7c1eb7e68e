"""Passes that decode, recorded as CUDA graphs: what Python and the launch of kernels take is paid once.

A graph is replayed on the tensors that it was recorded with, so the pass is copied into them, and filled up to the
size of the graph with texts of one token that lie in a page of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from neoxkit.config.model import Alibi
from neoxkit.errors import ConfigError
from neoxkit.nn.kernels import describe
from neoxkit.nn.kernels.flash import FLASH
from neoxkit.nn.kernels.paged import FLASH_PAGE, Packing, PagedFlash, reads_pages
from neoxkit.serve.runner import Pass, Runner

Forward = Callable[[], Tensor]
Record = Callable[[Forward], tuple[Callable[[], None], Tensor]]
"""Takes what computes logits from fixed tensors; gives what computes them again, and the tensor that they come in."""


class Recorded(NamedTuple):
    """A graph for so many texts, and the tensors that it reads and writes."""

    ids: Tensor  # [N]
    positions: Tensor  # [N]
    slots: Tensor  # [N]
    ends: Tensor  # int32 [N + 1], sums of the lengths
    lengths: Tensor  # int32 [N]
    tables: Tensor  # int32 [N, P]
    logits: Tensor  # [N, V]
    replay: Callable[[], None]


class Recorder:
    """A runner whose passes of one token for each text are recorded, for 1, 2, 4 ... texts."""

    def __init__(self, runner: Runner, batch: int, record: Record | None = None) -> None:
        """For up to `batch` texts; more are run as they come. The last page of `runner` is not for texts."""
        self._runner, self._record = runner, record or record_graph
        self._batch = batch
        self._graphs: dict[int, Recorded] = {}
        config = runner.model.config
        self._window = config.mixer.window
        self._pages = -(-config.context // runner.size)
        self.model, self.size, self.pages = runner.model, runner.size, runner.pages - 1

    @property
    def recorded(self) -> list[int]:
        """For how many texts there are graphs."""
        return sorted(self._graphs)

    @torch.inference_mode()
    def run(self, what: Pass) -> Tensor:
        """As that of Runner. The logits are overwritten by the next pass."""
        texts = len(what.ids)
        decodes = len(what.counts) == texts and np.array_equal(what.wanted, np.arange(texts))
        if not decodes or texts > self._batch:
            return self._runner.run(what)
        size = 1 << (texts - 1).bit_length()
        if size not in self._graphs:
            self._graphs[size] = self._make(size)
        graph = self._graphs[size]
        slots = what.tables[np.arange(texts), what.positions // self.size] * self.size + what.positions % self.size
        self._fill(graph, texts, what, slots)
        graph.replay()
        return graph.logits[:texts]

    def _fill(self, graph: Recorded, texts: int, what: Pass, slots: np.ndarray) -> None:
        """Copy a pass into the tensors of a graph."""
        for tensor, values, rest in (
            (graph.ids, what.ids, 0),
            (graph.positions, what.positions, 0),
            (graph.slots, slots, self.pages * self.size),
            (graph.lengths, what.lengths, 1),
        ):
            filled = np.full(len(tensor), rest, dtype=np.int64)
            filled[:texts] = values
            tensor.copy_(torch.from_numpy(filled), non_blocking=True)
        graph.ends[1:] = graph.lengths.cumsum(0)
        wide = what.tables.shape[1]
        graph.tables[:texts, :wide] = torch.from_numpy(what.tables).to(graph.tables.device, torch.int32)
        graph.tables[texts:, 0] = self.pages

    def _make(self, size: int) -> Recorded:
        """Record a pass of so many texts."""
        device = self._runner.device
        ids, positions = (torch.zeros(size, dtype=torch.int64, device=device) for _ in range(2))
        slots = torch.full((size,), self.pages * self.size, dtype=torch.int64, device=device)
        lengths = torch.ones(size, dtype=torch.int32, device=device)
        tables = torch.full((size, self._pages), self.pages, dtype=torch.int32, device=device)
        begins, ends = (torch.arange(size + 1, dtype=torch.int32, device=device) for _ in range(2))
        before = -1 if self._window is None else self._window - 1
        ready = PagedFlash(begins, ends, lengths, tables, 1, self._pages * self.size, before)
        packing = Packing([1] * size, [1] * size, tables, slots, self.size, ready)
        model, state = self.model, self._runner.state

        def forward() -> Tensor:
            state.begin(packing)
            logits: Tensor = model.head(model.hidden(ids[None], positions[None], state=state)[0])
            return logits

        replay, logits = self._record(forward)
        return Recorded(ids, positions, slots, ends, lengths, tables, logits, replay)


def record_graph(forward: Forward) -> tuple[Callable[[], None], Tensor]:
    """Record on a CUDA device; it is run before, for what libraries set up when they are called first."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            forward()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = forward()
    return graph.replay, logits


def check_recording(runner: Runner, ranks: int) -> None:
    """Raise ConfigError where passes cannot be recorded."""
    config, remedy = runner.model.config, "leave --compile out"
    if runner.device.type != "cuda":
        raise ConfigError("--compile records CUDA graphs, and the model runs on a CPU", remedy)
    if ranks > 1:
        raise ConfigError("--compile with --tp: passes of several ranks are not recorded", remedy)
    if isinstance(config.position, Alibi):
        raise ConfigError("--compile: no kernel that can be recorded has ALiBi", remedy)
    setting = describe(runner.device, runner.model.dtype, config.mixer.head_dim, learns=False)
    if (reason := FLASH.lacks(setting)) is not None:
        raise ConfigError(f"--compile: flash attention is recorded, and {reason}", remedy)
    if not reads_pages():
        raise ConfigError("--compile: flash attention of this release of torch reads no pages", remedy)
    assert runner.size % FLASH_PAGE == 0, "a page that flash attention does not read"

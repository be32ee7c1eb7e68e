"""A pass of a model on a CPU as one program of native code.

What Python and a team of threads cost for each of some hundred operations is then paid once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from neoxkit.native import ops as native
from neoxkit.native.program import Program, UnknownOperationError
from neoxkit.nn.attention import Context, slopes_of
from neoxkit.nn.decoder import Decoder
from neoxkit.nn.kernels.paged import Gathered, Packing, PagedNative
from neoxkit.nn.paged import PagedState
from neoxkit.nn.position import Rotation, rotation

WRITTEN = 2
"""Tokens for which a program is written; of one, strides would say nothing."""


class Step(NamedTuple):
    """A program, and what it reads: each of these is for up to `most` tokens."""

    model: Decoder
    program: Program
    stream: Tensor  # [1, most, width]
    turned: Rotation | None  # each [1, most, 1, R / 2]
    slots: Tensor  # [most]
    tables: Tensor  # [most, P]
    lengths: Tensor  # [most]

    def takes(self, packing: Packing) -> bool:
        """Whether these tokens can be passed through it."""
        return packing.near == len(packing.counts) and len(packing.slots) <= len(self.lengths)

    def run(self, ids: Tensor, positions: Tensor, packing: Packing) -> Tensor:
        """The stream after the final norm [T, width], there until the next pass, of `ids` [T] at `positions` [T]."""
        tables, lengths = packing.one_by_one(len(packing.counts))
        count, wide = tables.shape
        self.stream[:, :count] = self.model.embedded(ids[None], positions[None])
        if self.turned is not None:
            angles = rotation(self.model.config, positions[None], self.stream.dtype)
            assert angles is not None
            for mine, each in zip(self.turned, angles, strict=True):
                mine[:, :count] = each
        self.slots[:count] = packing.slots
        self.tables[:count, :wide] = tables
        self.lengths[:count] = lengths
        return self.program.run(count)[0]


@torch.inference_mode()
def build_step(model: Decoder, state: PagedState, most: int) -> Step | None:
    """The step of a model made ready by `pack`, for up to `most` tokens.

    None where there is none: no native code, or a model that asks torch for something else.
    """
    keys = state.layers[0].keys
    if not native.takes(keys.dtype, keys.device.type) or model.division.tp is not None:
        return None
    config, most = model.config, max(WRITTEN, most)
    positions = torch.zeros(1, most, dtype=torch.int64)
    turned = rotation(config, positions, torch.float32)
    turned = None if turned is None else Rotation(turned.cos.clone(), turned.sin.clone())
    stream = torch.zeros(1, most, config.width)
    slots, lengths = torch.zeros(most, dtype=torch.int64), torch.ones(most, dtype=torch.int64)
    longest = min(-(-config.context // state.size), len(keys))
    tables = torch.from_numpy(np.zeros((most, longest), dtype=np.int64))  # memory that is taken where it is written
    for layer in state.layers:
        layer.slots = slots[:WRITTEN]
    slopes = slopes_of(config, stream.device, model.division)
    seen = PagedNative(tables[:WRITTEN], lengths[:WRITTEN], config.mixer.window, slopes, Gathered([], []))
    few = None if turned is None else Rotation(*(each[:, :WRITTEN] for each in turned))
    tape = native.listen()
    try:
        with tape:
            hidden = model.through(stream[:, :WRITTEN], Context(few, seen, positions[:, :WRITTEN], 0), state)
    except UnknownOperationError:
        return None
    return Step(model, tape.program(hidden, WRITTEN, most), stream, turned, slots, tables, lengths)

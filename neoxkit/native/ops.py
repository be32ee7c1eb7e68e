"""The functions of decode.cpp, for torch's tensors: fp32 on the CPU, without gradients.

Each is done at once, or, while a tape listens, written down to be done later with many others.

Shapes: T tokens, N texts, P pages of the longest, H query heads, G key/value heads, D head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from neoxkit.native import program
from neoxkit.native.build import library
from neoxkit.native.codes import Activation, Operation, Weight

WEIGHTS = {torch.float32: Weight.FP32, torch.bfloat16: Weight.BF16, torch.float16: Weight.FP16}

TURNED = 2**20
"""Numbers of a weight that are put into another order at once, and are there twice meanwhile."""


def available() -> bool:
    """Whether these functions can be called here: there is a compiler, or was one."""
    return library() is not None


def takes(dtype: torch.dtype, device: str) -> bool:
    """Whether these functions are there, and for streams of a dtype on a type of device."""
    return dtype == torch.float32 and device == "cpu" and available()


def _room(dtype: torch.dtype, count: int) -> Tensor:
    """Room for so many numbers. It is kept: many that come and go would leave holes that nothing else fits into."""
    found = _rooms.get(dtype)
    if found is None or len(found) < count:
        found = _rooms[dtype] = torch.empty(max(count, TURNED), dtype=dtype)
    return found


_rooms: dict[torch.dtype, Tensor] = {}


class Panels:
    """A weight [out, in] in 32 or 16 bits as `linear` reads it: of a few outputs, what all multiply one input by.

    It takes the weight's memory, in which nothing else may be wanted afterwards: a model is then never there twice.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        weight = weight.detach().contiguous()
        self.outputs, self.inputs = weight.shape
        self.bias = None if bias is None else bias.detach().float().contiguous()
        size = program.panel()
        whole, rest = divmod(self.outputs, size)
        self._rest: Tensor | None = None  # [in, size], of outputs that fill no panel
        if rest:
            self._rest = weight.new_zeros(self.inputs, size)
            self._rest[:, :rest] = weight[whole * size :].t()
        self._panels = weight[: whole * size].view(whole, self.inputs, size)
        few = max(1, TURNED // max(1, self.inputs * size))
        room = _room(weight.dtype, min(few, whole) * self.inputs * size)
        for part in self._panels.split(few):
            turned = room[: part.numel()].view_as(part)
            part.copy_(turned.copy_(part.view(-1, size, self.inputs).transpose(1, 2)))

    def __call__(self, x: Tensor) -> Tensor:
        """x W^T + b of x [..., in]."""
        x = x.contiguous()
        y = program.new(*x.shape[:-1], self.outputs)
        tokens = x.numel() // self.inputs
        kind, sizes = WEIGHTS[self._panels.dtype], (self.inputs, self.outputs)
        program.call(Operation.LINEAR, tokens, kind, self._panels, self._rest, self.bias, x, y, *sizes)
        return y

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of the weight, in fp32: those of ids [...], [..., in]."""
        size = self._panels.shape[-1]
        panel, lane = ids // size, ids % size
        if self._rest is None:
            return self._panels[panel, :, lane].float()
        found = self._rest.t()[lane]
        there = panel < len(self._panels)
        found[there] = self._panels[panel[there], :, lane[there]]
        return found.float()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension of x [1, T, width] or [1, T, H, D]."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    heads, stride = (1, 0) if x.dim() == 3 else (x.shape[2], x.stride(2))
    y = program.new(*x.shape)
    program.call(Operation.RMS_NORM, x.shape[1], x, x.stride(1), heads, stride, x.shape[-1], weight, eps, y)
    return y


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension of x [1, T, width]."""
    x = x.contiguous()
    y = program.new(*x.shape)
    program.call(Operation.LAYER_NORM, x.shape[1], x, x.shape[-1], weight, bias, eps, y)
    return y


def enter(
    q: Tensor, k: Tensor, v: Tensor, turn: tuple[Tensor, Tensor] | None, slots: Tensor, keys: Tensor, values: Tensor
) -> None:
    """Turn q [1, T, H, D] in place, and write k, turned, and v [1, T, G, D] to rows `slots` of keys and values.

    `turn` has cosines and sines [1, T, 1, R / 2]. Heads of a token are dense; tokens may lie at strides.
    """
    heads, dim = q.shape[2:]
    cos, sin = (None, None) if turn is None else (each.contiguous() for each in turn)
    half = 0 if cos is None else cos.shape[-1]
    program.call(
        Operation.ENTER, q.shape[1], q, q.stride(1), k, k.stride(1), v, v.stride(1),
        heads, k.shape[2], dim, half, cos, sin, slots, keys, values,
    )  # fmt: skip


def attend(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    lengths: Tensor,
    window: int | None,
    slopes: Tensor | None,
    out: Tensor,
) -> None:
    """Attention of q [N, H, D], one token of each text, to keys and values [pages, size, G, D], into out [N, H, D].

    `tables` int64 [N, P] names the pages of each text, which is `lengths` int64 [N] tokens long. `window` counts the
    token itself; `slopes` fp32 [H] are ALiBi's.
    """
    texts, heads, dim = q.shape
    size, kv_heads = keys.shape[1:3]
    program.call(
        Operation.ATTEND, texts, q, q.stride(0), keys, values, tables, tables.stride(0), lengths,
        heads, kv_heads, dim, size, window or 0, slopes, dim**-0.5, out,
    )  # fmt: skip


def activated(activation: str, x: Tensor) -> Tensor:
    """An activation of x [1, T, hidden], by its name in a configuration."""
    x = x.contiguous()
    y = program.new(*x.shape)
    program.call(Operation.ACTIVATED, x.shape[1], Activation[activation.upper()], x, None, x.shape[-1], y, x.shape[-1])
    return y


def gated(activation: str, fused: Tensor) -> Tensor:
    """act(gate) * up of [1, T, gates and ups]."""
    fused = fused.contiguous()
    both = fused.shape[-1]
    y = program.new(*fused.shape[:-1], both // 2)
    ups = fused[..., both // 2 :]
    program.call(Operation.ACTIVATED, fused.shape[1], Activation[activation.upper()], fused, ups, both, y, both // 2)
    return y


def add(a: Tensor, b: Tensor) -> Tensor:
    """a + b of streams [1, T, width]."""
    y = program.new(*a.shape)
    program.call(Operation.ADD, a.shape[1], a.contiguous(), b.contiguous(), y, a.shape[-1])
    return y


def listen() -> program.Tape:
    """A tape that knows what torch may be asked for between these functions."""
    return program.Tape({"add": add})

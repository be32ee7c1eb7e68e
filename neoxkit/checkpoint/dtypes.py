"""safetensors' names of dtypes, torch's dtypes, and the bytes of a tensor. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
import numpy.typing as npt
import torch

from neoxkit.errors import CheckpointError

TORCH: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
"""Every dtype of a whole byte or more that both have."""

_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in TORCH.items()}


def name_of(dtype: torch.dtype) -> str:
    """safetensors' name of a torch dtype. Raises CheckpointError for one it does not have."""
    if dtype not in _NAMES:
        raise CheckpointError(f"a checkpoint cannot hold {dtype}", f"convert it to one of {', '.join(TORCH)}")
    return _NAMES[dtype]


def octets(value: torch.Tensor) -> npt.NDArray[np.uint8]:
    """The bytes of a tensor, flat, in row-major order; shares memory with a contiguous CPU tensor."""
    flat = value.detach().to("cpu").contiguous().reshape(-1)
    if flat.numel() == 1:  # contiguous in torch's eyes whatever its stride, which keeps it from being seen as bytes
        flat = flat.clone(memory_format=torch.contiguous_format).as_strided((1,), (1,))
    return flat.view(torch.uint8).numpy()


def empty(shape: tuple[int, ...], dtype: str) -> tuple[torch.Tensor, npt.NDArray[np.uint8]]:
    """A tensor that is not filled in, and its bytes, which share its memory.

    numpy asks for huge pages and torch does not: the first touch of a large tensor costs a third.
    """
    if 0 in shape:
        return torch.empty(shape, dtype=TORCH[dtype]), np.empty(0, np.uint8)
    data = np.empty(prod(shape) * TORCH[dtype].itemsize, np.uint8)
    return torch.from_numpy(data).view(TORCH[dtype]).reshape(shape), data

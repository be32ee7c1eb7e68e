"""The greedy blend of sources, in C++ where there is a compiler."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from neoxkit.native.build import library


def blend(
    weights: npt.NDArray[np.float64], first: int, rows: int, counts: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64]]:
    """The source of each row from `first` on, and which of its rows it is: [rows] each. `counts` is counted on.

    Each row is of the source that is furthest behind its weight, the first of equals: gpt-neox's algorithm.
    """
    source, index = np.empty(rows, np.uint16), np.empty(rows, np.int64)
    found = library()
    if found is not None:
        pointers = (each.ctypes.data_as(ctypes.c_void_p) for each in (counts, source, index))
        given = (weights.ctypes.data_as(ctypes.c_void_p), *map(ctypes.c_int64, (len(weights), first, rows)))
        found.neoxkit_blend(*given, *pointers)
        return source, index
    behind: npt.NDArray[Any] = np.empty(len(weights))
    for row in range(rows):
        np.subtract(weights * float(max(first + row, 1)), counts, out=behind)
        best = int(behind.argmax())
        source[row], index[row] = best, counts[best]
        counts[best] += 1
    return source, index

"""Whether the pieces of a tensor cover it, each element once. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

from neoxkit.spec import Box, Run, collisions, gaps, run_boxes, volume, whole

_DIAGNOSED, _HOLES = 2000, 500  # boxes; finding *where* cover fails is quadratic, finding *that* it fails is not


def covers(shape: Sequence[int], parts: Iterable[Box]) -> bool:
    """Whether disjoint parts make up the whole, exactly.

    Give each corner of a box the sign of (-1)^(stops among its coordinates). Two sets of boxes cover
    every point equally often if and only if the signed corners of the two sets cancel. So it takes
    2^dimensions steps for each box, however the tensor is cut.
    """
    signs: dict[tuple[int, ...], int] = {}

    def count(box: Box, weight: int) -> None:
        for ends in product((0, 1), repeat=len(box)):
            corner = tuple(span[end] for span, end in zip(box, ends, strict=True))
            signs[corner] = signs.get(corner, 0) + (-weight if sum(ends) % 2 else weight)

    count(whole(shape), 1)
    for part in parts:
        count(part, -1)
    return not any(signs.values())


def fault(shape: Sequence[int], pieces: Sequence[tuple[Box, Run | None]]) -> str | None:
    """What is wrong with the cover of a tensor, in words; None when nothing is."""
    if len(pieces) == 1 and pieces[0] == (whole(shape), None):
        return None
    if not pieces:
        return "no piece of it is stored"
    parts = [part for box, run in pieces for part in (run_boxes(box, run) if run else [box])]
    if covers(shape, parts):
        return None
    missing = gaps(shape, parts, _HOLES) if len(parts) <= _DIAGNOSED else None
    if missing is None:
        return f"its {len(parts)} pieces do not cover it once"
    if missing:
        elements = sum(volume(hole) for hole in missing)
        return f"no piece holds {spelled(missing[0])} ({elements} elements are missing)"
    return f"two pieces hold {spelled(next(collisions(parts)))}"


def spelled(box: Box, run: Run | None = None) -> str:
    """A box and run in the form that keys of entries have: "[0:4,8:16]{3:9}"."""
    text = "[" + ",".join(f"{start}:{stop}" for start, stop in box) + "]"
    return text + (f"{{{run[0]}:{run[1]}}}" if run else "")

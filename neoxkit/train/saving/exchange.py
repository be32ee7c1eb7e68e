"""What each process holds of a model, told to all others in few bytes.

Written out, the list of one process of a model of 12 billion parameters takes 0.3 MB, so a thousand would each receive
300 MB. Most of a list is what neighbours hold too: it is sent packed, and unpacked once for all that sent it alike.
"""

from __future__ import annotations

import pickle
import zlib
from array import array
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

from neoxkit.checkpoint.plan import Holding
from neoxkit.spec import TensorSpec


class Packed(NamedTuple):
    """A list of holdings: those of whole boxes, those of runs but without the runs, and the runs."""

    whole: bytes
    divided: bytes
    runs: bytes


def pack(held: Sequence[Holding], specs: Mapping[str, TensorSpec]) -> Packed:
    """What a process holds, and the specs of that by name."""
    divided = [each for each in held if each.run is not None]
    runs = array("q", (end for each in divided if each.run is not None for end in each.run))
    whole = _pack([each for each in held if each.run is None], specs)
    return Packed(whole, _pack([each._replace(run=None) for each in divided], specs), zlib.compress(runs.tobytes()))


def _pack(held: Sequence[Holding], specs: Mapping[str, TensorSpec]) -> bytes:
    return zlib.compress(pickle.dumps(([tuple(each) for each in held], {each.name: specs[each.name] for each in held})))


def unpack(told: Sequence[Packed]) -> tuple[list[list[Holding]], dict[str, TensorSpec]]:
    """What each process holds, by rank, and the specs of all of it. Equal parts are the same objects."""

    @cache
    def opened(data: bytes) -> tuple[list[Holding], dict[str, TensorSpec]]:
        held, specs = pickle.loads(zlib.decompress(data))
        return [Holding(*each) for each in held], specs

    found, known = [], dict[str, TensorSpec]()
    for packed in told:
        whole, divided = opened(packed.whole), opened(packed.divided)
        ends = array("q", zlib.decompress(packed.runs))
        runs = zip(ends[::2], ends[1::2], strict=True)
        found.append([*whole[0], *(each._replace(run=run) for each, run in zip(divided[0], runs, strict=True))])
        known |= whole[1] | divided[1]
    return found, known

"""Rows of a large token file: what their order takes to make, and how fast they are read.

A process of its own opens an index of 5 billion tokens in 50 million documents, whose .bin is zeros that take no
disk, and makes the order of its rows as training does: seconds and memory at the peak, Python and numpy included,
on one core. Then another reads rows of a file of 100 million tokens in documents of about 300, at random as training
does: tokens a second.

Rows near the end are compared with the tokens that must be there.

    python benchmarks/index.py [--documents 50000000] [--context 2048] [--folder DIR] [--check]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import struct
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from neoxkit.data.rows.arrange import Arrangement
from neoxkit.data.rows.pack import Packed
from neoxkit.data.rows.rows import Reading, Rows
from neoxkit.data.tokens.index import pieces, write_index
from neoxkit.data.tokens.indexed import IndexedFile

SECONDS, MEMORY = 10, 2000
"""The limits of opening and ordering, in s and MB."""
RATE = 1_000_000
"""Tokens a second and core: the least."""
MARK = 7
"""The token that the last document begins with; all others are zeros."""


def synthetic(prefix: Path, documents: int) -> None:
    """Documents of 0 to 200 tokens, 100 on average, but for the last, which has 200."""
    sizes = np.random.default_rng(0).integers(0, 201, documents, dtype=np.int32)
    sizes[-1] = 200
    with open(f"{prefix}.bin", "wb") as tokens:
        tokens.truncate(2 * int(sizes.sum(dtype=np.int64)))
        tokens.seek(-400, os.SEEK_END)
        tokens.write(struct.pack("<H", MARK))
    with open(f"{prefix}.idx", "wb") as index:
        write_index(index, np.dtype("<u2"), pieces(sizes))


def real(prefix: Path, tokens: int, mean: int) -> None:
    """Documents of so many tokens on average, which are on the disk: random numbers."""
    random = np.random.default_rng(0)
    sizes = random.integers(mean // 2, mean + mean // 2, tokens // mean, dtype=np.int32)
    random.integers(0, 50_000, int(sizes.sum()), dtype=np.uint16).tofile(f"{prefix}.bin")
    with open(f"{prefix}.idx", "wb") as index:
        write_index(index, np.dtype("<u2"), pieces(sizes))


def packed(file: IndexedFile, context: int) -> Rows:
    """The rows of one epoch, as training has them."""
    order = Arrangement(kind="packed", context=context, seed=1234, first=0, last=len(file)).order(file)
    return Rows(file, order, Reading(context=context, vocab=65_536))


def order(prefix: Path, context: int) -> dict[str, Any]:
    """Seconds of wall and CPU time to open a file, and to order its rows; MB at the peak, and after opening."""
    begun, cpu = time.perf_counter(), time.process_time()
    file = IndexedFile(prefix)
    opened, opened_cpu = time.perf_counter(), time.process_time()
    memory = peak()
    rows = packed(file, context)
    done, done_cpu = time.perf_counter(), time.process_time()
    found = {"open": opened - begun, "open_cpu": opened_cpu - cpu, "order": done - opened, "memory_open": memory}
    found |= {"order_cpu": done_cpu - opened_cpu, "memory": peak(), "tokens": file.tokens, "rows": rows.count}
    assert isinstance(rows.order.first, Packed)
    packing = rows.order.first.packing
    place = int(np.flatnonzero(packing.order == len(file) - 1)[0])
    stretch = int(np.searchsorted(packing.bounds[:, 0], place, side="right")) - 1
    before = int(file.sizes[packing.order[packing.bounds[stretch, 0] : place]].sum()) - int(packing.bounds[stretch, 1])
    number = int(np.flatnonzero(packing.shuffle == stretch)[0])
    tokens = rows.row(number).ids
    assert np.flatnonzero(tokens).tolist() == [before], "the last document is not where it must be"
    assert tokens[before] == MARK
    return found


def read(prefix: Path, context: int) -> dict[str, Any]:
    """Tokens a second of wall and CPU time, over all rows: first as the pages come in, then once more."""
    rows = packed(IndexedFile(prefix), context)
    found = {}
    for name in ("first", "again"):
        begun, cpu = time.perf_counter(), time.process_time()
        for number in range(rows.count):
            rows.row(number)
        tokens = rows.count * context
        found |= {name: tokens / (time.perf_counter() - begun), f"{name}_cpu": tokens / (time.process_time() - cpu)}
    return found


def peak() -> float:
    """MB that this process held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def apart(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What a function finds in a process of its own, on one core."""
    context = multiprocessing.get_context("spawn")  # a fork would begin with the memory of this one
    ours, theirs = context.Pipe()
    process = context.Process(target=_alone, args=(theirs, work, arguments))
    process.start()
    theirs.close()
    found: dict[str, Any] = ours.recv()
    process.join()
    return found


def _alone(pipe: Connection, work: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    pipe.send(work(*arguments))


def main() -> None:
    """Make the files, and print what the processes found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=50_000_000)
    parser.add_argument("--tokens", type=int, default=100_000_000, help="of the file that is read")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--folder", type=Path, default=None, help="Where to write; the system's folder unless given.")
    parser.add_argument("--check", action="store_true", help="Fail when a limit is broken.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        synthetic(Path(name) / "many", options.documents)
        real(Path(name) / "real", options.tokens, 300)
        found = {"order": apart(order, Path(name) / "many", options.context)}
        found["read"] = apart(read, Path(name) / "real", options.context)
    made, rate = found["order"], found["read"]
    seconds, cpu = made["open"] + made["order"], made["open_cpu"] + made["order_cpu"]
    print(
        f"{options.documents:,} documents, {made['tokens']:,} tokens, {made['rows']:,} rows: {seconds:.1f} s "
        f"({cpu:.1f} s of CPU time; {made['open_cpu']:.1f} s of it to open and check), {made['memory']:,.0f} MB"
    )
    print(
        f"rows of {options.context}: {rate['first'] / 1e6:.1f} million tokens/s the first time "
        f"({rate['first_cpu'] / 1e6:.1f} of CPU time), {rate['again'] / 1e6:.1f} again ({rate['again_cpu'] / 1e6:.1f})"
    )
    if options.check:
        assert seconds <= SECONDS, made
        assert made["memory"] <= MEMORY, made
        assert rate["first"] >= RATE, rate


if __name__ == "__main__":
    main()

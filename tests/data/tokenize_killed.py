"""A process that tokenizes in forks of its own, so that each can be killed: see killing.py.

For each line on stdin, "ACT FOLDER SEED KILL_AT", it forks; the fork runs the act in the folder, and before its
step of number KILL_AT that changes the disk, or that comes amid the writing of a block, it kills itself. At the end
it prints the number of its steps.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from killing import Steps

from neoxkit import log
from neoxkit.data.prepare import journal, tokenize
from neoxkit.data.prepare.request import Part, Request
from neoxkit.data.text import reading
from neoxkit.data.text.sources import Selection
from neoxkit.errors import DataError

CHANGES = ("mkdir", "fsync", "rename", "unlink", "rmdir")


def request(folder: Path, act: str) -> Request:
    """The request of an act, on files that lie beside the folder."""
    here = folder.parent
    how: dict[str, Any] = {"tokenizer": here / "tokenizer"}
    if act == "train":
        how = {"vocab": 300, "holdout": 0.3}
    return Request(
        inputs=tuple(here / name for name in ("a.jsonl", "b.jsonl.gz", "c.txt", "d.parquet")),
        prefix=folder / "p",
        selection=Selection(),
        rejects=folder / "r.txt",
        workers=2 if act == "two" else 1,
        **how,
    )


def main() -> None:
    """Serve until stdin ends."""
    log.silence()
    journal.EVERY = 0.0
    reading.BLOCK = 3000
    for line in sys.stdin:
        act, folder, _, kill_at = line.split()
        child = os.fork()
        if child == 0:
            os.fsync = lambda file: None  # nothing here outlives a power cut; a kill it does
            steps = Steps(int(kill_at))
            steps.watch(os, *CHANGES)
            steps.watch(Part, "count")
            try:
                tokenize.tokenize(request(Path(folder), act))
            except DataError as error:
                print(error, flush=True)
                os._exit(2)
            print(steps.count, flush=True)
            os._exit(0)
        print(child, flush=True)
        sys.stdin.readline()
        status = os.waitpid(child, 0)[1]
        print("ended", os.WTERMSIG(status) if os.WIFSIGNALED(status) else -status, flush=True)


if __name__ == "__main__":
    main()

"""Checkpoints that were published on the Hub as they are: fetched, and written once more, cut as is wanted."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neoxkit.checkpoint.folder import files_below
from neoxkit.checkpoint.format import MANIFEST
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.checkpoint.store import Place
from neoxkit.convert.transfer import reshard
from neoxkit.mesh import Mesh


def is_published(folder: Place) -> bool:
    """Whether what was fetched is a checkpoint of neoxkit's."""
    return (folder / MANIFEST).is_file()


def import_checkpoint(
    fetched: Place,
    folder: Place,
    mesh: Mesh,
    dtype: str | None = None,
    weights_only: bool = False,
    force: bool = False,
    origin: str | None = None,
) -> None:
    """Write a checkpoint that lies in the Hub's cache, cut for a mesh. `origin` is ORG/NAME@COMMIT.

    Raises as `reshard` does; then nothing is left at `folder`, and what was there stays.
    """
    with _plain(fetched) as plain, Checkpoint.open(plain) as checkpoint:
        event = {"event": "import", "source": origin or str(fetched), "format": "neoxkit checkpoint"}
        reshard(checkpoint, folder, mesh, dtype, weights_only, force, event=event)


@contextmanager
def _plain(snapshot: Place) -> Iterator[Place]:
    """The files of a snapshot themselves: in the Hub's cache they are links, which no checkpoint may have."""
    assert isinstance(snapshot, Path)
    aside = Path(tempfile.mkdtemp(prefix=".neoxkit-", dir=snapshot.parent.parent))
    try:
        for name in files_below(snapshot):
            place = aside / name
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(os.path.realpath(snapshot / name), place)
            except OSError:  # a file system without hard links
                shutil.copyfile(snapshot / name, place)
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)

"""A lost or damaged manifest made anew: drafted from headers, checked against the model, sealed with checksums."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from neoxkit import __version__
from neoxkit.checkpoint.folder import load_manifest, write_durably
from neoxkit.checkpoint.format import MANIFEST, Manifest, dump, parse
from neoxkit.checkpoint.pieces import PieceFiles
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.checkpoint.rebuild import Draft, draft, finished
from neoxkit.checkpoint.scan import Scan
from neoxkit.convert.contents import Report
from neoxkit.convert.verify import check_meaning, unknown_format
from neoxkit.errors import CheckpointError
from neoxkit.log import progress, warn

_MATTERS = ("names", "shape", "dtype", "config", "trainer")


@dataclass(frozen=True)
class Rebuilt:
    """A manifest that was made: where its fields are from, and how far older checksums agree with it.

    `agreeing` counts the tensors with the checksum that the damaged manifest still said; `differing` are
    those with another.
    """

    manifest: Manifest
    carried: Mapping[str, str]
    strays: tuple[str, ...]
    agreeing: int = 0
    differing: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """For people: what was found, and where."""
        sources: dict[str, list[str]] = {}
        for key, where in self.carried.items():
            sources.setdefault(where, []).append(key)
        yield from (f"from {where}: {', '.join(keys)}" for where, keys in sources.items())
        for name in self.strays:
            yield f"not listed, for no checkpoint has it: {name}"
        if self.agreeing:
            yield f"{self.agreeing} of {len(self.manifest.tensors)} tensors have the checksum of the damaged {MANIFEST}"


def rebuild_manifest(folder: Path, force: bool = False, dry_run: bool = False) -> Rebuilt:
    """Write manifest.json anew, from what the files say of themselves. Every byte is read for its checksum.

    With `dry_run` only headers are read, and nothing is written. Raises CheckpointError when the old one
    is valid (unless `force`), a piece or a tensor is missing, or numbers differ from checksums that the
    damaged manifest still says (unless `force`).
    """
    _check_needed(folder, force)
    drafted = draft(folder)
    _check_whole(folder, drafted)
    if dry_run:
        return Rebuilt(drafted.manifest, drafted.carried, drafted.strays)
    files = PieceFiles(folder, drafted.manifest)
    try:
        with progress(f"read {folder}", sum(file.bytes for file in drafted.manifest.files)) as bar:
            sums = Scan(files, drafted.manifest).run(bar)
    finally:
        files.close()
    for cause in [*sums.failed.values(), *sums.amiss.values()]:
        raise CheckpointError(cause, "restore the file from a copy")
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    manifest = finished(drafted.manifest, sums, {"event": "rebuild", "at": now, "by": f"neoxkit {__version__}"})
    common = [name for name in manifest.tensors if name in drafted.known]
    differing = tuple(name for name in common if manifest.tensors[name].crc != drafted.known[name])
    if differing:
        said = f"{folder}: {len(differing)} tensors, {differing[0]} among them, have another checksum than the "
        said += f"damaged {MANIFEST} says: they were altered, or that line was"
        if not force:
            raise CheckpointError(said, "restore them from a copy, or give --force to take them as they are")
        warn(said)
    text = dump(manifest)
    parse(text, f"{folder}: what was about to be written")
    write_durably(folder / MANIFEST, text)
    return Rebuilt(manifest, drafted.carried, drafted.strays, len(common) - len(differing), differing)


def _check_needed(folder: Path, force: bool) -> None:
    """Raise CheckpointError when there is a manifest that may not be replaced."""
    path = folder / MANIFEST
    if force or not path.is_file():
        return
    text = path.read_bytes()
    try:
        parse(text, str(path))
    except CheckpointError:
        if unknown_format(text):
            raise
        return
    try:
        load_manifest(folder)
    except CheckpointError as error:
        raise CheckpointError(
            f"{path} is valid, and a file is not what it says: {error.cause}",
            "restore that file from a copy, or give --force to make a manifest of what is there",
        ) from error
    raise CheckpointError(f"{path} is valid", "use it as it is, or give --force to make it anew")


def _check_whole(folder: Path, drafted: Draft) -> None:
    """Raise CheckpointError unless the files hold all that the configuration and the trainer's state ask for."""
    report = Report(folder)
    with Checkpoint(folder, drafted.manifest) as checkpoint:
        check_meaning(checkpoint, report, set())
    found = [finding for finding in report.findings if finding.kind in _MATTERS]
    if found:
        more = f" (and {len(found) - 1} more findings)" if len(found) > 1 else ""
        raise CheckpointError(f"{folder}: {found[0].what}{more}", "restore what is missing from a copy")

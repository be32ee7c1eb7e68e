"""neoxkit rebuild-manifest: make a lost or damaged manifest.json anew."""

from __future__ import annotations

from pathlib import Path

import click

from neoxkit.cli import options
from neoxkit.log import warn


@click.command()
@click.argument("checkpoint", type=options.FOLDER)
@click.option("--dry-run", is_flag=True, help="Read headers alone, say what would be written, and write nothing.")
@click.option("--force", is_flag=True, help="Replace a manifest that is valid; take tensors that do not have the "
              "checksum which the damaged one still says.")  # fmt: skip
def command(checkpoint: Path, dry_run: bool, force: bool) -> None:
    """Make a lost or damaged manifest.json anew.

    CHECKPOINT is a folder whose files are there. Each says in its header what it holds; every byte is
    read for new checksums. When a piece or a tensor is missing, nothing is written. Checksums that are
    made now cannot find damage from before: what the damaged manifest still says is compared.
    """
    from neoxkit.convert.rebuild import rebuild_manifest

    found = rebuild_manifest(checkpoint, force, dry_run)
    for line in found.lines():
        click.echo(line)
    count = f"{len(found.manifest.tensors)} tensors in {len(found.manifest.files)} files"
    if dry_run:
        click.echo(f"{checkpoint}: whole by its headers ({count}); nothing was written")
        return
    unknown = len(found.manifest.tensors) - found.agreeing
    if unknown:
        warn(f"the checksums of {unknown} tensors are of what is there now: damage from before they cannot find")
    click.echo(f"{checkpoint}: {count}, model {found.manifest.fingerprint()}")

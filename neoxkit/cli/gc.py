"""neoxkit gc: remove old checkpoints of a run, and what interrupted commands left."""

from __future__ import annotations

from pathlib import Path

import click

from neoxkit.cli import options


@click.command()
@click.argument("run", type=options.FOLDER)
@click.option("--keep-last", type=click.IntRange(min=1), metavar="N", help="Keep the newest N valid checkpoints.")
@click.option("--keep-every", type=click.IntRange(min=1), metavar="M",
              help="Keep each checkpoint whose step is a multiple of M.")  # fmt: skip
@click.option("--invalid", is_flag=True, help="Remove checkpoints that are not valid too, as long as one is.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@options.json()
def command(
    run: Path, keep_last: int | None, keep_every: int | None, invalid: bool, dry_run: bool, as_json: bool
) -> None:
    """Remove old checkpoints of a run.

    RUN is the folder of a run, in training or not. A checkpoint goes unless --keep-last or
    --keep-every keeps it; the newest valid one, the one that `latest` names and those that another
    process reads always stay. With neither option all stay. What interrupted commands left in RUN is
    removed in any case. Checkpoints that are not valid (by manifest and sizes; `neoxkit verify` reads them) are
    named, and left without --invalid.
    """
    from neoxkit.checkpoint.retention import collect
    from neoxkit.convert.describe import size

    found = collect(run, keep_last, keep_every, invalid, dry_run)
    if as_json:
        import json

        click.echo(json.dumps(found.json(), indent=2, ensure_ascii=False))
        return
    verb = "would remove" if dry_run else "removed"
    for name, count in found.attempts.items():
        click.echo(f"{verb} {run / name}, which an interrupted command left ({size(count)})")
    for name, count in found.removed.items():
        click.echo(f"{verb} {run / name} ({size(count)})")
    for name, why in found.kept.items():
        click.echo(f"kept {run / name}: {why}")
    for name, why in found.left.items():
        click.echo(f"left {run / name}: {why}")
    for name, why in found.invalid.items():
        click.echo(f"left {run / name}: not valid: {why}")
    count = len(found.removed) + len(found.attempts)
    click.echo(f"{verb} {count} folder{'' if count == 1 else 's'}, {found.bytes:,} bytes")

"""neoxkit inspect: show what is in a checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from neoxkit.checkpoint.store import Place
from neoxkit.cli import options


@click.command()
@click.argument("source", type=options.PLACE)
@click.option("--tensors", is_flag=True, help="List the tensors, by pattern, and the files too.")
@options.assume()
@options.settings()
@options.json()
def command(source: Place, tensors: bool, assume: tuple[str, ...], config: tuple[Path, ...], as_json: bool) -> None:
    """Show what is in a checkpoint.

    SOURCE is a checkpoint, a run's folder (its newest checkpoint is shown), or the folder of a model
    that another program wrote, as `neoxkit import` takes it. Nothing but indexes is read: `neoxkit
    verify` reads the weights. SOURCE may be a URL of an object store: s3://BUCKET/FOLDER.
    """
    from neoxkit.convert.describe import describe, lines

    about = describe(source, options.assumptions(assume), config)
    if not as_json:
        for line in lines(about, tensors):
            click.echo(line)
        return
    import json

    if not tensors:
        about = {key: value for key, value in about.items() if key not in ("tensors", "files")}
    click.echo(json.dumps(about, indent=2, ensure_ascii=False))

"""neoxkit inspect: show what is in a checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from neoxkit.cli import options


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--tensors", is_flag=True, help="List the tensors, by pattern, and the files too.")
@options.json()
def command(source: Path, tensors: bool, as_json: bool) -> None:
    """Show what is in a checkpoint.

    SOURCE is a checkpoint, a run's folder (its newest checkpoint is shown) or a Hugging Face folder.
    Nothing but indexes is read: `neoxkit verify` reads the weights.
    """
    from neoxkit.convert.describe import describe, lines

    about = describe(source)
    if not as_json:
        for line in lines(about, tensors):
            click.echo(line)
        return
    import json

    if not tensors:
        about = {key: value for key, value in about.items() if key not in ("tensors", "files")}
    click.echo(json.dumps(about, indent=2, ensure_ascii=False))

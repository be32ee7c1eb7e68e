"""neoxkit diff: compare the weights of two checkpoints."""

from __future__ import annotations

from pathlib import Path

import click

from neoxkit.cli import options


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--values", is_flag=True, help="Read the tensors that differ, and say by how much.")
@options.json()
@click.pass_context
def command(ctx: click.Context, a: Path, b: Path, values: bool, as_json: bool) -> None:
    """Compare the weights of two checkpoints.

    A and B are checkpoints, runs' folders or Hugging Face folders. Two checkpoints are compared by
    their checksums, however they are cut, without reading a tensor; a Hugging Face folder is read
    once. Exits with 0 when nothing differs, 1 when something does.
    """
    from neoxkit.convert.compare import compare
    from neoxkit.convert.open import open_any

    found = compare(open_any(a), open_any(b), values)
    if as_json:
        import json

        click.echo(json.dumps({"a": str(a), "b": str(b), **found.json()}, indent=2, ensure_ascii=False))
    else:
        for line in found.lines():
            click.echo(line)
    ctx.exit(0 if found.same else 1)

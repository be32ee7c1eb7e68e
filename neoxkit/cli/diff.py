"""neoxkit diff: compare the weights of two checkpoints."""

from __future__ import annotations

from pathlib import Path

import click

from neoxkit.checkpoint.store import Place
from neoxkit.cli import options


@click.command()
@click.argument("a", type=options.PLACE)
@click.argument("b", type=options.PLACE)
@click.option("--values", is_flag=True, help="Read the tensors that differ, and say by how much.")
@options.assume()
@options.settings()
@options.json()
@click.pass_context
def command(
    ctx: click.Context,
    a: Place,
    b: Place,
    values: bool,
    assume: tuple[str, ...],
    config: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Compare the weights of two checkpoints.

    A and B are checkpoints, runs' folders (of which the newest checkpoint counts) or folders of models
    that other programs wrote, as `neoxkit import` takes them: a gpt-neox checkpoint against a Hugging
    Face folder, say. Two checkpoints are compared by their checksums, however they are cut, without
    reading a tensor; a foreign model is read once. The configurations are compared too; what no
    logit depends on (family, context, special tokens) is shown, and does not count. Exits with 0 when
    nothing that counts differs, 1 when something does. Both may be URLs of an object store:
    s3://BUCKET/FOLDER.
    """
    from neoxkit.convert.compare import compare
    from neoxkit.convert.open import divide, open_any

    given = divide([a, b], options.assumptions(assume), config)
    found = compare(open_any(a, *given[0]), open_any(b, *given[1]), values)
    if as_json:
        import json

        click.echo(json.dumps({"a": str(a), "b": str(b), **found.json()}, indent=2, ensure_ascii=False))
    else:
        for line in found.lines():
            click.echo(line)
    ctx.exit(0 if found.same else 1)

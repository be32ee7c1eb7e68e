"""neoxkit train: train a model, or go on training."""

from __future__ import annotations

import click

from neoxkit.cli.config import FILES, SET


@click.command()
@FILES
@SET
@click.option("--dry-run", is_flag=True, help="Print the plan of the run, and train nothing.")
@click.pass_context
def command(ctx: click.Context, files: tuple[str, ...], overrides: tuple[str, ...], dry_run: bool) -> None:
    """Train the model that FILES describe, merged in order.

    The same command again goes on from the newest checkpoint in `save.folder`. Ctrl-C saves and
    stops; twice, it stops at once. Prints the folder of the last checkpoint.
    """
    from neoxkit.config.load import load_tree, validate

    tree = load_tree(files, overrides)
    config = validate(tree)
    if dry_run:
        from neoxkit.train.plan import plan

        for name, value in plan(config, tree.values).items():
            click.echo(f"{name:<22} {value}")
        return
    from neoxkit.train.loop import train

    outcome = train(config, tree.values)
    click.echo(outcome.checkpoint)
    ctx.exit(outcome.code)

"""neoxkit config: check, show and explain the configuration of a run."""

from __future__ import annotations

import difflib

import click

from neoxkit.errors import ConfigError

FILES = click.argument("files", nargs=-1, required=True, type=click.Path())
SET = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one option; may repeat.")


@click.group()
def command() -> None:
    """Check, show and explain the configuration of a run."""


@command.command()
@FILES
@SET
def check(files: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    """Say whether FILES, merged in order, describe a run."""
    from neoxkit.config.load import load_run

    load_run(files, overrides)
    click.echo("ok")


@command.command()
@FILES
@SET
def show(files: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    """Print the run that FILES describe, every option resolved, as YAML."""
    from neoxkit.config.load import dump, load_run

    click.echo(dump(load_run(files, overrides)), nl=False)


@command.command()
@click.argument("key")
def explain(key: str) -> None:
    """Print what an option is, or what is below a section: optimizer, model.position.base."""
    from neoxkit.config.reference import options

    found = [o for o in options() if o.key == key or o.key.startswith(key + ".")]
    if not found:
        known = [o.key for o in options()]
        leaves = [k for k in known if k.split(".")[-1] == key.split(".")[-1]]
        close = leaves or difflib.get_close_matches(key, known, n=1)
        raise ConfigError(f"there is no option {key}", f"did you mean {close[0]}?" if close else "")
    for option in found:
        click.echo(option.key + (f"  (with {option.where})" if option.where else ""))
        click.echo(f"    {option.description}")
        click.echo(f"    {option.kind}; default: {option.default or 'none, it must be given'}")

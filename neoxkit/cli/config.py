"""neoxkit config: check, show, convert and explain the configuration of a run."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

import click

from neoxkit.errors import ConfigError

if TYPE_CHECKING:
    from neoxkit.config.tree import Tree

FILES = click.argument("files", nargs=-1, required=True, type=click.Path())
SET = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one option; may repeat.")


def _told(files: tuple[str, ...], overrides: tuple[str, ...]) -> Tree:
    """The options of FILES, and on stderr what there is to know of them."""
    from neoxkit.config.load import load_tree
    from neoxkit.log import note

    tree = load_tree(files, overrides)
    for line in tree.notes:
        note(line)
    return tree


@click.group()
def command() -> None:
    """Check, show, convert and explain the configuration of a run."""


@command.command()
@FILES
@SET
def check(files: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    """Say whether FILES, merged in order, describe a run.

    FILES are neoxkit's own, or gpt-neox's. Of gpt-neox's, what is passed over is told on stderr.
    """
    from neoxkit.config.load import validate

    validate(_told(files, overrides))
    click.echo("ok")


@command.command()
@FILES
@SET
def show(files: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    """Print the run that FILES describe, every option resolved, as YAML."""
    from neoxkit.config.load import dump, validate

    click.echo(dump(validate(_told(files, overrides))), nl=False)


@command.command()
@FILES
@SET
@click.option(
    "--to", type=click.Choice(["neoxkit", "gpt-neox"]), default="neoxkit", show_default=True, help="Whose options."
)
@click.option("--out", type=click.Path(), help="A new file to write it to, in place of stdout.")
def convert(files: tuple[str, ...], overrides: tuple[str, ...], to: str, out: str | None) -> None:
    """Write FILES of gpt-neox as one of neoxkit's own, which means the same; or the other way.

    What is passed over is told, and what cannot be done is refused, as by `neoxkit train`. So is,
    on the way to gpt-neox, what it has no word for.
    """
    from neoxkit.config.load import spell, spell_neox, validate

    tree = _told(files, overrides)
    run = validate(tree)
    text = f"# Made of {', '.join(files)}.\n" + (spell(tree) if to == "neoxkit" else spell_neox(run))
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        with open(out, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{out} is there already", "name another file, or remove it") from None
    except OSError as error:
        raise ConfigError(f"{out}: {error.strerror}", "name another file") from None


@command.command()
@click.argument("key")
def explain(key: str) -> None:
    """Print what an option is, or what is below a section: optimizer, model.position.base.

    Of an option of gpt-neox, what becomes of it here.
    """
    from neoxkit.config import reference
    from neoxkit.config.neox import table

    found, theirs = list(reference.explain(key)), table.find(key)
    if not found and theirs is None:
        known = [each.key for each in reference.sections()] + [each.key for each in reference.options()]
        leaves = [k for k in known if k.split(".")[-1] == key.split(".")[-1]]
        close = leaves or difflib.get_close_matches(key, known, n=1)
        meant = close[0] if close else table.similar(key)
        raise ConfigError(f"there is no option {key}", f"did you mean {meant}?" if meant else "")
    for line in found:
        click.echo(line)
    if theirs is not None:
        renamed = "" if theirs.name == key.replace("-", "_") else f"{key} is today "
        click.echo("\n" * bool(found) + f"{renamed}{theirs.name}, of gpt-neox")
        click.echo(f"    {table.verb(theirs)} {table.explain(theirs)}".replace("`", ""))
        if theirs.spelled:
            click.echo(f"    {theirs.spelled}; default there: {table.spelled(theirs.default)}")

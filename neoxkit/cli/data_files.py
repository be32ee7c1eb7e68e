"""neoxkit data info, count, merge and split: what is done with token files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from neoxkit.cli import options
from neoxkit.log import counted

PREFIXES = click.argument("prefixes", nargs=-1, required=True, metavar="PREFIX...", type=click.Path(path_type=Path))


@click.command()
@PREFIXES
@options.json()
def info(prefixes: tuple[Path, ...], as_json: bool) -> None:
    """Show what the token files of each PREFIX hold, and check that they are whole.

    Those of gpt-neox and Megatron, with Megatron's index or the older `cached` one. With --json, a line for each.
    """
    import json

    from neoxkit.data.tokens.summary import summary

    for number, prefix in enumerate(prefixes):
        found = summary(prefix)
        if as_json:
            click.echo(json.dumps(found))
            continue
        if number:
            click.echo()
        for name, value in found.items():
            click.echo(f"{name:<14}{_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        value = [f"{name}: {_shown(each)}" for name, each in value.items()]
    if isinstance(value, (tuple, list)):
        return ", ".join(map(str, value)) or "none"
    if value in (None, ""):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)


@click.command()
@PREFIXES
@options.json()
def count(prefixes: tuple[Path, ...], as_json: bool) -> None:
    """Count the documents and tokens of each PREFIX, and of all. Only indexes are read."""
    import json

    from neoxkit.data.tokens.summary import count as counted

    found = counted(prefixes)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    rows = [(each["tokens"], each["documents"], each["prefix"]) for each in found["files"]]
    rows += [(found["tokens"], found["documents"], "all")] if len(rows) > 1 else []
    for tokens, documents, prefix in rows:
        click.echo(f"{tokens:>20,} tokens {documents:>15,} documents  {prefix}")


def output() -> options.Decorator[Any]:
    """`-o`: the prefix to write."""
    return click.option(
        "-o",
        "--output",
        required=True,
        metavar="PREFIX",
        type=click.Path(path_type=Path),
        help="What the names of the files written begin with.",
    )


@click.command()
@PREFIXES
@output()
@click.option("--any-tokenizer", is_flag=True,
              help="Merge tokens of different or unknown tokenizers too; the result has no PREFIX.json.")  # fmt: skip
@options.force()
def merge(prefixes: tuple[Path, ...], output: Path, any_tokenizer: bool, force: bool) -> None:
    """Write the token files of each PREFIX, one after the other, as one.

    Documents stay documents, columns (labels, scores) and PREFIX.json come along. Where dtypes differ, the result has
    one that holds all.
    """
    from neoxkit.data.tokens.merge import merge as run

    done = run(prefixes, output, force=force, any_tokenizer=any_tokenizer)
    click.echo(f"{output}: {counted(done.documents, 'document')}, {counted(done.tokens, 'token')}, {done.dtype.name}")


NAMES = ("train", "valid", "test")


@click.command()
@click.argument("prefix", type=click.Path(path_type=Path))
@output()
@click.option("--weights", required=True, metavar="W,W...",
              help="How much of the documents each part gets: 969,30,1. They need not sum to anything.")  # fmt: skip
@click.option("--names", metavar="NAME,NAME...",
              help=f"What the parts, PREFIX-NAME.*, are called.  [default: {','.join(NAMES)}]")  # fmt: skip
@click.option("--shuffle", is_flag=True,
              help="Deal documents out at random, instead of the first ones to the first part, and so on.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, (1 << 32) - 1), metavar="N", help="Of --shuffle.  [default: 1234]")
@options.force()
def split(
    prefix: Path, output: Path, weights: str, names: str | None, shuffle: bool, seed: int | None, force: bool
) -> None:
    """Divide the documents of PREFIX among several token files.

    Without --shuffle, three parts are those that a run's `data.split` makes. Documents stay whole and keep their
    order; columns and PREFIX.json come along.
    """
    from neoxkit.data.tokens.split import split as run
    from neoxkit.errors import ConfigError

    if seed is not None and not shuffle:
        raise ConfigError("--seed is of --shuffle", "give both, or leave it out")
    shares = _shares(weights, names)
    for part in run(prefix, output, shares, seed=(1234 if seed is None else seed) if shuffle else None, force=force):
        click.echo(f"{part.prefix}: {counted(len(part.documents), 'document')}, {counted(part.tokens, 'token')}")


def _shares(weights: str, names: str | None) -> list[tuple[str, float]]:
    """The parts and their weights. Raises ConfigError."""
    from neoxkit.errors import ConfigError

    try:
        given = [float(weight) for weight in weights.replace("/", ",").split(",")]
    except ValueError:
        given = []
    if not given or not all(0 < weight < float("inf") for weight in given):
        raise ConfigError(f'--weights "{weights}" are not numbers above 0', "write them as 969,30,1")
    called = names.split(",") if names else list(NAMES[: len(given)])
    if len(called) != len(given):
        raise ConfigError(f"{len(given)} weights, and {len(called)} names", "give --names, one for each weight")
    return list(zip(called, given, strict=True))


COMMANDS = (info, count, merge, split)

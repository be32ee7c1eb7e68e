"""neoxkit data get: fetch a public corpus."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from neoxkit.cli import options

if TYPE_CHECKING:
    from neoxkit.data.text.corpora import Corpus


@click.command()
@click.argument("name", required=False)
@click.option("-o", "--output", "folder", metavar="FOLDER", type=click.Path(path_type=Path),
              help="Where to put it; by default a folder of its name, here.")  # fmt: skip
@click.option("--max-bytes", type=options.Size(), metavar="SIZE",
              help="Of a corpus of many files, fetch the first ones up to this size.")  # fmt: skip
@click.option("--list", "listing", is_flag=True, help="Show the corpora there are.")
@options.json()
def get(name: str | None, folder: Path | None, max_bytes: int | None, listing: bool, as_json: bool) -> None:
    """Fetch the public corpus NAME, and say how to tokenize it.

    What was fetched before stays; a transfer that broke off is taken up.
    """
    import json
    from dataclasses import asdict

    from neoxkit.data.text.corpora import CORPORA, corpus

    if listing or name is None:
        if not listing:
            raise click.UsageError("no NAME is given, and no --list", click.get_current_context())
        if as_json:
            click.echo(json.dumps([asdict(each) for each in CORPORA], indent=2))
            return
        for each in CORPORA:
            size = f"{each.about:,.2f} GB" if each.about is not None else ""
            click.echo(f"{each.name:<24}{size:>10}  {each.licence:<22}{each.says}")
        return
    from neoxkit.data.text.fetch import fetch

    found = corpus(name)
    into = folder if folder is not None else Path(name)
    fetched = fetch(found, into, max_bytes)
    line = _tokenize(found, into)
    if as_json:
        files = [str(path) for path in fetched.files]
        click.echo(json.dumps({"name": name, "files": files, "bytes": fetched.bytes, "tokenize": line}, indent=2))
        return
    click.echo(
        f"{into}: {len(fetched.files):,} file{'s' if len(fetched.files) > 1 else ''} of {name} ({found.licence})"
    )
    click.echo(f"to tokenize: {line}")


def _tokenize(corpus: Corpus, folder: Path) -> str:
    """The command line that makes tokens of a corpus."""
    words = ["neoxkit", "data", "tokenize"]
    if corpus.archive is not None:
        words.append(str(folder / corpus.member))
    else:
        patterns = dict.fromkeys(pattern.rsplit("/", 1)[-1] for pattern in corpus.files)
        words += [str(folder), *(word for pattern in patterns for word in ("--include", pattern))]
    if corpus.key != "text":
        words += ["--key", corpus.key]
    return shlex.join([*words, "-o", f"{corpus.name}-tokens", "--tokenizer"]) + " TOKENIZER"

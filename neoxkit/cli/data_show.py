"""neoxkit data show: documents of token files, and samples of a run, as text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neoxkit.cli import options
from neoxkit.errors import DataError
from neoxkit.log import counted

if TYPE_CHECKING:
    from neoxkit.data.rows.display import Stretch
    from neoxkit.data.tokenizer import Tokenizer

YAML = (".yaml", ".yml")


class Numbers(click.ParamType[range]):
    """A number, or a first and a last: 3, 0-2."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> range:
        """The numbers."""
        if isinstance(value, range):
            return value
        first, dash, last = value.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            self.fail(f"{value!r} is no number and no range such as 0-2", param, ctx)
        return range(int(first), int(last if dash else first) + 1)


@click.command()
@click.argument("what", type=click.Path(path_type=Path), metavar="PREFIX|RUN.yaml")
@click.option("--number", "numbers", type=Numbers(), default="0", show_default=True, metavar="N|FIRST-LAST",
              help="Which documents of the file, or samples of the run.")  # fmt: skip
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="What decodes the tokens; of a run, data.tokenizer when left out. Without one ids are shown.",
)
@click.option("--tokens", type=click.IntRange(min=1), default=400, show_default=True, metavar="N",
              help="Show the first N tokens of each.")  # fmt: skip
@options.json()
def show(what: Path, numbers: range, tokenizer: Path | None, tokens: int, as_json: bool) -> None:
    """Show documents of token files, or samples as a run reads them, as text.

    + is before what is learned; other text is read only. A rule is between the documents of a sample. RUN.yaml is the
    configuration of a run: what is shown is what `neoxkit train` reads, in its order.
    """
    from neoxkit.data.rows.display import lines
    from neoxkit.data.tokenizer.kinds import open_tokenizer
    from neoxkit.data.tokens.sidecar import check_prefixes

    if what.suffix in YAML:
        found, named, prefixes = _samples(what, numbers)
        tokenizer = tokenizer or (Path(named) if named else None)
    else:
        found, prefixes = _documents(what, numbers), [str(what)]
    known = None if tokenizer is None else open_tokenizer(tokenizer)
    if known is not None:
        check_prefixes(prefixes, known.path, known.fingerprint)
    for title, stretches in found:
        kept = list(_first(stretches, tokens))
        if as_json:
            click.echo(json.dumps({"title": title, "stretches": [stretch_json(each, known) for each in kept]}))
            continue
        left = sum(len(each.ids) for each in stretches) - sum(len(each.ids) for each in kept)
        # With the special tokens: whether what ends a document, or a turn, is learned is what one looks for.
        decode = None if known is None else partial(known.decode, special=True)
        click.echo(f"{title}\n" + "\n".join(lines(kept, decode)))
        if left:
            click.echo(f"  ... and {left:,} tokens")
        click.echo()


def _documents(prefix: Path, numbers: range) -> Iterator[tuple[str, list[Stretch]]]:
    from neoxkit.data.rows.display import stretches
    from neoxkit.data.tokens.columns import IGNORED, find_labels
    from neoxkit.data.tokens.indexed import IndexedFile

    file = IndexedFile(prefix)
    labels = find_labels(prefix, file)
    for number in numbers:
        if number >= len(file):
            raise DataError(f"{file.idx} has {len(file):,} documents, and not number {number}", "ask for another")
        ids = file[number].tolist()
        learned = [True] * len(ids) if labels is None else (labels[number] != IGNORED).tolist()
        yield f"document {number} of {prefix}: {counted(len(ids), 'token')}", stretches(ids, learned, [0] * len(ids))


def _samples(path: Path, numbers: range) -> tuple[Iterator[tuple[str, list[Stretch]]], str | None, list[str]]:
    """The samples, the tokenizer of the run, and the prefixes that it reads."""
    from neoxkit.config.load import load_run
    from neoxkit.data.rows.display import stretches
    from neoxkit.train.begin import feed_of
    from neoxkit.train.length import lasting
    from neoxkit.train.resume import past_of

    config = lasting(load_run([path]))
    tokenizer = None if config.data.tokenizer is None else Path(config.data.tokenizer)
    past = past_of(Path(config.save.folder))
    feed = feed_of(config, past, tokenizer)

    def found() -> Iterator[tuple[str, list[Stretch]]]:
        for number in numbers:
            prefix, rows, index = feed.locate(number)
            row = rows.row(index)
            count = len(row.ids) - 1
            learned = [False, *([True] * count if row.counts is None else row.counts.tolist())]
            title = f"sample {number}, of {prefix}: {sum(learned):,} of {count:,} tokens learned"
            yield title, stretches(row.ids.tolist(), learned, rows.documents(index).tolist())

    return found(), config.data.tokenizer, [source.tokens for source in config.data.train]


def _first(found: list[Stretch], tokens: int) -> Iterator[Stretch]:
    from dataclasses import replace

    for stretch in found:
        if stretch.first < tokens:
            yield replace(stretch, ids=stretch.ids[: tokens - stretch.first])


def stretch_json(stretch: Stretch, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Ready for JSON. A line for each document, or sample, {"title", "stretches"}, with stretches of it:

    document    its number in the sample, from 0; -1: padding
    learned     whether its tokens are
    ids
    text        with a tokenizer
    """
    text = {} if tokenizer is None else {"text": tokenizer.decode(stretch.ids, special=True)}
    return {"document": stretch.document, "learned": stretch.learned, "ids": list(stretch.ids), **text}

"""neoxkit data train-tokenizer: make a tokenizer for some text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from neoxkit.cli import options
from neoxkit.data.text.sources import Selection

GLOBS = Selection().include


@click.command("train-tokenizer")
@click.argument("inputs", nargs=-1, required=True)
@click.option("-o", "--output", "folder", required=True, metavar="FOLDER", type=click.Path(path_type=Path),
              help="The folder to make: tokenizer.json and what transformers reads beside it.")  # fmt: skip
@click.option("--vocab", required=True, type=int, metavar="N", help="Entries, special tokens and bytes among them.")
@click.option("--model", type=click.Choice(["bpe", "unigram"]), default="bpe", show_default=True,
              help="How text is divided; both know every byte.")  # fmt: skip
@click.option("--special", multiple=True, metavar="TOKEN",
              help="A special token beside <|endoftext|> and <|padding|>, 0 and 1; may repeat.")  # fmt: skip
@click.option("--split", default="gpt2", show_default=True, metavar="NAME|REGEX",
              help="Where text is cut: gpt2, digits, cl100k, llama3, o200k, or by a regular expression.")  # fmt: skip
@click.option("--normalize", type=click.Choice(["nfc", "nfkc"]),
              help="Change text to a normal form first, which does not come back.")  # fmt: skip
@click.option("--min-frequency", type=int, default=2, show_default=True, metavar="N",
              help="How often a pair of tokens occurs at least for BPE to join it.")  # fmt: skip
@click.option("--train-bytes", type=options.Size(), default="64M", show_default=True, metavar="SIZE",
              help="Train on about this much of the text, in documents spread evenly.")  # fmt: skip
@click.option("--include", multiple=True, default=GLOBS, show_default=True, metavar="GLOB",
              help="Which files of a folder are text; may repeat.")  # fmt: skip
@click.option("--exclude", multiple=True, metavar="GLOB", help="Which of them to leave out; may repeat.")
@click.option("--key", "keys", multiple=True, default=("text",), show_default=True, metavar="KEY",
              help="Where a row has its text; may repeat.")  # fmt: skip
@options.force()
@options.json()
def train_tokenizer(
    inputs: tuple[str, ...],
    folder: Path,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    keys: tuple[str, ...],
    train_bytes: int,
    force: bool,
    as_json: bool,
    **recipe: Any,
) -> None:
    """Make a tokenizer for the text of INPUTS, which are as those of `data tokenize`.

    The same text gives the same BPE; a unigram model's scores differ a little from one training to
    the next. A fiftieth of the documents is kept aside to measure it with.
    """
    import json
    from dataclasses import asdict

    from neoxkit.data.prepare.train_tokenizer import Request
    from neoxkit.data.prepare.train_tokenizer import train_tokenizer as run
    from neoxkit.data.tokenizer.train import Recipe

    report = run(
        Request(
            inputs=inputs,
            folder=folder,
            recipe=Recipe(**recipe),
            selection=Selection(include, exclude, keys),
            train_bytes=train_bytes,
            force=force,
        )
    )
    if as_json:
        click.echo(json.dumps(asdict(report), indent=2))
        return
    of = "text kept aside" if report.held_out else "the text it was trained on"
    measured = f"{report.bytes_per_token:.2f} bytes a token in {report.measured_bytes / 1e6:,.1f} MB of {of}"
    click.echo(
        f"{report.folder}: {report.entries:,} entries from {report.documents:,} documents, "
        f"{report.bytes / 1e6:,.1f} MB, in {report.seconds:.1f} s; {measured}"
    )

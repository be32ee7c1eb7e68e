"""neoxkit data: turn text into tokens to train on, and show what token files hold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neoxkit.cli import data_files, options
from neoxkit.data.text.sources import Selection

if TYPE_CHECKING:
    from neoxkit.data.prepare.tokenize import Part, Report


class Size(click.ParamType[int]):
    """A number of bytes: 1000000, 64M, 2G (powers of 1024)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of bytes."""
        if isinstance(value, int):
            return value
        digits, power = value, 0
        if value[-1:].upper() in ("K", "M", "G", "T"):
            digits, power = value[:-1], "KMGT".index(value[-1].upper()) + 1
        if not digits.isascii() or not digits.isdigit() or int(digits) == 0:
            self.fail(f"{value!r} is not a size such as 1000000, 64M or 2G", param, ctx)
        return int(digits) << (10 * power)


@click.group()
def command() -> None:
    """Turn text into tokens to train on, and show what token files hold."""


GLOBS = Selection().include
TOKENIZE = f"""Turn the text of INPUTS, files and folders, into PREFIX.bin and PREFIX.idx.

A file that is named is taken as it is, of a folder {", ".join(GLOBS[:-1])} and {GLOBS[-1]} at any
depth, unless --include says otherwise. A file is a document; each line of a .jsonl file is one.
PREFIX.json says which tokenizer made the tokens, PREFIX.files.txt from which files.
"""


@command.command(help=TOKENIZE)
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", "prefix", required=True, metavar="PREFIX", type=click.Path(path_type=Path),
              help="What the names of the files written begin with.")  # fmt: skip
@click.option("--tokenizer", type=click.Path(path_type=Path), metavar="PATH",
              help="A tokenizer.json, or a folder with one, such as a Hugging Face model.")  # fmt: skip
@click.option("--train-tokenizer", "vocab", type=int, metavar="N",
              help="Train a byte-level BPE of N entries on the training text instead: PREFIX-tokenizer/.")  # fmt: skip
@click.option("--train-bytes", type=Size(), default="64M", show_default=True, metavar="SIZE",
              help="Train the tokenizer on about this much of the text, in documents spread evenly.")  # fmt: skip
@click.option("--holdout", type=float, default=0.0, metavar="SHARE",
              help="Hold out this share, 0.03 say, of the entries of each input folder, or of the lines of a .jsonl "
              "file, chosen by a hash: PREFIX-train.* and PREFIX-heldout.*.")  # fmt: skip
@click.option("--include", multiple=True, default=GLOBS, show_default=True, metavar="GLOB",
              help="Which files of a folder are text; may repeat.")  # fmt: skip
@click.option(
    "--exclude", multiple=True, metavar="GLOB", help="Which files and folders of a folder to leave out; may repeat."
)
@click.option(
    "--key", default="text", show_default=True, metavar="KEY", help="Where a line of a .jsonl file has its text."
)
@click.option("--eod", metavar="TOKEN", help="The token that ends each document, if it is not the tokenizer's eos.")
@click.option("--strict", is_flag=True, help="Stop at the first document that cannot be used instead of skipping it.")
@click.option(
    "--rejects", type=click.Path(path_type=Path), metavar="FILE", help="List each document that was skipped, and why."
)
@options.force()
def tokenize(
    inputs: tuple[Path, ...], prefix: Path, include: tuple[str, ...], exclude: tuple[str, ...], key: str, **rest: Any
) -> None:
    from neoxkit.data.prepare.tokenize import Request
    from neoxkit.data.prepare.tokenize import tokenize as run

    selection = Selection(include, exclude, key)
    report = run(Request(inputs=inputs, prefix=prefix, selection=selection, **rest))
    for part in report.parts:
        click.echo(_line(part))
    click.echo(_speed(report))


def _line(part: Part) -> str:
    return (
        f"{part.prefix}: {part.documents:,} documents, {part.bytes / 1e6:,.1f} MB of text, "
        f"{part.tokens:,} tokens ({part.bytes / part.tokens:.2f} bytes each)"
    )


def _speed(report: Report) -> str:
    tokens, size = sum(part.tokens for part in report.parts), sum(part.bytes for part in report.parts)
    trained = f", trained in {report.training_seconds:.1f} s" if report.training_seconds >= 0.05 else ""
    seconds = max(report.seconds, 1e-9)
    return (
        f"tokenizer {report.tokenizer}: {report.vocab:,} entries{trained}; "
        f"{size / seconds / 1e6:.1f} MB/s, {tokens / seconds:,.0f} tokens/s"
    )


for each in data_files.COMMANDS:
    command.add_command(each)

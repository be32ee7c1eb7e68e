"""neoxkit data tokenize: text into token files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neoxkit.cli import options
from neoxkit.data.text.sources import Selection
from neoxkit.log import counted

if TYPE_CHECKING:
    from neoxkit.data.prepare.request import Part
    from neoxkit.data.prepare.tokenize import Report

GLOBS = Selection().include
HELP = f"""Turn the text of INPUTS into PREFIX.bin and PREFIX.idx.

INPUTS are files, folders, quoted patterns ("data/*.jsonl.zst") and URLs that fsspec opens (https://,
s3://, hf://datasets/...). A file that is named is taken as it is, of a folder {", ".join(GLOBS[:-1])} and
{GLOBS[-1]} at any depth, unless --include says otherwise; .gz, .zst, .bz2 and .xz are read too. Of a
.jsonl file each line is a document, of a .json file each member of its array, or the one object that it
is, or each line, of a .parquet file each row; any other file is one document. PREFIX.json says which
tokenizer made the tokens, and PREFIX.files.txt lists files that are documents. Of several --key each has
its own, PREFIX-KEY.*, with the same rows.

Interrupted or killed, the same command goes on where it was, with the same result.
"""


@click.command(help=HELP)
@click.argument("inputs", nargs=-1)
@click.option("-o", "--output", "prefix", required=True, metavar="PREFIX", type=click.Path(path_type=Path),
              help="What the names of the files written begin with.")  # fmt: skip
@click.option("--tokenizer", type=click.Path(path_type=Path), metavar="PATH",
              help="A tokenizer of any kind: a file, a folder or a name. See docs/tokenizers.md.")  # fmt: skip
@click.option("--train-tokenizer", "vocab", type=int, metavar="N",
              help="Train a byte-level BPE of N entries on the training text instead: PREFIX-tokenizer/.")  # fmt: skip
@click.option("--train-bytes", type=options.Size(), default="64M", show_default=True, metavar="SIZE",
              help="Train the tokenizer on about this much of the text, in documents spread evenly.")  # fmt: skip
@click.option("--dataset", "datasets", multiple=True, metavar="NAME[:CONFIG]",
              help="A dataset of the Hugging Face Hub, or a folder, streamed by the datasets library; "
              "may repeat.")  # fmt: skip
@click.option("--split", default="train", show_default=True, metavar="NAME", help="The split of each --dataset.")
@click.option("--holdout", type=float, default=0.0, metavar="SHARE",
              help="Hold out this share, 0.03 say, of the entries of each input folder, or of the rows of a file, "
              "chosen by a hash: PREFIX-train.* and PREFIX-heldout.*.")  # fmt: skip
@click.option("--include", multiple=True, default=GLOBS, show_default=True, metavar="GLOB",
              help="Which files of a folder are text; may repeat.")  # fmt: skip
@click.option(
    "--exclude", multiple=True, metavar="GLOB", help="Which files and folders of a folder to leave out; may repeat."
)
@click.option("--key", "keys", multiple=True, default=("text",), show_default=True, metavar="KEY",
              help="Where a row has its text: a key of JSON, a column of a table; may repeat.")  # fmt: skip
@click.option("--eod", metavar="TOKEN", help="The token that ends each document, if it is not the tokenizer's eos.")
@click.option("--append-eod/--no-append-eod", default=True, show_default=True, help="End each document with a token.")
@click.option("--prepend-bos", is_flag=True, help="Begin each document with the tokenizer's bos.")
@click.option("--ftfy", is_flag=True, help="Mend each text with ftfy: wrong decodings, ligatures, NFC.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N",
              help="Processes that encode. [default: the cores, fewer for small inputs]")  # fmt: skip
@click.option("--max-documents", type=click.IntRange(min=1), metavar="N", help="Stop after N documents.")
@click.option("--max-document", type=options.Size(), default="1G", show_default=True, metavar="SIZE",
              help="Skip a line or a document that is longer, decompressed, without holding it.")  # fmt: skip
@click.option("--strict", is_flag=True, help="Stop at the first document that cannot be used instead of skipping it.")
@click.option(
    "--rejects", type=click.Path(path_type=Path), metavar="FILE", help="List each document that was skipped, and why."
)
@options.force()
@options.json()
def tokenize(
    inputs: tuple[str, ...],
    prefix: Path,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    keys: tuple[str, ...],
    datasets: tuple[str, ...],
    split: str,
    as_json: bool,
    **rest: Any,
) -> None:
    from neoxkit.data.prepare.request import Request
    from neoxkit.data.prepare.tokenize import tokenize as run
    from neoxkit.data.text.sources import Dataset

    named = tuple(Dataset(name, split) for name in datasets)
    selection = Selection(include, exclude, keys)
    report = run(Request(inputs=inputs, datasets=named, prefix=prefix, selection=selection, **rest))
    if as_json:
        click.echo(report_json(report))
        return
    for part in report.parts:
        click.echo(_line(part))
    click.echo(_speed(report))


def _line(part: Part) -> str:
    return (
        f"{part.prefix}: {counted(part.documents, 'document')}, {part.bytes / 1e6:,.1f} MB of text, "
        f"{counted(part.tokens, 'token')} ({part.bytes / max(part.tokens, 1):.2f} bytes each)"
    )


def _speed(report: Report) -> str:
    trained = f", trained in {report.training_seconds:.1f} s" if report.training_seconds >= 0.05 else ""
    seconds = max(report.seconds, 1e-9)
    return (
        f"tokenizer {report.tokenizer}: {report.vocab:,} entries{trained}; "
        f"{report.encoded / seconds / 1e6:.1f} MB/s, {report.made / seconds:,.0f} tokens/s"
    )


def report_json(report: Report) -> str:
    """What was written, as JSON:

    parts               [{"prefix", "part", "key", "documents", "tokens", "bytes"}]: part is all, train or heldout
    tokenizer, vocab    the tokenizer that was used, and its entries
    skipped             {kind of fault: documents}
    seconds             of the encoding alone
    """
    import json

    parts = [
        {
            "prefix": str(part.prefix),
            "part": part.name,
            "key": part.key,
            "documents": part.documents,
            "tokens": part.tokens,
            "bytes": part.bytes,
        }
        for part in report.parts
    ]
    rest = {"tokenizer": str(report.tokenizer), "vocab": report.vocab, "skipped": report.skipped}
    return json.dumps({"parts": parts, **rest, "seconds": report.seconds}, indent=2)

"""neoxkit eval: what a model is worth."""

from __future__ import annotations

import json
from pathlib import Path

import click

from neoxkit.checkpoint.store import Place
from neoxkit.cli import options
from neoxkit.errors import DataError


@click.command()
@click.argument("source", type=options.PLACE)
@click.option(
    "--perplexity",
    "files",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="A text to foretell; may be given many times.",
)
@click.option(
    "--files-from", "listing", type=click.Path(path_type=Path), help="A file with the name of a text on each line."
)
@click.option("--tokenizer", type=click.Path(path_type=Path), help="The tokenizer; SOURCE's own when left out.")
@options.run_dtype()
@options.device()
@options.json()
def command(
    source: Place,
    files: tuple[Path, ...],
    listing: Path | None,
    tokenizer: Path | None,
    dtype: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Measure bits per byte and perplexity on texts.

    SOURCE is a checkpoint, a run's folder (its newest checkpoint) or a Hugging Face folder. Each
    file is a text of its own, foretold from the token that ends documents.
    """
    from neoxkit.eval.texts import named_files, read_texts

    names = named_files(files, listing)

    from neoxkit.eval.perplexity import perplexity
    from neoxkit.log import progress

    model, words, _ = options.load_model(source, tokenizer, dtype, device)
    if words.eos is None:
        raise DataError(f"{words.path}: no token that ends a document, to foretell a text from", "see --tokenizer")
    texts = read_texts(names, words)
    total = sum(len(ids) for ids, _ in texts)
    with progress("evaluate", total, "tokens") as bar:
        found = perplexity(model, texts, words.eos, progress=bar)
    result = {
        "bits_per_byte": found.bits_per_byte,
        "perplexity": found.per_token,
        "tokens": found.tokens,
        "bytes": found.bytes,
        "files": len(names),
        "dtype": options.spelled_dtype(model),
    }
    if as_json:
        click.echo(json.dumps(result))
    else:
        click.echo(
            f"{found.bits_per_byte:.4f} bits per byte; perplexity {found.per_token:.2f} per token "
            f"({len(names)} files, {found.bytes:,} bytes, {found.tokens:,} tokens; in {result['dtype']})"
        )

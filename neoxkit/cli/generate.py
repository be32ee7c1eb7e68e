"""neoxkit generate: text that continues a prompt."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from neoxkit.checkpoint.store import Place
from neoxkit.cli import options
from neoxkit.errors import DataError
from neoxkit.log import note


@click.command()
@click.argument("source", type=options.PLACE)
@click.option("--prompt", metavar="TEXT", help="The text to continue; - reads it from standard input.")
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=128, show_default=True, metavar="N", help="New tokens at most."
)
@click.option(
    "--temperature",
    type=options.Finite(min=0),
    default=0.0,
    show_default=True,
    metavar="T",
    help="0: the likeliest token each time.",
)
@click.option(
    "--top-k",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="K",
    help="Draw from the K likeliest tokens; 0: from all.",
)
@click.option(
    "--top-p",
    type=options.Finite(min=0, max=1, min_open=True),
    default=1.0,
    show_default=True,
    metavar="P",
    help="Draw from the likeliest tokens that hold P together.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0, max=2**64 - 1),
    default=0,
    show_default=True,
    metavar="N",
    help="The same seed draws the same text.",
)
@click.option("--tokenizer", type=click.Path(path_type=Path), help="The tokenizer; SOURCE's own when left out.")
@options.run_dtype()
@options.device()
def command(
    source: Place,
    prompt: str | None,
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    tokenizer: Path | None,
    dtype: str | None,
    device: str,
) -> None:
    """Continue a prompt.

    SOURCE is a checkpoint, a run's folder (its newest checkpoint) or a Hugging Face folder. The
    prompt and its continuation go to standard output as they are made.
    """
    if prompt is None:
        raise click.UsageError("Missing option '--prompt'.", click.get_current_context())
    text = prompt_text(prompt)

    from neoxkit.convert.tokenizer import stop_ids
    from neoxkit.serve.generate import continuation
    from neoxkit.serve.sampler import Sampling
    from neoxkit.serve.text import deltas

    model, words, folder = options.load_model(source, tokenizer, dtype, device)
    ids = words.encode(text, special=True)
    if not ids and model.config.tokens.bos is not None:
        ids = [model.config.tokens.bos]
    tokens = continuation(
        model, ids, max_tokens, Sampling(temperature, top_k, top_p), seed, stop_ids(folder, model.config)
    )
    click.echo(text, nl=False)
    new: list[int] = []
    for piece in deltas(_kept(tokens, new), words.decode, before=ids):
        click.echo(piece, nl=False)
    click.echo()
    context = model.config.context
    if len(ids) + len(new) == context and len(new) < max_tokens:
        note(f"stopped after {len(new)} new tokens: the model's context of {context} is full")


def _kept(tokens: Iterable[int], into: list[int]) -> Iterator[int]:
    """The tokens as they come, each put into a list on the way."""
    for token in tokens:
        into.append(token)
        yield token


def prompt_text(prompt: str) -> str:
    """The prompt, read from standard input when it is "-". Raises DataError when it is not UTF-8."""
    try:
        if prompt == "-":
            return sys.stdin.buffer.read().decode("utf-8")
        prompt.encode("utf-8")  # bytes of an argument that are no text come as lone surrogates
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise DataError(f"the prompt is not UTF-8 ({error.reason} at {error.start})", "give text in UTF-8") from None
    return prompt

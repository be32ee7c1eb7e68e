"""neoxkit data chat, neoxkit data pairs: conversations and preferences into token files with labels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from neoxkit.cli import options
from neoxkit.log import counted

if TYPE_CHECKING:
    from neoxkit.data.prepare.examples import Recipe, Wanted
    from neoxkit.data.prepare.supervised import Report, Request

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def shared(command: Decorated) -> Decorated:
    """The argument and the options that both commands have."""
    given = (
        click.argument("inputs", nargs=-1),
        click.option("-o", "--output", "prefix", required=True, metavar="PREFIX", type=click.Path(path_type=Path),
                     help="What the names of the files written begin with."),
        click.option("--tokenizer", required=True, type=click.Path(path_type=Path), metavar="PATH",
                     help="A tokenizer.json, or a folder with one, such as a Hugging Face model."),
        click.option("--chat-template", "template", type=click.Path(path_type=Path), metavar="FILE",
                     help="A chat template, instead of the tokenizer's own."),
        click.option("--dataset", "datasets", multiple=True, metavar="NAME[:CONFIG]",
                     help="A dataset of the Hugging Face Hub, or a folder, streamed by the datasets library; "
                     "may repeat."),
        click.option("--split", default="train", show_default=True, metavar="NAME",
                     help="The split of each --dataset."),
        click.option("--eod", metavar="TOKEN",
                     help="The token that ends plain text, if it is not the tokenizer's eos."),
        click.option("--max-tokens", type=click.IntRange(min=2), metavar="N",
                     help="The most tokens that a document may have."),
        click.option("--overlong", type=click.Choice(["skip", "cut"]), default="skip", show_default=True,
                     help="What to do with one that has more: leave it out, or keep its beginning."),
        click.option("--workers", type=click.IntRange(min=1), metavar="N",
                     help="Processes that apply the template and tokenize; the files are the same for any number. "
                          "[default: the cores, fewer for small inputs]"),
        click.option("--strict", is_flag=True, help="Stop at the first row that cannot be used, and write nothing."),
        click.option("--rejects", type=click.Path(path_type=Path), metavar="FILE",
                     help="List each row that was skipped, and why."),
        options.force(),
        options.json(),
    )  # fmt: skip
    for option in reversed(given):
        command = option(command)
    return command


CHAT = """Turn the conversations of INPUTS into PREFIX.bin and PREFIX.idx, and labels beside them.

INPUTS are what `neoxkit data tokenize` takes. A row is a line of a .jsonl file, an item of the array in a .json file,
or a row of a .parquet file or a dataset: {"messages": [...]} as OpenAI
has it, {"conversations": [...]} as ShareGPT, {"instruction", "input", "output"} as Alpaca, {"prompt", "completion"},
or a list of messages. A conversation becomes one document, written by the tokenizer's chat template.
PREFIX-labels says which of its tokens are learned: what the assistant says, and what ends it.
"""


@click.command(help=CHAT)
@shared
@click.option("--key", metavar="KEY", help="Where a row has its messages, if it is none of these places.")
@click.option("--learn", multiple=True, default=("assistant",), show_default=True, metavar="ROLE",
              help="Whose messages are learned; may repeat. `all`: every token.")  # fmt: skip
@click.option("--only-last", is_flag=True, help="Learn only the last message of these.")
@click.option("--mask-before", metavar="TEXT",
              help="Rows are {\"text\"}, plain text, of which what follows the first TEXT is learned.")  # fmt: skip
def chat(
    key: str | None, learn: tuple[str, ...], only_last: bool, mask_before: str | None, as_json: bool, **rest: Any
) -> None:
    from neoxkit.data.prepare.chat import chat as run
    from neoxkit.data.prepare.chat import chat_row
    from neoxkit.data.prepare.spans import Learning

    if mask_before == "":
        raise click.UsageError("--mask-before is empty")
    request, recipe = _parted(rest, Learning(frozenset(learn), only_last))
    show(run(request, recipe(partial(chat_row, key=key, mask_before=mask_before))), as_json)


PAIRS = """Turn the preferences of INPUTS, JSON or Parquet files, into token files with labels and scores.

\b
{"prompt", "chosen", "rejected"}   PREFIX-chosen and PREFIX-rejected, aligned document by document
{"prompt", "completion", "label"}  PREFIX, with score 1 where the label is true and -1 where it is false
{"messages" or "text", "score"}    PREFIX, with that score

The first row decides which of these all are. Sides are texts or messages; a prompt that is not given is
what both sides begin with. The prompt is not learned.
"""


@click.command(help=PAIRS)
@shared
@click.option("--score-key", metavar="KEY", help="Where a row has its score, if not in score or reward.")
def pairs(score_key: str | None, as_json: bool, **rest: Any) -> None:
    from neoxkit.data.prepare.pairs import pairs as run
    from neoxkit.data.prepare.spans import Learning

    request, recipe = _parted(rest, Learning())
    show(run(request, recipe, score_key), as_json)


def _parted(given: dict[str, Any], learning: Any) -> tuple[Request, Callable[[Callable[[Any], Wanted]], Recipe]]:
    """What to read and write, and the recipe, which lacks what reads a row."""
    from neoxkit.data.prepare.examples import Recipe
    from neoxkit.data.prepare.supervised import Request
    from neoxkit.data.text.sources import Dataset

    split = given.pop("split")
    given["datasets"] = tuple(Dataset(name, split) for name in given["datasets"])
    cooked = {name: given.pop(name) for name in ("tokenizer", "template", "eod", "max_tokens", "overlong")}
    return Request(**given), lambda parse: Recipe(parse=parse, learning=learning, **cooked)


def show(report: Report, as_json: bool) -> None:
    """Print what was written. As JSON:

    outputs    [{"prefix", "columns", "documents", "tokens", "learned", "bytes", "cut"}]: learned counts tokens, cut
               documents that lost their end
    skipped    {kind of fault: rows}
    seconds
    """
    counts = ("documents", "tokens", "learned", "bytes", "cut")
    outputs = [
        {"prefix": str(each.prefix), "columns": each.columns} | {name: getattr(each, name) for name in counts}
        for each in report.outputs
    ]
    if as_json:
        import json

        click.echo(json.dumps({"outputs": outputs, "skipped": report.skipped, "seconds": report.seconds}, indent=2))
        return
    for each in report.outputs:
        cut = f", {each.cut:,} of them cut" if each.cut else ""
        click.echo(
            f"{each.prefix}: {counted(each.documents, 'document')}{cut}, {counted(each.tokens, 'token')}, "
            f"of which {each.learned:,} ({each.learned / each.tokens:.1%}) are learned; "
            f"columns {', '.join(each.columns)}"
        )
    tokens = sum(each.tokens for each in report.outputs)
    click.echo(f"{report.seconds:.1f} s, {tokens / max(report.seconds, 1e-9):,.0f} tokens/s")

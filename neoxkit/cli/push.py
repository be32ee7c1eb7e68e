"""neoxkit push: publish a checkpoint on the Hugging Face Hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neoxkit.checkpoint.store import Place
from neoxkit.cli import options
from neoxkit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from neoxkit.convert.hub import Named
    from neoxkit.convert.push.publish import Order, Published


@click.command()
@click.argument("source", metavar="SRC", type=options.PLACE)
@click.argument("repo", metavar="REPO")
@click.option("--revision", metavar="BRANCH", help="The branch to publish to, made if need be; main when left out.")
@click.option("--private", is_flag=True, help="Make the repository private.")
@click.option("--as", "form", metavar="FORM", default="auto", show_default=True,
              help="A family, as `neoxkit export --to` takes it, or neoxkit: the checkpoint as it is.")  # fmt: skip
@click.option("--every-step", is_flag=True,
              help="SRC is a run: each of its checkpoints becomes the branch stepN, the newest main too.")  # fmt: skip
@options.dtype("Convert the weights; as they are when left out.")
@click.option("--max-shard-size", default="5GB", show_default=True, metavar="SIZE",
              help="Of a weight file: 500MB, 5GB. Two at a time are on the disk.")  # fmt: skip
@click.option("--license", "licence", metavar="ID", help="For the card: apache-2.0, mit, or another id of the Hub.")
@click.option("--dataset", "data", metavar="ID", multiple=True,
              help="For the card: a data set of the Hub it learned from; may be given several times.")  # fmt: skip
@click.option("--results", metavar="FILE", multiple=True, type=click.Path(path_type=Path),
              help="For the card: a results file of lm-evaluation-harness; may be given several times.")  # fmt: skip
@options.dry_run()
@click.option("--force", is_flag=True, help="Replace another model that the branch holds.")
@options.json()
def command(
    source: Place,
    repo: str,
    revision: str | None,
    every_step: bool,
    dry_run: bool,
    as_json: bool,
    **how: Any,
) -> None:
    """Publish a checkpoint on the Hugging Face Hub.

    SRC is a checkpoint, or a run's folder (its newest checkpoint). REPO is ORG/NAME; it is made when
    it is not there. Weight files are exported and sent one after the other; then one commit names all
    files, so that nobody sees a part of a model. Interrupted, the same command goes on: what was sent is
    not sent again. The token is that of `hf auth login`, or HF_TOKEN. `neoxkit import REPO@BRANCH`
    gives the same weights back.
    """
    target = target_of(repo, revision)
    if every_step and target.revision is not None:
        raise ConfigError(f"--every-step and the revision {target.revision}: each step has its own", "leave it out")
    options.require("huggingface_hub", "hf")
    from neoxkit.checkpoint.reader import Checkpoint
    from neoxkit.convert.push.publish import look, publish, publish_run

    order = order_of(**how)
    if every_step and order.said.results:
        raise ConfigError("--every-step and --results: results are of one checkpoint", "push that step by itself")
    with orderly():
        if every_step:
            for each in publish_run(source, target.name, order, dry_run):
                show(each, as_json)
        else:
            with Checkpoint.open(source) as checkpoint:
                show((look if dry_run else publish)(checkpoint, target, order), as_json)


@contextmanager
def orderly() -> Iterator[None]:
    """Let a push that is interrupted remove its temporary files, and say what became of it."""
    with options.terminated_as_interrupted() as stopped:
        try:
            yield
        except KeyboardInterrupt:
            became = "nothing is half published; the same command goes on"
            if stopped:
                click.echo(f"error: interrupted; {became}", err=True)
                raise SystemExit(128 + stopped[0]) from None
            raise KeyboardInterrupt(became) from None


def target_of(repo: str, revision: str | None) -> Named:
    """The repository and branch that were named. Raises ConfigError when they are no such names, or two branches."""
    from neoxkit.convert.hub import Named, spelled

    found = spelled(repo)
    if found is None:
        raise ConfigError(f"{repo}: no name of a repository on the Hub", "write it as ORG/NAME")
    if found.revision is not None and revision not in (None, found.revision):
        raise ConfigError(f"{repo} and --revision {revision} name two branches", "keep one")
    chosen = revision or found.revision
    return Named(found.name, None if chosen == "main" else chosen)


def order_of(
    private: bool,
    form: str,
    dtype: str | None,
    max_shard_size: str,
    licence: str | None,
    data: tuple[str, ...],
    results: tuple[Path, ...],
    force: bool,
) -> Order:
    """How to publish. Raises ConfigError for what contradicts itself, DataError for a file that cannot be read."""
    from neoxkit.convert.push.card import Said
    from neoxkit.convert.push.publish import Order

    if form == "neoxkit" and dtype is not None:
        raise ConfigError("--as neoxkit --dtype: a checkpoint is published as it is", "leave one of them out")
    said = Said(licence, data, tuple(map(read_results, results)))
    return Order(form, options.safetensors_dtype(dtype), options.size_in_bytes(max_shard_size), private, force, said)


def read_results(path: Path) -> Any:
    """A results file. Raises DataError when it is no JSON."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: not valid JSON ({error})", "give a results_*.json of lm-evaluation-harness"
        ) from error


def show(found: Published, as_json: bool) -> None:
    """Print what a push came to; of a dry run, what it would come to."""
    said = found.json()
    if as_json:
        click.echo(json.dumps(said))
        return
    where = f"{said['repo']}@{said['revision']}"
    if said["commit"] is not None:
        click.echo(f"{where}: model {said['model']}, {said['url']}")
        return
    state = "holds this model" if said["before"] == said["model"] else f"holds the model {said['before']}"
    if said["before"] is None:
        state = "would be made" if found.held.head is None else "holds no model"
    click.echo(f"{where} {state}; it would be of the model {said['model']}, as {said['form']}:")
    for name, data in found.content.small.items():
        click.echo(f"{len(data):>16,}  {name}")
    options.print_plan(found.content.sizes)

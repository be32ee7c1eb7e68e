"""neoxkit eval: what a model is worth."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neoxkit.checkpoint.store import Place
from neoxkit.cli import options
from neoxkit.cli.push import target_of
from neoxkit.cli.running import COUNT, ModelOptions, model_options
from neoxkit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from neoxkit.convert.hub import Named
    from neoxkit.eval.benchmark import Benchmarks, Results
    from neoxkit.eval.replicas import Model

AUTO = "auto"


class Batch(click.ParamType):
    """A count, or auto."""

    name = "batch"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """The count; None for auto."""
        if value is None or value == AUTO:
            return None
        found: int = COUNT.convert(value, param, ctx)
        return found


TASKS: tuple[options.Decorator[Any], ...] = (
    click.option(
        "--tasks", multiple=True, metavar="NAMES", help="Benchmarks, by names, patterns or YAML files; with commas."
    ),
    click.option("--list-tasks", is_flag=True, help="Print the names of all benchmarks."),
    click.option(
        "--include-path",
        multiple=True,
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="A folder with more benchmarks, in YAML; may be given several times.",
    ),
    click.option("--num-fewshot", type=click.IntRange(min=0), metavar="N", help="Examples before each question."),
    click.option(
        "--limit",
        type=options.Finite(min=0, min_open=True),
        metavar="N",
        help="Only the first N documents of each benchmark, or below 1 that share: for a trial, not for a paper.",
    ),
    click.option("--apply-chat-template", is_flag=True, help="Put questions into the model's chat template."),
    click.option("--chat-template", metavar="NAME", help="The same, with the template of this name."),
    click.option(
        "--fewshot-as-multiturn/--fewshot-as-one-turn",
        default=True,
        show_default=True,
        help="Whether examples are turns of a chat.",
    ),
    click.option("--system", metavar="TEXT", help="The system message."),
    click.option("--gen-kwargs", metavar="K=V,...", help="Settings of generation, over those of the benchmarks."),
    click.option("--seed", type=int, metavar="N", help="For what is drawn: few-shot examples, answers."),
    click.option("--cache-requests", is_flag=True, help="Keep the questions that are built, for the next model."),
    click.option(
        "--unsafe-code", is_flag=True, help="Run benchmarks that execute what the model writes, on this machine."
    ),
)
"""The options of benchmarks, in the order of the help."""


def task_options(function: options.Decorated) -> options.Decorated:
    """The options of TASKS."""
    for option in reversed(TASKS):
        function = option(function)
    return function


@click.command()
@click.argument("source", type=options.PLACE, required=False)
@task_options
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
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where results and answers go; what was interrupted there goes on.",
)
@click.option("--watch", is_flag=True, help="Evaluate each checkpoint of a run, SOURCE, as it comes.")
@click.option(
    "--poll",
    type=options.Finite(min=0, min_open=True),
    default=30,
    show_default=True,
    metavar="SECONDS",
    help="How often --watch looks for checkpoints.",
)
@click.option("--push", "repo", metavar="REPO[@BRANCH]", help="Add the results to the card of this model on the Hub.")
@click.option("--name", metavar="NAME", help="What the model is called in the results; SOURCE when left out.")
@click.option("--batch", type=Batch(), default=AUTO, show_default=True, metavar="N", help="Texts at once, or auto.")
@click.option(
    "--dp", type=COUNT, default=1, show_default=True, metavar="N", help="Data parallel size: copies of the model."
)
@model_options
@options.json()
def command(
    source: Place | None,
    files: tuple[Path, ...],
    listing: Path | None,
    output: Path | None,
    watch: bool,
    poll: float,
    repo: str | None,
    name: str | None,
    batch: int | None,
    dp: int,
    asked: ModelOptions,
    as_json: bool,
    list_tasks: bool,
    **given: Any,
) -> None:
    """Run benchmarks, or measure bits per byte on texts.

    SOURCE is a checkpoint, a run's folder (its newest checkpoint) or anything that `neoxkit import`
    takes. Benchmarks are those of lm-evaluation-harness; results are printed as a table, and written
    in its own format. For perplexity, each file is a text of its own, foretold from the token that
    ends documents.
    """
    if list_tasks:
        print_tasks(given["include_path"])
        return
    if source is None:
        raise click.UsageError("Missing argument 'SOURCE'.", click.get_current_context())
    measures_texts = bool(files or listing)
    more = {"output": output, "watch": watch, "push": repo, "name": name}
    check_modes(bool(given["tasks"]), measures_texts, {**given, **more})
    if watch and repo is not None:
        raise click.UsageError("--push is for the results of one model, not for --watch", click.get_current_context())
    if measures_texts:
        texts(source, files, listing, asked, batch, dp, as_json)
        return
    with redirect_stdout(sys.stderr):  # which the harness, and what it loads, would write to
        wanted = benchmarks_of(given)
    if watch:
        watched(source, wanted, asked, batch, dp, output, name, poll, as_json)
        return
    target = None if repo is None else target_of(repo, None)
    with redirect_stdout(sys.stderr):
        found = benchmarks(source, wanted, asked, batch, dp, output, name or str(source), target)

    from neoxkit.eval.benchmark import as_json as in_json
    from neoxkit.eval.benchmark import table

    click.echo(in_json(found) if as_json else table(found))
    if target is not None:
        from neoxkit.convert.push import add_results
        from neoxkit.log import note

        note(f"added to the card: {add_results(target.name, [json.loads(in_json(found))], target.revision)}")


def check_modes(tasks: bool, measures_texts: bool, given: dict[str, Any]) -> None:
    """Raise UsageError unless the command line has one thing to do, and no option without effect."""
    if tasks == measures_texts:
        line = "--tasks and --perplexity are two different things to do" if tasks else "Missing option '--tasks'"
        raise click.UsageError(line, click.get_current_context())
    if measures_texts:
        idle = [key for key, value in given.items() if value not in (None, (), False) and key != "fewshot_as_multiturn"]
        if idle:
            option = "--" + idle[0].replace("_", "-")
            raise click.UsageError(f"{option} is for --tasks", click.get_current_context())


def benchmarks_of(given: dict[str, Any]) -> Benchmarks:
    """The benchmarks that the options ask for."""
    options.require("lm_eval", "eval")
    from neoxkit.eval.benchmark import Benchmarks

    names = [task.strip() for each in given.pop("tasks") for task in each.split(",")]
    named, applied = given.pop("chat_template"), given.pop("apply_chat_template")
    return Benchmarks(
        tasks=tuple(task for task in names if task),
        apply_chat_template=named or applied,
        system_instruction=given.pop("system"),
        **given,
    )


def print_tasks(include_path: tuple[Path, ...]) -> None:
    """Print the names of all benchmarks, a line each."""
    options.require("lm_eval", "eval")
    from neoxkit.eval.benchmark import Benchmarks, check_tasks

    with redirect_stdout(sys.stderr):
        known = check_tasks(Benchmarks(tasks=(), include_path=include_path)).all_tasks
    for task in known:
        click.echo(task)


def benchmarks(
    source: Place,
    wanted: Benchmarks,
    asked: ModelOptions,
    batch: int | None,
    dp: int,
    output: Path | None,
    name: str,
    target: Named | None = None,
) -> Results:
    """Run benchmarks. That their results can be added to a `target` on the Hub is seen to before."""
    from contextlib import ExitStack

    from neoxkit.convert.open import open_any
    from neoxkit.eval.benchmark import check_tasks, evaluate
    from neoxkit.eval.harness import NeoxkitLM
    from neoxkit.eval.journal import Journal
    from neoxkit.eval.replicas import open_model
    from neoxkit.eval.subject import about, journal_path, limits_of
    from neoxkit.log import note

    manager = check_tasks(wanted)
    if output is not None and output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output}: not a folder", "name a folder")
    opening = asked.opening(source, limits_of(batch, asked.device))
    described = about(source, open_any(source, options.assumptions(asked.assume), asked.config))
    if target is not None:
        from neoxkit.convert.push import check_results_can_be_added

        check_results_can_be_added(target.name, described["model_sha"], target.revision)
    with ExitStack() as stack:
        model: Model = stack.enter_context(open_model(opening, dp))
        journal = None
        if output is not None:
            settings = f"{model.facts.dtype} {model.facts.context} {model.tokenizer.fingerprint}"
            path = journal_path(output, described["model_sha"], settings)
            journal = stack.enter_context(Journal(path))
            if len(journal):
                note(f"{path}: {len(journal):,} answers are there already; going on")
        return evaluate(NeoxkitLM(model, about=described, journal=journal), wanted, manager, output, name)


def watched(
    source: Place,
    wanted: Benchmarks,
    asked: ModelOptions,
    batch: int | None,
    dp: int,
    output: Path | None,
    name: str | None,
    poll: float,
    as_json: bool,
) -> None:
    """Evaluate the checkpoints of a run as they come; print a line for each."""
    from dataclasses import asdict

    from neoxkit.eval.benchmark import check_tasks
    from neoxkit.eval.watch import settings_key, watch

    run = Path(source) if isinstance(source, Path) else None
    if run is None:
        raise ConfigError(f"{source}: --watch needs a folder of a disk", "evaluate its checkpoints one by one")
    with redirect_stdout(sys.stderr):
        check_tasks(wanted)
    folder = output or run / "evaluation"
    settings = settings_key({**asdict(wanted), "dtype": asked.dtype, "context": asked.max_context})

    def evaluate(checkpoint: Path) -> Results:
        called = f"{name or run}-{checkpoint.name}"
        with redirect_stdout(sys.stderr):
            return benchmarks(checkpoint, wanted, asked, batch, dp, folder, called)

    for record in watch(run, evaluate, settings, poll):
        if as_json:
            click.echo(json.dumps(record))
        else:
            told = "  ".join(f"{key} {value:.4g}" for key, value in record["scores"].items())
            click.echo(f"step {record['step']}  {told}")


def texts(
    source: Place,
    files: tuple[Path, ...],
    listing: Path | None,
    asked: ModelOptions,
    batch: int | None,
    dp: int,
    as_json: bool,
) -> None:
    """Measure bits per byte, print them."""
    from neoxkit.eval.texts import named_files, read_texts

    names = named_files(files, listing)

    from neoxkit.eval.perplexity import perplexity
    from neoxkit.eval.replicas import open_model
    from neoxkit.eval.subject import limits_of
    from neoxkit.log import progress

    with open_model(asked.opening(source, limits_of(batch, asked.device)), dp) as model:
        words = model.tokenizer
        if words.eos is None:
            raise DataError(f"{words.path}: no token that ends a document, to foretell a text from", "see --tokenizer")
        read = read_texts(names, words)
        with progress("evaluate", sum(len(ids) for ids, _ in read), "tokens") as bar:
            found = perplexity(model, read, words.eos, progress=bar)
        dtype = options.spelled_dtype(model.facts.dtype)
    result = {
        "bits_per_byte": found.bits_per_byte,
        "perplexity": found.per_token,
        "tokens": found.tokens,
        "bytes": found.bytes,
        "files": len(names),
        "dtype": dtype,
    }
    if as_json:
        click.echo(json.dumps(result))
    else:
        click.echo(
            f"{found.bits_per_byte:.4f} bits per byte; perplexity {found.per_token:.2f} per token "
            f"({len(names)} files, {found.bytes:,} bytes, {found.tokens:,} tokens; in {dtype})"
        )

"""neoxkit scores: results of evaluations, beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from neoxkit.cli import options
from neoxkit.errors import ConfigError

if TYPE_CHECKING:
    from neoxkit.eval.scores import Scores

FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("results", type=options.FOLDER, nargs=-1, required=True)
@click.option("--task", "tasks", multiple=True, metavar="NAME",
              help="Only this task, or those of a pattern: 'mmlu_*'; may be given several times.")  # fmt: skip
@click.option("--metric", "metrics", multiple=True, metavar="NAME",
              help="Only this metric, such as acc; may be given several times.")  # fmt: skip
@click.option("--plot", type=FILE, metavar="FILE",
              help="Write a picture: PNG, SVG or PDF, by its name.")  # fmt: skip
@click.option("--page", type=FILE, metavar="FILE",
              help="Write a page of HTML with charts and tables, which needs no network.")  # fmt: skip
@click.option("--tokens", is_flag=True, help="Draw over trained tokens instead of steps.")
@options.force()
@options.json()
def command(
    results: tuple[Path, ...],
    tasks: tuple[str, ...],
    metrics: tuple[str, ...],
    plot: Path | None,
    page: Path | None,
    tokens: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Show and compare the results of evaluations.

    RESULTS are results_*.json files that `neoxkit eval --tasks` or lm_eval wrote, or folders in which
    they lie at any depth. Of several for the same model, task and settings the newest counts. Prints
    values and standard errors: tasks by models, or steps by runs when there are several steps of a
    run. Two models are compared: whether the second is better, worse, or within the error, at 95 %.
    What was measured in different ways (task version, examples, documents, prompts, templates) stands
    in rows of its own, and is not compared.
    """
    from neoxkit.eval import tables
    from neoxkit.eval.results import find, read
    from neoxkit.eval.scores import collect

    _check_free(plot, page, force)
    found = collect([read(path) for path in find(results)], tasks, metrics)
    if plot is not None or page is not None or tokens:
        _draw(found, plot, page, tokens)
    if as_json:
        import json

        click.echo(json.dumps(found.json(), indent=2, ensure_ascii=False))
        return
    for line in (*tables.lines(tables.table(found)), *tables.notes(found)):
        click.echo(line)


def _check_free(plot: Path | None, page: Path | None, force: bool) -> None:
    """Raise ConfigError for files that can not be written, before anything is read."""
    from neoxkit.eval.picture import KINDS

    if plot is not None:
        options.require("matplotlib", "plot")
        if plot.suffix.lower() not in KINDS:
            raise ConfigError(f"--plot {plot}: not a name of a picture", f"let it end in {', '.join(KINDS)}")
    for option, path in (("--plot", plot), ("--page", page)):
        if path is None:
            continue
        if path.exists() and not force:
            raise ConfigError(f"{option} {path}: is there already", "name another file, or replace it with --force")
        if not path.parent.is_dir():
            raise ConfigError(f"{option} {path}: {path.parent} is no folder", "make it first, or write elsewhere")


def _draw(found: Scores, plot: Path | None, page: Path | None, tokens: bool) -> None:
    from neoxkit.eval.charts import charts
    from neoxkit.eval.page import page as whole_page
    from neoxkit.eval.picture import write as write_picture
    from neoxkit.log import note
    from neoxkit.train.page import write

    drawn = charts(found, tokens)
    if plot is not None:
        if not drawn:
            raise ConfigError(f"--plot {plot}: there is no number to draw", "look at what the table says")
        write_picture(plot, drawn)
        note(f"wrote {plot}")
    if page is not None:
        write(page, whole_page(found, drawn))
        note(f"wrote {page}")

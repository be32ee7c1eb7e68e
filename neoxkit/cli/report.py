"""neoxkit report: how a run went, as one page."""

from __future__ import annotations

from pathlib import Path

import click

from neoxkit.cli import options


@click.command()
@click.argument("run", type=options.FOLDER)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Where to write it. RUN/report.html when left out.")  # fmt: skip
def command(run: Path, output: Path | None) -> None:
    """Make a page of HTML of how a run went.

    RUN is the folder of a run, in training or not. The page has the curves of what was measured, the
    last values, events, checkpoints and the run's options. It is one file which needs no network:
    it can be sent to others. Prints where it is.
    """
    from neoxkit.train.page import write
    from neoxkit.train.report import look, page

    found = look(run)
    path = output or run / "report.html"
    write(path, page(found))
    click.echo(path)

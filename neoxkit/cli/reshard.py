"""neoxkit reshard: the same checkpoint, cut for another number of devices."""

from __future__ import annotations

from pathlib import Path

import click

from neoxkit.cli import options


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("destination", type=click.Path(path_type=Path))
@options.tp()
@options.pp()
@options.dtype("Convert the weights; as they are when left out.")
@click.option("--weights-only", is_flag=True, help="Leave the optimizer and the trainer's state behind.")
@options.dry_run()
@options.force()
@options.whole_or_nothing
def command(
    source: Path,
    destination: Path,
    tp: int,
    pp: int,
    dtype: str | None,
    weights_only: bool,
    dry_run: bool,
    force: bool,
) -> None:
    """Cut a checkpoint for another number of devices.

    SOURCE is a checkpoint, or a run's folder (its newest checkpoint). Every number stays as it is,
    the optimizer's too.
    """
    from neoxkit.checkpoint.attempt import check_destination
    from neoxkit.checkpoint.folder import not_a_checkpoint
    from neoxkit.checkpoint.reader import Checkpoint
    from neoxkit.convert.copy import Converted
    from neoxkit.convert.transfer import file_sizes, kept_names, parts_for, reshard
    from neoxkit.mesh import Mesh

    check_destination(destination, force, not_a_checkpoint)
    checkpoint = Checkpoint.open(source)
    mesh, kept = Mesh(tp=tp, pp=pp), options.safetensors_dtype(dtype)
    if dry_run:
        names = kept_names(checkpoint, kept, weights_only)
        options.print_plan(file_sizes(parts_for(Converted(checkpoint, kept), names, mesh)))
        return
    reshard(checkpoint, destination, mesh, kept, weights_only, force)
    options.print_checkpoint(destination)

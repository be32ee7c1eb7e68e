"""neoxkit reshard: the same checkpoint, cut for another number of devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from neoxkit.checkpoint.store import Place
from neoxkit.cli import options

if TYPE_CHECKING:
    from neoxkit.checkpoint.plan import Layout


@click.command()
@click.argument("source", type=options.PLACE)
@click.argument("destination", type=options.PLACE)
@options.tp()
@options.pp()
@options.ep()
@click.option("--layout", type=click.Choice(["sharded", "whole"]),
              help="whole: tensors whole, in files of at most 5 GB. sharded: a file for each place that --tp, --pp and "
              "--ep make. When left out: whole if they make one.")  # fmt: skip
@options.dtype("Convert the weights; as they are when left out.")
@click.option("--weights-only", is_flag=True, help="Leave the optimizer and the trainer's state behind.")
@options.dry_run()
@options.force()
@options.whole_or_nothing
def command(
    source: Place,
    destination: Place,
    tp: int,
    pp: int,
    ep: int,
    layout: Layout | None,
    dtype: str | None,
    weights_only: bool,
    dry_run: bool,
    force: bool,
) -> None:
    """Cut a checkpoint for another number of devices.

    SOURCE is a checkpoint, or a run's folder (its newest checkpoint). Every number stays as it is,
    the optimizer's too. Both may be URLs of an object store: s3://BUCKET/FOLDER.
    """
    from neoxkit.checkpoint.attempt import check_destination
    from neoxkit.checkpoint.folder import not_a_checkpoint
    from neoxkit.checkpoint.reader import Checkpoint
    from neoxkit.convert.copy import Converted
    from neoxkit.convert.transfer import file_sizes, kept_names, parts_for, reshard
    from neoxkit.mesh import Mesh

    check_destination(destination, force, not_a_checkpoint)
    checkpoint = Checkpoint.open(source)
    mesh, kept = Mesh(tp=tp, pp=pp, ep=ep, dp=ep), options.safetensors_dtype(dtype)
    if dry_run:
        names = kept_names(checkpoint, kept, weights_only)
        options.print_plan(file_sizes(parts_for(Converted(checkpoint, kept), names, mesh, layout)))
        return
    reshard(checkpoint, destination, mesh, kept, weights_only, force, layout)
    options.print_checkpoint(destination)

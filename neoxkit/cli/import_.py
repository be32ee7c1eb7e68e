"""neoxkit import: a foreign model becomes a checkpoint."""

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
@click.option("--no-tokenizer", is_flag=True, help="Leave the tokenizer's files behind.")
@options.dry_run()
@options.force()
@options.whole_or_nothing
def command(
    source: Path, destination: Path, tp: int, pp: int, dtype: str | None, no_tokenizer: bool, dry_run: bool, force: bool
) -> None:
    """Make a checkpoint of a Hugging Face folder.

    SOURCE holds config.json and safetensors or .bin files of a GPT-NeoX, Llama or Mistral model.
    DESTINATION becomes the checkpoint, cut for --tp and --pp.
    """
    from neoxkit.checkpoint.attempt import check_destination
    from neoxkit.checkpoint.folder import not_a_checkpoint
    from neoxkit.convert.copy import Converted
    from neoxkit.convert.open import open_foreign
    from neoxkit.convert.transfer import file_sizes, import_model, parts_for
    from neoxkit.mesh import Mesh

    check_destination(destination, force, not_a_checkpoint)
    model = open_foreign(source)
    mesh, kept = Mesh(tp=tp, pp=pp), options.safetensors_dtype(dtype)
    if dry_run:
        options.print_plan(file_sizes(parts_for(Converted(model, kept), model.names(), mesh)))
        return
    import_model(model, destination, mesh, kept, tokenizer=not no_tokenizer, force=force)
    options.print_checkpoint(destination)

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
@click.option(
    "--assume",
    multiple=True,
    metavar="KEY=VALUE",
    help="What SOURCE leaves open, such as rope-factor=8; may be given several times.",
)
@click.option(
    "--config",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Settings (YAML) of a gpt-neox checkpoint, over its own; may be given several times, the last counts.",
)
@options.dry_run()
@options.force()
@options.whole_or_nothing
def command(
    source: Path,
    destination: Path,
    tp: int,
    pp: int,
    dtype: str | None,
    no_tokenizer: bool,
    assume: tuple[str, ...],
    config: tuple[Path, ...],
    dry_run: bool,
    force: bool,
) -> None:
    """Make a checkpoint of a model that another program wrote.

    SOURCE is a model's name on the Hugging Face Hub (ORG/NAME or ORG/NAME@REVISION, fetched into its
    cache), or a folder: a Hugging Face folder (config.json and safetensors or .bin files), Meta's files of a
    Llama model (consolidated.NN.pth and params.json), Mistral's (consolidated.safetensors and
    params.json) or a checkpoint of gpt-neox (a global_step folder, or the one with the file latest),
    of which the weights are read. DESTINATION becomes the checkpoint, cut for --tp and --pp.
    """
    from neoxkit.checkpoint.attempt import check_destination
    from neoxkit.checkpoint.folder import not_a_checkpoint
    from neoxkit.convert.hub import Fetched, fetch, named

    check_destination(destination, force, not_a_checkpoint)
    name = named(source)
    fetched = fetch(name) if name else Fetched(source, None)

    from neoxkit.convert.copy import Converted
    from neoxkit.convert.open import open_foreign
    from neoxkit.convert.transfer import file_sizes, import_model, parts_for
    from neoxkit.mesh import Mesh

    model = open_foreign(fetched.folder, options.assumptions(assume), config)
    mesh, kept = Mesh(tp=tp, pp=pp), options.safetensors_dtype(dtype)
    if dry_run:
        options.print_plan(file_sizes(parts_for(Converted(model, kept), model.names(), mesh)))
        return
    import_model(model, destination, mesh, kept, tokenizer=not no_tokenizer, force=force, origin=fetched.origin)
    options.print_checkpoint(destination)

"""neoxkit import: a foreign model becomes a checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from neoxkit.checkpoint.store import Place
from neoxkit.cli import options
from neoxkit.errors import ConfigError

_AS_IT_IS = "leave out --tokenizer, --no-tokenizer, --assume, --config and --dry-run"


@click.command()
@click.argument("source", type=options.PLACE)
@click.argument("destination", type=options.PLACE)
@options.tp()
@options.pp()
@options.ep()
@options.dtype("Convert the weights; as they are when left out.")
@click.option("--weights-only", is_flag=True, help="Leave the optimizer behind, where SOURCE has one.")
@click.option(
    "--tokenizer",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="A tokenizer of any kind (docs/tokenizers.md), instead of SOURCE's own.",
)
@click.option("--no-tokenizer", is_flag=True, help="Leave the tokenizer's files behind.")
@options.assume()
@options.settings()
@options.dry_run()
@options.force()
@options.whole_or_nothing
def command(
    source: Place,
    destination: Place,
    tp: int,
    pp: int,
    ep: int,
    dtype: str | None,
    weights_only: bool,
    tokenizer: Path | None,
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
    whose optimizer comes along where it is there. What `neoxkit push --as neoxkit` published is a
    checkpoint already, and comes with all it has. DESTINATION becomes the checkpoint, cut for --tp and --pp.
    Folders may be URLs of an object store: s3://BUCKET/FOLDER.
    """
    from neoxkit.checkpoint.attempt import check_destination
    from neoxkit.checkpoint.folder import not_a_checkpoint
    from neoxkit.convert.hub import Fetched, fetch, named

    if tokenizer is not None:
        check_tokenizer(tokenizer, no_tokenizer)
    check_destination(destination, force, not_a_checkpoint)
    name = named(source)
    fetched = fetch(name) if name else Fetched(source, None)

    from neoxkit.convert.copy import Converted
    from neoxkit.convert.hub_checkpoint import import_checkpoint, is_published
    from neoxkit.convert.open import open_foreign
    from neoxkit.convert.transfer import file_sizes, import_model, parts_for
    from neoxkit.mesh import Mesh

    mesh, kept = Mesh(tp=tp, pp=pp, ep=ep, dp=ep), options.safetensors_dtype(dtype)
    if name is not None and is_published(fetched.folder):
        if tokenizer is not None or no_tokenizer or assume or config or dry_run:
            raise ConfigError(f"{name}: a checkpoint of neoxkit, which is taken as it is", _AS_IT_IS)
        import_checkpoint(fetched.folder, destination, mesh, kept, weights_only, force, fetched.origin)
        options.print_checkpoint(destination)
        return
    model = open_foreign(fetched.folder, options.assumptions(assume), config, state=not weights_only)
    if dry_run:
        options.print_plan(file_sizes(parts_for(Converted(model, kept), model.names(), mesh)))
        return
    chosen = tokenizer or not no_tokenizer
    import_model(model, destination, mesh, kept, tokenizer=chosen, force=force, origin=fetched.origin)
    options.print_checkpoint(destination)


def check_tokenizer(path: Path, none: bool) -> None:
    """Raise ConfigError when a tokenizer is given that cannot be, or is not wanted."""
    if none:
        raise ConfigError("--tokenizer and --no-tokenizer are both given", "keep one")
    from neoxkit.convert.tokenizer import carry

    if not carry(path).files:
        raise ConfigError(f"--tokenizer {path}: no files of a tokenizer", "give a tokenizer.json, or a folder with one")

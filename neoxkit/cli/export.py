"""neoxkit export: a checkpoint becomes a Hugging Face model."""

from __future__ import annotations

import click

from neoxkit.checkpoint.store import Place
from neoxkit.cli import options
from neoxkit.errors import ConfigError

CLOSE = 1e-5
"""fp32 logits of the same weights by two programs differ by less than this, relative to the largest."""


@click.command()
@click.argument("source", type=options.PLACE)
@click.argument("destination", type=options.PLACE)
@click.option(
    "--to",
    "family",
    metavar="FAMILY",
    default="auto",
    show_default=True,
    help="auto: the model's own family, or else one that it fits; or gpt_neox, llama, mistral, qwen2, qwen3, phi3, "
    "stablelm, gpt2, olmo2, mpt, bloom, falcon.",
)
@options.dtype("Convert the weights; as they are when left out.")
@click.option(
    "--max-shard-size", default="5GB", show_default=True, metavar="SIZE", help="Of a weight file: 500MB, 5GB."
)
@click.option("--check", is_flag=True, help="Load the result with transformers and compare logits.")
@options.dry_run()
@options.force()
@click.pass_context
@options.whole_or_nothing
def command(
    ctx: click.Context,
    source: Place,
    destination: Place,
    family: str,
    dtype: str | None,
    max_shard_size: str,
    check: bool,
    dry_run: bool,
    force: bool,
) -> None:
    """Make a Hugging Face model of a checkpoint.

    SOURCE is a checkpoint, or a run's folder (its newest checkpoint); what another program wrote is
    imported first. DESTINATION becomes a folder that transformers 4.45 to 5 loads, and most models 4.40
    too, with a model card (README.md). A model that FAMILY cannot express is refused, with each reason
    and the families that would do. With --check the exit code is 1 when logits differ.
    Both may be URLs of an object store: s3://BUCKET/FOLDER.
    """
    from neoxkit.checkpoint.attempt import check_destination
    from neoxkit.checkpoint.reader import Checkpoint
    from neoxkit.convert.hf_sink import not_a_model
    from neoxkit.convert.transfer import choose_family, export_model, export_sizes

    if check and dry_run:
        raise ConfigError("--check loads what --dry-run does not write", "leave one of them out")
    check_destination(destination, force, not_a_model)
    checkpoint = Checkpoint.open(source)
    chosen = choose_family(checkpoint, family)
    most, kept = options.size_in_bytes(max_shard_size), options.safetensors_dtype(dtype)
    if dry_run:
        options.print_plan(export_sizes(checkpoint, chosen, kept, most))
        return
    if check:
        options.require("transformers", "hf")
    export_model(checkpoint, destination, chosen, kept, most, force)
    click.echo(f"{destination}: {chosen.architecture}")
    if check:
        from neoxkit.convert.copy import Converted
        from neoxkit.convert.logits import logits_difference

        found = logits_difference(Converted(checkpoint, kept), destination)
        fine = found.max <= CLOSE * max(1.0, found.scale)
        verdict = "the same" if fine else "DIFFERENT"
        click.echo(f"logits {verdict}: they differ by {found.max:.1e} at most, the largest is {found.scale:.1f}")
        if not fine:
            ctx.exit(1)

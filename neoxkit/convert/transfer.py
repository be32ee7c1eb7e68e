"""Import, export and reshard: each a plan and one copy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from neoxkit.checkpoint import Source
from neoxkit.checkpoint.format import MODEL
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.checkpoint.writer import Part, Writer, cut
from neoxkit.convert.copy import Converted, copy
from neoxkit.convert.hf_sink import ORIGIN, HuggingFaceSink, plan_shards
from neoxkit.convert.load import check_model
from neoxkit.convert.open import Foreign
from neoxkit.convert.tokenizer import check_vocabulary, exported_files
from neoxkit.data.tokenizer import tokenizer_contents
from neoxkit.errors import ConversionError
from neoxkit.families.schema import Family
from neoxkit.families.spelling import unfit
from neoxkit.log import progress, warn
from neoxkit.mesh import Mesh

MOST_SHARD = 5_000_000_000
"""Bytes of a Hugging Face weight file, as transformers 4 cuts them."""


def parts_for(source: Source, names: Sequence[str], mesh: Mesh) -> list[Part]:
    """How tensors of a source are cut for a mesh. Raises ConfigError when they do not divide."""
    return cut({name: source.spec(name) for name in names}, {name: source.dtype(name) for name in names}, mesh)


def file_sizes(parts: Sequence[Part]) -> dict[str, int]:
    """Bytes of tensors in each file that a cut makes."""
    sizes: dict[str, int] = {}
    for part in parts:
        sizes[part.file] = sizes.get(part.file, 0) + part.bytes
    return sizes


def import_model(
    model: Foreign,
    folder: Path,
    mesh: Mesh,
    dtype: str | None = None,
    tokenizer: bool = True,
    force: bool = False,
    origin: str | None = None,
) -> None:
    """Write a foreign model as a checkpoint, cut for a mesh, its weights in `dtype` ("BF16") if given.

    `origin` is what the lineage names instead of the folder: where the folder's files were fetched from.
    Raises ConversionError when the tokenizer makes ids that the model has no row for, and as Writer,
    copy and cut do; then nothing is left at `folder`, and what was there stays.
    """
    if tokenizer:
        check_vocabulary(model.folder, model.config)
    source = Converted(model, dtype)
    parts = parts_for(source, source.names(), mesh)
    writer = Writer(
        folder,
        parts,
        config=model.config,
        mesh={"pp": mesh.pp, "tp": mesh.tp},
        lineage=[{**model.lineage, "source": origin} if origin else model.lineage],
        tokenizer=tokenizer_contents(model.folder) if tokenizer else None,
        force=force,
    )
    with writer, progress(f"import {model.folder}", sum(file_sizes(parts).values())) as bar:
        copy(source, writer, source.names(), bar)
        writer.commit()


def kept_names(checkpoint: Checkpoint, dtype: str | None, weights_only: bool) -> list[str]:
    """The tensors that a reshard keeps.

    Raises ConversionError for another dtype beside an optimizer: its masters would no longer be the
    weights.
    """
    names = checkpoint.names()
    if weights_only:
        return [name for name in names if name.startswith(MODEL)]
    if dtype is not None and any(not name.startswith(MODEL) for name in names):
        raise ConversionError(
            f"{checkpoint.path}: it has an optimizer, whose masters go with the weights' own dtype",
            "add --weights-only, or leave --dtype out",
        )
    return list(names)


def reshard(
    checkpoint: Checkpoint,
    folder: Path,
    mesh: Mesh,
    dtype: str | None = None,
    weights_only: bool = False,
    force: bool = False,
) -> None:
    """Write a checkpoint once more, cut for another mesh. Everything else is kept as it is.

    Raises as `kept_names` and `import_model` do.
    """
    names = kept_names(checkpoint, dtype, weights_only)
    source = Converted(checkpoint, dtype)
    parts = parts_for(source, names, mesh)
    manifest = checkpoint.manifest
    writer = Writer(
        folder,
        parts,
        config=checkpoint.config,
        mesh={**manifest.mesh, "pp": mesh.pp, "tp": mesh.tp},
        step=manifest.step,
        samples=manifest.samples,
        tokens=manifest.tokens,
        lineage=[*manifest.lineage, {"event": "reshard", "model": checkpoint.fingerprint}],
        run_yaml=checkpoint.run_yaml,
        tokenizer=tokenizer_contents(checkpoint.tokenizer) if checkpoint.tokenizer else None,
        trainer=None if weights_only else checkpoint.trainer_state(),
        rng=None if weights_only else checkpoint.rng(),
        force=force,
        keep=manifest,
    )
    with writer, progress(f"reshard {checkpoint.path}", sum(file_sizes(parts).values())) as bar:
        copy(source, writer, names, bar)
        writer.commit()


def export_sizes(checkpoint: Checkpoint, family: Family, dtype: str | None, most: int = MOST_SHARD) -> dict[str, int]:
    """Bytes of tensors in each weight file that an export would make. Raises as `export_model` does."""
    shards = plan_shards(family, fitting(checkpoint, family, dtype), most)
    return {name: sum(place.bytes for place in places.values()) for name, places in shards.items()}


def fitting(checkpoint: Checkpoint, family: Family, dtype: str | None = None) -> Converted:
    """The checkpoint as a source, if the family can spell it.

    Raises ConversionError, with each reason, if not, and when its tensors are not those of its
    configuration.
    """
    check_model(checkpoint)
    if reasons := unfit(family, checkpoint.config):
        raise ConversionError(
            f"{checkpoint.path}: the model does not fit {family.name}: {'; '.join(reasons)}", "choose another --to"
        )
    return Converted(checkpoint, dtype)


def export_model(
    checkpoint: Checkpoint,
    folder: Path,
    family: Family,
    dtype: str | None = None,
    most: int = MOST_SHARD,
    force: bool = False,
) -> None:
    """Write a checkpoint's weights as a Hugging Face model of a family, in files of at most `most` bytes.

    Raises ConversionError, with each reason, when the model does not fit the family, and as
    HuggingFaceSink and copy do.
    """
    source = fitting(checkpoint, family, dtype)
    if said := family.caution(checkpoint.config):
        warn(said)
    files = exported_files(checkpoint.tokenizer, checkpoint.config, family)
    files[ORIGIN] = _origin(checkpoint)
    with HuggingFaceSink(folder, family, source, files, most, force) as sink:
        with progress(f"export {checkpoint.path}", sink.bytes) as bar:
            copy(source, sink, sink.names(), bar)
        sink.commit()


def _origin(checkpoint: Checkpoint) -> bytes:
    """Which weights an exported model was made of."""
    manifest = checkpoint.manifest
    origin = {
        "model": checkpoint.fingerprint,
        "step": manifest.step,
        "tokens": manifest.tokens,
        "lineage": manifest.lineage,
    }
    return json.dumps(origin, indent=2).encode() + b"\n"

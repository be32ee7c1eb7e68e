"""Import, export and reshard: each a plan and one copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neoxkit.checkpoint import Source
from neoxkit.checkpoint.format import MODEL
from neoxkit.checkpoint.plan import Layout
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.checkpoint.store import Place
from neoxkit.checkpoint.writer import Part, Writer, cut
from neoxkit.config.model import ModelConfig
from neoxkit.convert.copy import Converted, copy
from neoxkit.convert.hf_sink import ORIGIN, HuggingFaceSink, plan_shards
from neoxkit.convert.load import check_model
from neoxkit.convert.model_card import CARD, model_card
from neoxkit.convert.open import Foreign
from neoxkit.convert.tokenizer import carry, check_ids, exported_files, generation_differences, pretty
from neoxkit.data.tokenizer import FILE, tokenizer_contents
from neoxkit.errors import ConfigError, ConversionError
from neoxkit.families import FAMILIES, by_name
from neoxkit.families.fit import fitting, nearest, unfit
from neoxkit.families.schema import Family
from neoxkit.log import note, progress, warn
from neoxkit.mesh import Mesh
from neoxkit.spec import Axis

MOST_SHARD = 5_000_000_000
"""Bytes of a Hugging Face weight file, as transformers 4 cuts them."""


def parts_for(source: Source, names: Sequence[str], mesh: Mesh, layout: Layout | None = None) -> list[Part]:
    """How tensors of a source are cut for a mesh.

    Raises as `cut` does, and ConfigError when experts are to be divided and the source has none.
    """
    specs, dtypes = {name: source.spec(name) for name in names}, {name: source.dtype(name) for name in names}
    if mesh.ep > 1 and not any(split.axis is Axis.EP for spec in specs.values() for split in spec.splits):
        raise ConfigError(f"--ep {mesh.ep}: the model has no experts that could be divided", "leave --ep out")
    return cut(specs, dtypes, mesh, layout)


def file_sizes(parts: Sequence[Part]) -> dict[str, int]:
    """Bytes of tensors in each file that a cut makes."""
    sizes: dict[str, int] = {}
    for part in parts:
        sizes[part.file] = sizes.get(part.file, 0) + part.bytes
    return sizes


def import_model(
    model: Foreign,
    folder: Place,
    mesh: Mesh,
    dtype: str | None = None,
    tokenizer: bool | Path = True,
    force: bool = False,
    origin: str | None = None,
) -> None:
    """Write a foreign model as a checkpoint, cut for a mesh, its weights in `dtype` ("BF16") if given.

    `tokenizer` says whether its tokenizer comes along, or is another, at a path. `origin` is what the
    lineage names instead of the folder: where the folder's files were fetched from.
    Raises ConversionError when the tokenizer makes ids that the model has no row for, and as Writer,
    copy and cut do; then nothing is left at `folder`, and what was there stays.
    """
    place = tokenizer if isinstance(tokenizer, Path) else model.tokenizer if tokenizer else None
    carried = None if place is None else _carried(place, model)
    if place is not None and place not in (tokenizer, model.folder):
        note(f"the tokenizer is {place}, which the settings name")
    source, training = Converted(model, dtype), model.training
    if training is not None and any(source.dtype(name) != model.dtype(name) for name in model.names()):
        raise ConversionError(f"{model.folder}: {_MASTERS}", _LEAVE)
    parts = parts_for(source, source.names(), mesh)
    writer = Writer(
        folder,
        parts,
        config=model.config,
        mesh={"pp": mesh.pp, "tp": mesh.tp, "ep": mesh.ep},
        step=training.step if training else 0,
        samples=training.samples if training else 0,
        tokens=training.tokens if training else 0,
        lineage=[{**model.lineage, "source": origin} if origin else model.lineage],
        tokenizer=carried,
        trainer=training.state if training else None,
        force=force,
    )
    with writer, progress(f"import {model.folder}", sum(file_sizes(parts).values())) as bar:
        copy(source, writer, source.names(), bar)
        writer.commit()


def _carried(place: Place, model: Foreign) -> dict[str, bytes]:
    """The tokenizer's files, with a warning where they make no tokenizer."""
    found = carry(place)
    if found.tokenizer is not None:
        check_ids(found.tokenizer, model.config)
    elif found.why:
        warn(f"{place}: the tokenizer comes along as it is, without a tokenizer.json: {found.why}")
    return found.files


def kept_names(checkpoint: Checkpoint, dtype: str | None, weights_only: bool) -> list[str]:
    """The tensors that a reshard keeps.

    Raises ConversionError for another dtype beside an optimizer: its masters would no longer be the
    weights.
    """
    names = checkpoint.names()
    if weights_only:
        return [name for name in names if name.startswith(MODEL)]
    if dtype is not None and any(not name.startswith(MODEL) for name in names):
        raise ConversionError(f"{checkpoint.path}: {_MASTERS}", _LEAVE)
    return list(names)


_MASTERS = "it has an optimizer, whose masters go with the weights' own dtype"
_LEAVE = "add --weights-only, or leave --dtype out"


def reshard(
    checkpoint: Checkpoint,
    folder: Place,
    mesh: Mesh,
    dtype: str | None = None,
    weights_only: bool = False,
    force: bool = False,
    layout: Layout | None = None,
    event: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint once more, cut for another mesh. Everything else is kept as it is.

    `event` is what the lineage says was done, when it is more than that. Raises as `kept_names` and `import_model` do.
    """
    names = kept_names(checkpoint, dtype, weights_only)
    source = Converted(checkpoint, dtype)
    parts = parts_for(source, names, mesh, layout)
    manifest = checkpoint.manifest
    writer = Writer(
        folder,
        parts,
        config=checkpoint.config,
        mesh={**manifest.mesh, "pp": mesh.pp, "tp": mesh.tp, "ep": mesh.ep},
        step=manifest.step,
        samples=manifest.samples,
        tokens=manifest.tokens,
        lineage=[*manifest.lineage, event or {"event": "reshard", "model": checkpoint.fingerprint}],
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
    shards = plan_shards(family, fitted(checkpoint, family, dtype), most)
    return {name: sum(place.bytes for place in places.values()) for name, places in shards.items()}


def choose_family(checkpoint: Checkpoint, wanted: str) -> Family:
    """The family called `wanted`; for "auto" the checkpoint's own if it fits, else the first that does.

    Raises ConversionError when there is no such family, and for "auto" when none fits.
    """
    if wanted != "auto":
        return by_name(wanted)
    config = checkpoint.config
    if not (fits := fitting(FAMILIES.values(), config)):
        raise ConversionError(f"{checkpoint.path}: the model fits no family", _advice(config, None))
    chosen, own = fits[0], FAMILIES.get(config.family)
    if own is not None and chosen is not own:
        reasons = "; ".join(unfit(own, config))
        note(f"{checkpoint.path}: exported as {chosen.name}, since it does not fit {own.title}: {reasons}")
    return chosen


def _advice(config: ModelConfig, family: Family | None) -> str:
    """Which families to choose instead of one that a model does not fit."""
    if fits := fitting(FAMILIES.values(), config):
        return f"choose --to {' or '.join(each.name for each in fits)}; the model fits"
    near = nearest(FAMILIES.values(), config)
    if near is family:
        return f"no other fits, and {near.title} is the nearest"
    return f"the nearest is {near.title}: {'; '.join(unfit(near, config))}"


def fitted(checkpoint: Checkpoint, family: Family, dtype: str | None = None) -> Converted:
    """The checkpoint as a source, if the family can spell it.

    Raises ConversionError, with each reason and the families that would fit, if not, and when its
    tensors are not those of its configuration.
    """
    check_model(checkpoint)
    if reasons := unfit(family, checkpoint.config):
        raise ConversionError(
            f"{checkpoint.path}: the model does not fit {family.title}: {'; '.join(reasons)}",
            _advice(checkpoint.config, family),
        )
    return Converted(checkpoint, dtype)


def export_model(
    checkpoint: Checkpoint,
    folder: Place,
    family: Family,
    dtype: str | None = None,
    most: int = MOST_SHARD,
    force: bool = False,
) -> None:
    """Write a checkpoint's weights as a Hugging Face model of a family, in files of at most `most` bytes.

    Raises ConversionError, with each reason, when the model does not fit the family, and as
    HuggingFaceSink and copy do.
    """
    source = fitted(checkpoint, family, dtype)
    cautions = [family.caution(checkpoint.config), *generation_differences(checkpoint.tokenizer, checkpoint.config)]
    for said in filter(None, cautions):
        warn(said)
    files = exported_files(checkpoint.tokenizer, checkpoint.config, family)
    files[ORIGIN] = pretty(origin_of(checkpoint))
    files[CARD] = model_card(folder.name, checkpoint, source, family, FILE in files)
    with HuggingFaceSink(folder, family, source, files, most, force) as sink:
        with progress(f"export {checkpoint.path}", sink.bytes) as bar:
            copy(source, sink, sink.names(), bar)
        sink.commit()


def origin_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Which weights an exported model was made of: the fingerprint, step, tokens and lineage."""
    manifest = checkpoint.manifest
    return {
        "model": checkpoint.fingerprint,
        "step": manifest.step,
        "tokens": manifest.tokens,
        "lineage": list(manifest.lineage),
    }

"""Import, export and reshard: each a plan and one copy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from neoxkit.checkpoint import Source
from neoxkit.checkpoint.dtypes import TORCH
from neoxkit.checkpoint.format import ITEM_BYTES, MODEL
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.checkpoint.writer import Part, Writer, cut
from neoxkit.convert.copy import copy
from neoxkit.convert.hf_sink import HuggingFaceSink
from neoxkit.convert.hf_source import HuggingFaceSource
from neoxkit.convert.tokenizer import check_vocabulary, exported_files, tokenizer_files
from neoxkit.errors import ConversionError
from neoxkit.families.schema import Family
from neoxkit.families.spelling import unfit
from neoxkit.log import progress
from neoxkit.mesh import Mesh
from neoxkit.spec import volume, whole


@dataclass(frozen=True)
class Plan:
    """What would be written: its files and their bytes."""

    files: Mapping[str, int]

    @property
    def bytes(self) -> int:
        """Bytes of tensors in all."""
        return sum(self.files.values())


def chosen_dtypes(source: Source, dtype: str | None) -> dict[str, str]:
    """Each tensor's dtype after the copy: `dtype` for the model's floating-point tensors, else its own."""
    own = {name: source.dtype(name) for name in source.names()}
    if dtype is None:
        return own
    return {
        name: dtype if name.startswith(MODEL) and TORCH[each].is_floating_point else each for name, each in own.items()
    }


def parts_for(source: Source, dtypes: Mapping[str, str], mesh: Mesh) -> list[Part]:
    """How a source is cut for a mesh. Raises ConfigError when it does not divide."""
    return cut({name: source.spec(name) for name in source.names()}, dtypes, mesh)


def plan_of(parts: list[Part]) -> Plan:
    """The files that a cut makes."""
    files: dict[str, int] = {}
    for part in parts:
        files[part.file] = files.get(part.file, 0) + part.bytes
    return Plan(files)


def import_model(
    source: HuggingFaceSource,
    folder: Path,
    mesh: Mesh,
    dtype: str | None = None,
    tokenizer: bool = True,
    force: bool = False,
) -> None:
    """Write a foreign model as a checkpoint, cut for a mesh.

    Raises ConversionError when the tokenizer makes ids that the model has no row for, and as Writer,
    copy and cut do; then nothing is left at `folder`, and what was there stays.
    """
    if tokenizer:
        check_vocabulary(source.folder, source.config)
    dtypes = chosen_dtypes(source, dtype)
    writer = Writer(
        folder,
        parts_for(source, dtypes, mesh),
        config=source.config,
        mesh={"pp": mesh.pp, "tp": mesh.tp},
        lineage=[source.lineage],
        tokenizer=tokenizer_files(source.folder) if tokenizer else None,
        force=force,
    )
    with writer, progress(f"import {source.folder}", source.files.bytes) as bar:
        copy(source, writer, source.names(), dtypes, bar)
        writer.commit()


def reshard(
    source: Checkpoint,
    folder: Path,
    mesh: Mesh,
    dtype: str | None = None,
    weights_only: bool = False,
    force: bool = False,
) -> None:
    """Write a checkpoint once more, cut for another mesh. Everything else is kept as it is.

    Raises as `import_model` does.
    """
    dtypes = chosen_dtypes(source, dtype)
    names = [name for name in source.names() if not weights_only or name.startswith(MODEL)]
    parts = [part for part in parts_for(source, dtypes, mesh) if part.name in set(names)]
    manifest = source.manifest
    state = None if weights_only else source.trainer_state()
    writer = Writer(
        folder,
        parts,
        config=source.config,
        mesh={**manifest.mesh, "pp": mesh.pp, "tp": mesh.tp},
        step=manifest.step,
        samples=manifest.samples,
        tokens=manifest.tokens,
        lineage=[*manifest.lineage, {"event": "reshard", "model": source.fingerprint}],
        run_yaml=source.run_yaml,
        tokenizer=tokenizer_files(source.tokenizer) if source.tokenizer else None,
        trainer=state,
        rng=None if weights_only else source.rng(),
        force=force,
        keep=manifest,
    )
    with writer, progress(f"reshard {source.path}", plan_of(parts).bytes) as bar:
        copy(source, writer, names, dtypes, bar)
        writer.commit()


def export_model(
    source: Checkpoint,
    folder: Path,
    family: Family,
    dtype: str | None = None,
    most: int = 5_000_000_000,
    force: bool = False,
) -> None:
    """Write a checkpoint's weights as a Hugging Face model of a family.

    Raises ConversionError, with each reason, when the model does not fit the family, and as
    HuggingFaceSink and copy do.
    """
    if reasons := unfit(family, source.config):
        raise ConversionError(f"the model does not fit {family.name}: {'; '.join(reasons)}", "choose another family")
    dtypes = chosen_dtypes(source, dtype)
    files = exported_files(source.tokenizer, source.config, family)
    files["neoxkit.json"] = _origin(source)
    sink = HuggingFaceSink(folder, family, source.config, dtypes, files, most, force)
    names = sink.names()
    size = sum(volume(whole(source.spec(n).shape)) * ITEM_BYTES[source.dtype(n)] for n in names)
    try:
        with progress(f"export {source.path}", size) as bar:
            copy(source, sink, names, dtypes, bar)
        sink.commit()
    except BaseException:
        sink.abort()
        raise


def _origin(source: Checkpoint) -> bytes:
    """Which weights an exported model was made of."""
    manifest = source.manifest
    origin = {
        "model": source.fingerprint,
        "step": manifest.step,
        "tokens": manifest.tokens,
        "lineage": manifest.lineage,
    }
    return json.dumps(origin, indent=2).encode() + b"\n"

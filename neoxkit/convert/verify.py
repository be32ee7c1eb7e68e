"""Everything that can be wrong with a checkpoint, found in one pass over it, whatever is found first."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neoxkit.checkpoint.attempt import dead_attempts
from neoxkit.checkpoint.folder import CLAIM, files_below, leads_out, list_checkpoints, plain_size
from neoxkit.checkpoint.format import (
    CONFIG,
    LATEST,
    MANIFEST,
    MODEL,
    NAME,
    STATE,
    TOKENIZER,
    VERSION,
    Manifest,
    bare,
    parse,
)
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.checkpoint.safetensors_file import read_header
from neoxkit.checkpoint.store import Place, StorePath
from neoxkit.convert.contents import MASTER, Finding, Report, cause, read_contents, read_numbers
from neoxkit.convert.open import Foreign, is_foreign, open_any, open_foreign
from neoxkit.errors import CheckpointError, NeoxkitError
from neoxkit.log import progress

if TYPE_CHECKING:
    from neoxkit.config.model import ModelConfig

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What a group of parameters has that does not say its states: AdamW's."""

LIKE_THE_MODEL = (
    MASTER,
    *(f"optimizer/{each}/" for each in (*MOMENTS, "momentum_buffer", "variance", "state1", "state2")),
)
"""Components whose tensors have the shapes of the model's."""


def verify(path: Place, assume: Mapping[str, str] | None = None, settings: Sequence[Path] = ()) -> Report:
    """Check everything in a checkpoint, the newest of a run, or a foreign model; what is wrong is reported.

    `assume` and `settings` are for a foreign model; see open_foreign. Raises CheckpointError when `path`
    is no checkpoint at all, or one of a format that is not known, and as open_any does.
    """
    if is_foreign(path):
        return _verify_foreign(path, open_foreign(path, assume, settings))
    if assume or settings:
        open_any(path, assume, settings)
    report = _choose(path)
    text = (report.path / MANIFEST).read_bytes()
    try:
        manifest = parse(text, str(report.path / MANIFEST))
    except CheckpointError as error:
        if unknown_format(text):
            raise
        report.findings.append(Finding("file", MANIFEST, error.cause))
        return report
    report.model = manifest.fingerprint()
    with Checkpoint(report.path, manifest) as checkpoint:
        read_contents(checkpoint, report, _check_files(checkpoint, report))
        check_meaning(checkpoint, report, {finding.where for finding in report.findings})
    return report


def unknown_format(text: bytes) -> bool:
    """Whether a manifest is of another format, or of another version of it, rather than damaged."""
    try:
        head = json.loads(text)["format"]
        return bool(head["name"] != NAME or head["version"] != VERSION or head.get("requires"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _choose(path: Place) -> Report:
    """The checkpoint to check: `path`, or the newest of a run, be it valid or not."""
    if (path / MANIFEST).is_file():
        report, run = Report(path), path.absolute().parent
        if isinstance(path, StorePath):  # to look what else its parent holds may take thousands of requests
            return report
        if path.absolute() not in list_checkpoints(run):
            return report
    else:
        found = list_checkpoints(path) if path.is_dir() else []
        whole = [each for each in found if (each / MANIFEST).is_file()]
        if not whole:
            Checkpoint.open(path)
            raise CheckpointError(f"{path}: it changed while it was looked at", "try again")
        report, run = Report(whole[-1]), path
        report.findings += (
            Finding("file", each.name, f"{each}: it has no {MANIFEST}") for each in found[found.index(whole[-1]) + 1 :]
        )
        if len(found) > 1:
            report.notes.append(f"{whole[-1]} is the newest of {len(found)} checkpoints; the others were not checked")
    left = "an interrupted save left it; the next save removes it, or neoxkit gc"
    report.notes += (f"{each}: {left}" for each in dead_attempts(run))
    latest = run / LATEST
    if latest.is_file() and not (run / latest.read_text(errors="replace").strip() / MANIFEST).is_file():
        report.notes.append(f"{latest}: it names no checkpoint; readers go by what is there")
    return report


def _check_files(checkpoint: Checkpoint, report: Report) -> set[int]:
    """Find files that are missing, of a wrong size, links, not listed, or no safetensors files.

    Returns the numbers of those that nothing can be read from.
    """
    folder, manifest = checkpoint.path, checkpoint.manifest
    holds: dict[int, dict[str, str]] = {}  # file: key: tensor
    for name, tensor in manifest.tensors.items():
        for piece in tensor.pieces:
            holds.setdefault(piece.file, {})[piece.key] = name
    unreadable: set[int] = set()
    outside = leads_out(folder)
    for number, entry in enumerate(manifest.files):
        file = folder / entry.path
        wrong = None
        if outside(entry.path):
            wrong = "a link, which may lead out of the checkpoint"
        elif (size := plain_size(file)) is None:
            wrong = "the file is missing"
        elif size != entry.bytes:
            wrong = f"{size} bytes, but the manifest says {entry.bytes}"
        if wrong is None and number in holds:
            try:
                extra = sorted(set(read_header(file).entries) - set(holds[number]))
            except CheckpointError as error:
                wrong = error.cause.removeprefix(f"{file}: ")
            else:
                for key in extra:
                    report.findings.append(Finding("file", entry.path, f"{file}: the manifest has no entry {key!r}"))
        if wrong is not None:
            unreadable.add(number)
            lost = list(dict.fromkeys(holds.get(number, {}).values()))
            what = f"{file}: {wrong}" + (f"; {len(lost)} tensors need it, {lost[0]} among them" if lost else "")
            report.findings.append(Finding("file", entry.path, what))
    listed = {file.path for file in manifest.files} | {MANIFEST}
    if isinstance(folder, StorePath):
        listed.add(CLAIM)  # whoever was killed just after the commit left it
    for name in files_below(folder):
        if name not in listed:
            report.findings.append(Finding("file", name, f"{folder / name}: the manifest does not list this file"))
    return unreadable


def check_meaning(checkpoint: Checkpoint, report: Report, bad: set[str]) -> None:
    """Find what contradicts the configuration: names and shapes, the tokenizer, the trainer's state.

    Files that are `bad` are not read again: what is wrong with them was said.
    """
    add = report.findings.append
    state = None
    if STATE not in bad:
        try:
            state = checkpoint.trainer_state()
        except (NeoxkitError, ValueError) as error:
            add(Finding("trainer", STATE, f"{checkpoint.path / STATE}: {cause(error)}"))
        else:
            said = [] if state is None else _check_trainer(state, checkpoint.manifest)
            report.findings += (Finding("trainer", STATE, f"{checkpoint.path / STATE}: {line}") for line in said)
    if CONFIG in bad:
        return
    try:
        config = checkpoint.config
        report.findings += _check_names(checkpoint, config, _states(state))
    except NeoxkitError as error:
        add(Finding("config", CONFIG, error.cause))
        return
    for token in config.tokens.eos:
        if token >= config.vocab:
            what = f"{checkpoint.path / CONFIG}: tokens.eos {token} is not below vocab {config.vocab}"
            add(Finding("config", CONFIG, what))
    if checkpoint.tokenizer is not None and not any(where.startswith(f"{TOKENIZER}/") for where in bad):
        report.findings += _check_tokenizer(checkpoint.tokenizer, config)


def _states(state: object) -> dict[str, set[str]]:
    """The tensors that each component of the optimizer has by the trainer's state, as far as that can be read."""
    found: dict[str, set[str]] = {}
    optimizer = state.get("optimizer") if isinstance(state, dict) else None
    groups = optimizer.get("groups") if isinstance(optimizer, dict) else None
    for group in groups if isinstance(groups, list) else ():
        if not isinstance(group, dict) or not isinstance(names := group.get("names"), list):
            return {}
        for each in group.get("states", MOMENTS):
            found.setdefault(f"optimizer/{each}/", set()).update(map(str, names))
    return found


def _check_names(checkpoint: Checkpoint, config: ModelConfig, states: Mapping[str, set[str]]) -> Iterator[Finding]:
    """The model has exactly the tensors that the configuration asks for; each part of the optimizer matches it.

    `states` says of parts of the optimizer which tensors they have; the others have all.
    """
    from neoxkit.checkpoint.dtypes import TORCH
    from neoxkit.nn.decoder import specs

    expected = specs(config)
    tensors = checkpoint.manifest.tensors
    components = dict.fromkeys(name.removesuffix(bare(name)) for name in tensors)
    told = states if any(component != MODEL for component in components) else ()
    for component in dict.fromkeys([MODEL, *components, *told]):
        held = {bare(name): tensor for name, tensor in tensors.items() if name == component + bare(name)}
        for name in expected:
            if name not in held and name in states.get(component, expected):
                where = component + name
                yield Finding("names", where, f"{where}: the configuration asks for it, and it is missing")
        for name, tensor in held.items():
            where = component + name
            if name not in expected:
                yield Finding("names", where, f"{where}: the configuration has no such tensor")
            elif component in (MODEL, *LIKE_THE_MODEL) and tensor.spec.shape != expected[name].shape:
                shapes = f"{list(tensor.spec.shape)}, the configuration asks for {list(expected[name].shape)}"
                yield Finding("shape", where, f"{where}: {shapes}")
            if component == MODEL and not TORCH[tensor.dtype].is_floating_point:
                yield Finding("dtype", where, f"{where}: {tensor.dtype}, not floating point")


def _check_tokenizer(folder: Place, config: ModelConfig) -> Iterator[Finding]:
    from neoxkit.convert.tokenizer import check_vocabulary

    try:
        check_vocabulary(folder, config)
    except (NeoxkitError, OSError) as error:
        yield Finding("tokenizer", TOKENIZER, cause(error))


def _check_trainer(state: object, manifest: Manifest) -> Iterator[str]:
    """What of trainer/state.json contradicts the rest of the checkpoint."""
    if not isinstance(state, dict):
        yield "not a JSON object"
        return
    for key in ("step", "samples", "tokens"):
        if state.get(key) != getattr(manifest, key):
            yield f"{key} is {state.get(key)!r}, the manifest says {getattr(manifest, key)}"
    optimizer = state.get("optimizer")
    try:
        counts = Counter(str(name) for group in optimizer["groups"] for name in group["names"])  # type: ignore[index]
    except (KeyError, TypeError):
        yield "it has no groups of parameters in optimizer.groups"
        return
    if _states(state) and not any(name.startswith("optimizer/") for name in manifest.tensors):
        yield "it is a trainer's, but the checkpoint holds no tensor of an optimizer"
    model = [name.removeprefix(MODEL) for name in manifest.tensors if name.startswith(MODEL)]
    yield from (f"no group of parameters has {name}" for name in model if name not in counts)
    yield from (f"a group of parameters has {name}, which the model has not" for name in counts if name not in model)
    yield from (f"{count} groups of parameters have {name}" for name, count in counts.items() if count > 1)


def _verify_foreign(path: Place, source: Foreign) -> Report:
    """Check a foreign model, as far as it can be: opening it compared names and shapes with its configuration."""
    report = Report(path, files=len(source.files.paths), bytes=source.files.bytes)
    report.notes.append(f"{path}: a foreign model has no checksums; altered numbers that are finite go unseen")
    if source.tokenizer is not None:
        report.findings += _check_tokenizer(source.tokenizer, source.config)
    with progress("verify", report.bytes) as bar:
        for name in source.names():
            report.findings += read_numbers(source, name, bar)
            report.tensors += 1
    return report

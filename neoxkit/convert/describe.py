"""What is in a checkpoint, or in a foreign model's folder, from its indexes alone. No torch for a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neoxkit.checkpoint.attempt import dead_attempts
from neoxkit.checkpoint.folder import list_checkpoints
from neoxkit.checkpoint.format import CONFIG, ITEM_BYTES, MANIFEST, MODEL, STATE, bare
from neoxkit.checkpoint.json_text import parse_object
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.checkpoint.store import Place
from neoxkit.convert.open import Foreign, open_any
from neoxkit.errors import CheckpointError
from neoxkit.spec import Role, Split, volume, whole

if TYPE_CHECKING:
    from neoxkit.checkpoint import Source

KINDS = {
    "checkpoint": "neoxkit checkpoint",
    "huggingface": "Hugging Face folder",
    "meta": "Meta's files of a Llama model",
    "mistral": "Mistral's files",
    "gpt-neox": "gpt-neox checkpoint",
}
"""What people read for each kind of source."""

_LAYER = re.compile(r"(?<=layers\.)\d+(?=\.)")


def describe(path: Place, assume: Mapping[str, str] | None = None, settings: Sequence[Path] = ()) -> dict[str, Any]:
    """What `path` holds, ready for JSON: a checkpoint, the newest of a run, or a foreign model's folder.

    Keys; those of a checkpoint alone are null for a foreign model:

    path, kind        the folder, and "checkpoint", "huggingface", "meta", "mistral" or "gpt-neox"
    run               {"path", "checkpoints": [name], "unfinished": [name]} when `path` is a run, else null
    family            the family's name
    model             the fingerprint of the weights, whatever their cut; checkpoint
    parameters        {"total", "non_embedding"}: without embeddings of tokens and positions, and the head
    bytes             on disk, everything
    created, writer, step, samples, tokens, mesh, lineage      as the manifest has them; checkpoint
    components        {"model", "optimizer/master", ...: {"tensors", "elements", "bytes", "dtypes": {"BF16": elements}}}
    trainer           whether training can go on from it; of a foreign model: once it is imported
    tokenizer         {"vocab", "special": [token], "bos", "eos", "pad"} or null; bos, eos, pad are tokens or null
    config            the model configuration
    files             [{"path", "bytes"}]
    tensors           [{"pattern", "count", "shape", "dtype", "splits": [[dim, axis, unit, ragged]], "pieces"}]

    `assume` and `settings` are for a foreign model; see open_foreign. Raises CheckpointError or
    ConversionError when there is no such thing, or it is damaged.
    """
    source = open_any(path, assume, settings)
    if isinstance(source, Checkpoint):
        return _of_checkpoint(source, path)
    return _of_foreign(source)


def _of_checkpoint(source: Checkpoint, path: Place) -> dict[str, Any]:
    manifest = source.manifest
    run = None
    if source.path != path:
        run = {
            "path": str(path),
            "checkpoints": [each.name for each in list_checkpoints(path)],
            "unfinished": [each.name for each in dead_attempts(path)],
        }
    files = [{"path": MANIFEST, "bytes": (source.path / MANIFEST).stat().st_size}]
    files += ({"path": file.path, "bytes": file.bytes} for file in manifest.files)
    config = _config(source.path / CONFIG)
    return {
        "path": str(source.path),
        "kind": "checkpoint",
        "run": run,
        "family": config["family"],
        "model": source.fingerprint,
        **sizes(source),
        "bytes": sum(file["bytes"] for file in files),
        "created": manifest.created,
        "writer": manifest.writer,
        "step": manifest.step,
        "samples": manifest.samples,
        "tokens": manifest.tokens,
        "mesh": dict(manifest.mesh),
        "lineage": [dict(event) for event in manifest.lineage],
        "trainer": any(file.path == STATE for file in manifest.files),
        "tokenizer": None if source.tokenizer is None else _tokenizer(source.tokenizer),
        "config": config,
        "files": files,
        "tensors": patterns(source, {name: len(entry.pieces) for name, entry in manifest.tensors.items()}),
    }


def _of_foreign(source: Foreign) -> dict[str, Any]:
    paths = sorted(path for path in source.folder.iterdir() if path.is_file())
    files = [{"path": path.name, "bytes": path.stat().st_size} for path in paths]
    absent = ("run", "model", "created", "writer", "step", "samples", "tokens", "mesh", "lineage")
    return {
        "path": str(source.folder),
        "kind": source.kind,
        **dict.fromkeys(absent),
        "trainer": source.resumable,
        "family": source.config.family,
        **sizes(source),
        "bytes": sum(path.stat().st_size for path in paths),
        "tokenizer": None if source.tokenizer is None else _tokenizer(source.tokenizer),
        "config": source.config.model_dump(mode="json"),
        "files": files,
        "tensors": patterns(source, {}),
    }


def _config(path: Place) -> dict[str, Any]:
    """The configuration as written. Validating it would take pydantic, which takes 0.2 s to import."""
    config = parse_object(path.read_bytes(), str(path), "see: neoxkit verify")
    try:
        if not isinstance(config["family"], str):
            raise TypeError("family")
        list(_tree(config))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a model configuration ({error!r})", "see: neoxkit verify") from error
    return config


def sizes(source: Source) -> dict[str, Any]:
    """`parameters` and `components` of a source."""
    components: dict[str, dict[str, Any]] = {}
    total = vocabulary = 0
    for name in source.names():
        spec, dtype = source.spec(name), source.dtype(name)
        elements = volume(whole(spec.shape))
        component = name.removesuffix("/" + bare(name))
        about = components.setdefault(component, {"tensors": 0, "elements": 0, "bytes": 0, "dtypes": {}})
        about["tensors"] += 1
        about["elements"] += elements
        about["bytes"] += elements * ITEM_BYTES[dtype]
        about["dtypes"][dtype] = about["dtypes"].get(dtype, 0) + elements
        if name.startswith(MODEL):
            total += elements
            vocabulary += elements if spec.role in (Role.EMBED, Role.HEAD) else 0
    return {"parameters": {"total": total, "non_embedding": total - vocabulary}, "components": components}


def patterns(source: Source, pieces: Mapping[str, int]) -> list[dict[str, Any]]:
    """Tensors that differ in their layer alone, as one entry each; `pieces` counts those of a tensor.

    The pattern of layers.0.norm1.weight to layers.11.norm1.weight is "layers.{0..11}.norm1.weight".
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for name in source.names():
        spec = source.spec(name)
        key = (_LAYER.sub("{}", name), spec.shape, source.dtype(name), spec.splits, pieces.get(name, 1))
        layer = _LAYER.search(name)
        groups.setdefault(key, []).append(int(layer[0]) if layer else 0)
    return [
        {
            "pattern": pattern.replace("{}", _span(layers)),
            "count": len(layers),
            "shape": list(shape),
            "dtype": dtype,
            "splits": [[s.dim, s.axis.value, s.unit, s.ragged] for s in splits],
            "pieces": count,
        }
        for (pattern, shape, dtype, splits, count), layers in groups.items()
    ]


def _span(layers: Sequence[int]) -> str:
    """Numbers as a shell spells them: 3, {0..11}, {0..2,7}."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    if len(layers) == 1:
        return str(layers[0])
    return "{" + ",".join(str(a) if a == b else f"{a}..{b}" for a, b in runs) + "}"


def _tokenizer(folder: Place) -> dict[str, Any] | None:
    """The vocabulary of a tokenizer.json (one more than its greatest id) and its special tokens; None without one.

    The `tokenizers` package would build the whole tokenizer, which takes much longer than this.
    """
    path = folder if folder.is_file() else folder / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        tree = parse_object(path.read_bytes(), str(path), "see: neoxkit verify")
        vocab = tree["model"]["vocab"]
        added = tree.get("added_tokens") or []
        ids = [len(vocab) - 1] if isinstance(vocab, list) else list(vocab.values())  # a Unigram's ids are places
        ids += [each["id"] for each in added]
        special = [each["content"] for each in added if each.get("special")]
        return {"vocab": max(ids, default=-1) + 1, "special": special, **_named(path.parent)}
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a tokenizer ({error!r})", "see: neoxkit verify") from error


def _named(folder: Place) -> dict[str, str | None]:
    """The tokens that begin and end a text and fill a batch, as the files beside tokenizer.json name them."""
    found: dict[str, str | None] = dict.fromkeys(("bos", "eos", "pad"))
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            continue
        tree = parse_object((folder / name).read_bytes(), str(folder / name), "see: neoxkit verify")
        for kind in found:
            value = tree.get(f"{kind}_token")
            token = value.get("content") if isinstance(value, dict) else value
            found[kind] = token if isinstance(token, str) else found[kind]
    return found


def lines(about: Mapping[str, Any], tensors: bool = False) -> Iterator[str]:
    """What `describe` found, for people; with `tensors`, the tensors by pattern and the files too."""
    for name, value in _facts(about):
        yield f"{name:<12} {value}"
    yield ""
    yield from _tree(about["config"])
    if tensors:
        yield ""
        yield from (_pattern(each) for each in about["tensors"])
        yield ""
        yield from (f"{file['bytes']:>15,}  {file['path']}" for file in about["files"])


def _facts(about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "path", about["path"]
    if about["run"]:
        count = len(about["run"]["checkpoints"])
        yield "run", f"{about['run']['path']}: {count} checkpoint{'s' if count > 1 else ''}, this is the newest"
        if about["run"]["unfinished"]:
            yield "unfinished", f"{', '.join(about['run']['unfinished'])} (the next save removes it, or neoxkit gc)"
    yield "kind", KINDS[about["kind"]]
    yield "family", about["family"]
    parameters = about["parameters"]
    yield "parameters", f"{parameters['total']:,} ({parameters['non_embedding']:,} without embeddings and head)"
    yield "on disk", f"{size(about['bytes'])} in {len(about['files'])} files"
    for component, of in about["components"].items():
        yield component, f"{of['tensors']} tensors, {size(of['bytes'])}, {_dtypes(of['dtypes'])}"
    if about["kind"] != "checkpoint" and about["trainer"]:
        yield "trainer", "state of an optimizer: training can go on once it is imported"
    if about["kind"] == "checkpoint":
        yield "weights", f"{about['model']} (fingerprint, the same for any cut)"
        yield "trainer", "training can go on from here" if about["trainer"] else "none: weights only"
        yield "cut for", " ".join(f"{axis} {ways}" for axis, ways in about["mesh"].items()) or "one device"
        yield "trained", f"step {about['step']:,}, {about['samples']:,} samples, {about['tokens']:,} tokens"
        yield "written", f"{about['created']} by {about['writer']}"
        for event in about["lineage"]:
            rest = ", ".join(f"{key} {value}" for key, value in event.items() if key != "event")
            yield "lineage", f"{event.get('event', '?')}: {rest}"
    tokenizer = about["tokenizer"]
    if tokenizer is None:
        yield "tokenizer", "none"
        return
    named = ", ".join(f"{kind} {tokenizer[kind]}" for kind in ("bos", "eos", "pad") if tokenizer[kind] is not None)
    yield "tokenizer", f"{tokenizer['vocab']:,} entries, {len(tokenizer['special'])} special" + (named and f": {named}")


def _dtypes(counts: Mapping[str, int]) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{dtype} ({elements:,} elements)" for dtype, elements in counts.items())


def size(count: int) -> str:
    """Bytes in the unit that suits: 1.6 MB."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _pattern(about: Mapping[str, Any]) -> str:
    """One pattern, for people: "model/layers.{0..11}.attn.q.weight [768, 768] BF16 x12, split dim 0 over tp ..."."""
    line = f"{about['pattern']} {about['shape']} {about['dtype']}"
    line += f" x{about['count']}" if about["count"] > 1 else ""
    for given in about["splits"]:
        split = Split(*given)
        unit = "heads" if ".attn." in about["pattern"] else "units"
        line += f", split dim {split.dim} over {split.axis}"
        line += f" in {unit} of {split.unit}" if split.unit > 1 else ""
        line += ", unevenly if need be" if split.ragged else ""
    return line + (f", in {about['pieces']} pieces" if about["pieces"] > 1 else "")


def _tree(config: Mapping[str, Any]) -> Iterator[str]:
    """The network, from its configuration."""
    norm, mixer, mlp, width = config["norm"], config["mixer"], config["mlp"], config["width"]
    biased = " with bias" if norm["bias"] else ""
    normed = {"layer": "LayerNorm", "rms": "RMSNorm"}.get(norm["kind"], norm["kind"]) + f" eps {norm['eps']:g}{biased}"
    yield f"embed        {config['vocab']} x {width}"
    if config["position"]["kind"] == "learned":
        yield f"position     {config['context']} x {width}, learned"
    yield f"layers       {config['depth']}, {config['residual']} residual, context {config['context']}"
    yield f"  norm1      {normed}"
    yield f"  attn       {_attention(mixer)}, {_position(config['position'])}"
    yield f"  norm2      {normed}"
    gated = "gated " if mlp["gated"] else ""
    yield f"  mlp        {width} -> {mlp['hidden']} -> {width}, {gated}{mlp['activation']}" + _bias(mlp["bias"])
    yield f"norm         {normed}"
    yield "head         the embedding" if config["tied"] else f"head         {width} x {config['vocab']}"


def _bias(bias: bool) -> str:
    return ", bias" if bias else ""


def _attention(mixer: Mapping[str, Any]) -> str:
    said = f"{mixer['heads']} heads of {mixer['head_dim']}"
    said += f" over {mixer['kv_heads']} key/value heads" if mixer["kv_heads"] != mixer["heads"] else ""
    said += _bias(mixer["bias"]) + (", output bias" if mixer["out_bias"] else "")
    said += f", window {mixer['window']}" if mixer["window"] else ""
    return said + (", q/k norm" if mixer["qk_norm"] else "")


def _position(position: Mapping[str, Any]) -> str:
    if position["kind"] != "rotary":
        return {"alibi": "ALiBi", "learned": "learned positions", "none": "no positions"}.get(
            position["kind"], position["kind"]
        )
    said = f"rotary base {position['base']:g}"
    said += f" on {position['fraction']:.0%}" if position["fraction"] != 1 else ""
    if scaling := position["scaling"]:
        said += f", {scaling['kind']} scaling by {scaling['factor']:g}"
    return said

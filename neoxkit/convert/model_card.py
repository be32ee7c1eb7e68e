"""The README.md of an exported model: what it is, where its weights come from, how to load it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

import yaml

from neoxkit import __version__
from neoxkit.checkpoint.dtypes import TORCH
from neoxkit.checkpoint.format import MODEL
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.convert.copy import Converted
from neoxkit.convert.describe import sizes
from neoxkit.convert.hf_sink import OLDEST, ORIGIN
from neoxkit.families.schema import Family

CARD = "README.md"
"""The file that model hubs show."""

HUB_SOURCE = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)@(?P<commit>[0-9a-f]{7,64})")
"""How the lineage names a model of the Hugging Face Hub."""

LOAD = """\
from transformers import {classes}

model = AutoModelForCausalLM.from_pretrained({place})
"""
LOAD_TOKENIZER = """\
tokenizer = AutoTokenizer.from_pretrained({place})
"""
FOLDER = '"path/to/this/folder"'
"""What is written where a reader has to name the model's place."""


def model_card(
    name: str, checkpoint: Checkpoint, source: Converted, family: Family, tokenizer: bool, place: str = FOLDER
) -> bytes:
    """The card of a model called `name`: a checkpoint, exported as a family, `source` being what is written.

    `tokenizer` says whether one is beside it; `place` is what `from_pretrained` is given, as Python. A
    licence and measurements are for people to add.
    """
    classes = "AutoModelForCausalLM" + ", AutoTokenizer" * tokenizer
    code = LOAD.format(classes=classes, place=place) + LOAD_TOKENIZER.format(place=place) * tokenizer
    how = ["```python", code.rstrip(), "```", "", f"With transformers {OLDEST.removesuffix('.0')} to 5."]
    if said := family.caution(checkpoint.config):
        how += ["", f"Beware: {said}."]
    front = _front_matter(checkpoint, "transformers", family.model_type)
    facts = [f"| family | {family.title} (`{family.architecture}`) |", *_facts(checkpoint, source)]
    return _card(name, front, facts, _history(checkpoint, source), how)


def checkpoint_card(name: str, checkpoint: Checkpoint, model: str) -> bytes:
    """The card of a model called `name` that is published as the checkpoint it is; `model` is what import is given."""
    how = ["```sh", f"neoxkit import {model} checkpoint", "```"]
    config = checkpoint.config
    front = _front_matter(checkpoint, "neoxkit", config.family)
    facts = [f"| family | {_plain(config.family)} |", *_facts(checkpoint, Converted(checkpoint, None))]
    return _card(name, front, facts, _history(checkpoint, None), how)


def _card(name: str, front: dict[str, Any], facts: list[str], history: Iterator[str], how: list[str]) -> bytes:
    lines = ["---", yaml.safe_dump(front, sort_keys=False).rstrip(), "---", "", f"# {_plain(name)}", ""]
    lines += ["| | |", "|---|---|", *facts, "", "## Where it comes from", ""]
    lines += [f"{number}. {said}" for number, said in enumerate(history, 1)]
    lines += ["", f"`{ORIGIN}` says the same to programs.", "", "## How to load it", "", *how]
    return "\n".join([*lines, ""]).encode()


def _front_matter(checkpoint: Checkpoint, library: str, tag: str) -> dict[str, Any]:
    """What a hub files the model under."""
    about: dict[str, Any] = {
        "library_name": library,
        "pipeline_tag": "text-generation",
        "tags": ["neoxkit", tag] if library != "neoxkit" else ["neoxkit"],
    }
    imports = [event for event in checkpoint.manifest.lineage if event.get("event") == "import"]
    if bases := [match["name"] for event in imports if (match := HUB_SOURCE.fullmatch(str(event.get("source"))))]:
        about["base_model"] = bases[0]
    return about


def _facts(checkpoint: Checkpoint, source: Converted) -> Iterator[str]:
    """Rows of a table of what the model is."""
    config, parameters = source.config, sizes(checkpoint)["parameters"]
    held = {source.dtype(name) for name in source.names() if name.startswith(MODEL)}
    yield f"| parameters | {parameters['total']:,}; {parameters['non_embedding']:,} without embeddings and head |"
    yield f"| layers, width | {config.depth}, {config.width:,} |"
    yield f"| vocabulary | {config.vocab:,} |"
    yield f"| context | {config.context:,} tokens |"
    yield f"| weights | {', '.join(sorted(str(TORCH[dtype]).removeprefix('torch.') for dtype in held))} |"
    if data := _training_data(checkpoint.run_yaml):
        yield f"| trained on | {data} |"


def _training_data(run: str | None) -> str | None:
    """The names of the tokens that a run learned from, without the folders above them; None when nobody says."""
    try:
        train = yaml.safe_load(run or "")["data"]["train"]
    except (yaml.YAMLError, KeyError, TypeError, RecursionError):
        return None
    sources = train if isinstance(train, list) else [train]
    prefixes = [each.get("tokens") if isinstance(each, dict) else each for each in sources]
    return ", ".join(f"`{_plain(PurePath(str(prefix)).name)}`" for prefix in prefixes)


def _history(checkpoint: Checkpoint, source: Converted | None) -> Iterator[str]:
    """What was done to the weights, a sentence each; `source` is what is exported, None when nothing is."""
    manifest = checkpoint.manifest
    trained = [event for event in manifest.lineage if event.get("event") == "train"]
    for event in manifest.lineage:
        told = _SENTENCES.get(str(event.get("event")), _other)(event)
        if trained and event is trained[-1] and manifest.tokens:
            told = told.removesuffix(".") + f": {manifest.tokens:,} tokens in {manifest.samples:,} samples in all."
        yield told
    which = f"of the fingerprint `{checkpoint.fingerprint}`"
    if source is None:
        yield f"Published as it is, as a checkpoint of neoxkit {__version__}, with weights {which}."
        return
    kept = [source.dtype(name) for name in checkpoint.names() if name.startswith(MODEL)]
    before = [checkpoint.dtype(name) for name in checkpoint.names() if name.startswith(MODEL)]
    how = "" if kept == before else ", its weights converted to another precision"
    yield f"Exported by neoxkit {__version__}{how}, from weights {which}."


def _imported(event: Mapping[str, Any]) -> str:
    form = f" ({_plain(event['format'])})" if event.get("format") else ""
    if match := HUB_SOURCE.fullmatch(str(event.get("source"))):
        name = match["name"]
        return f"Imported from [{name}](https://huggingface.co/{name}) at commit `{match['commit']}`{form}."
    assumed = f", assuming {_plain(event['assumed'])}" if event.get("assumed") else ""
    return f"Imported from {_place(event)}{form}{assumed}."


def _trained(event: Mapping[str, Any]) -> str:
    return f"Trained from step {_count(event.get('from_step'))} to step {_count(event.get('to_step'))}."


def _loaded(event: Mapping[str, Any]) -> str:
    weights = f", of the fingerprint `{_plain(event['model'])}`" if event.get("model") else ""
    return f"Weights taken from {_place(event)}{weights}."


def _recut(event: Mapping[str, Any]) -> str:
    return "Cut anew for other devices."


def _other(event: Mapping[str, Any]) -> str:
    rest = ", ".join(f"{key} {_plain(value)}" for key, value in event.items() if key != "event")
    return f"{_plain(event.get('event', '?')).capitalize()}{': ' + rest if rest else ''}."


_SENTENCES = {"import": _imported, "train": _trained, "load": _loaded, "reshard": _recut}


def _place(event: Mapping[str, Any]) -> str:
    """A source by its last name: the folders above it are nobody else's business."""
    name = PurePath(str(event.get("source", ""))).name
    return f"`{_plain(name)}`" if name else "a folder"


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else _plain(value)


def _plain(value: Any) -> str:
    """A value in one line that is no markup."""
    return " ".join(re.sub(r"[`<>|\[\]]", " ", str(value)).split())

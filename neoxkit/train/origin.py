"""Where a run begins: at the end of its own past, with the weights that `load` names, or from the seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.checkpoint.store import Place, place
from neoxkit.config.model import ModelConfig
from neoxkit.config.run import RunConfig
from neoxkit.convert.open import Foreign, open_any
from neoxkit.convert.tokenizer import carry
from neoxkit.data.tokenizer import FILE, fingerprint_of, tokenizer_contents
from neoxkit.data.tokenizer.kinds import open_tokenizer
from neoxkit.errors import ConfigError, DataError
from neoxkit.log import note
from neoxkit.parallel.world import ALONE, World
from neoxkit.train.resume import Past, Position, past_of

INHERITED = {"tokens": ("bos", "eos", "pad"), "position": ("base", "scaling")}
"""What a run takes from the weights that it begins with, unless its own configuration states it."""

FREE = ("family", "tokens", "context", "position.base", "position.scaling")
"""What `load` may find otherwise: it names nothing that the weights depend on, or stretches the context."""


@dataclass(frozen=True)
class Origin:
    """What a run goes on from or begins with; neither, when its weights are drawn from the seed."""

    past: Past | None = None
    source: Checkpoint | Foreign | None = None

    @property
    def at(self) -> Position:
        """How far the run is already."""
        return self.past.position if self.past else Position()

    @property
    def lineage(self) -> tuple[list[Mapping[str, Any]], int]:
        """The events before this stretch of training, and the step at which it begins."""
        if self.past:
            return self.past.lineage
        if self.source is None:
            return [], 0
        if not isinstance(self.source, Checkpoint):
            return [self.source.lineage], 0
        event = {"event": "load", "source": str(self.source.path), "model": self.source.fingerprint}
        return [*self.source.manifest.lineage, event], 0

    @property
    def tokenizer(self) -> Place | None:
        """The folder of the tokenizer that comes with the weights, if one does."""
        weights = self.past.checkpoint if self.past else self.source
        return weights.tokenizer if weights else None

    def close(self) -> None:
        """Close the files: a checkpoint that is deleted while they are open frees no room."""
        for each in (self.past.checkpoint if self.past else None, self.source):
            if each:
                each.close()


def origin_of(config: RunConfig, world: World = ALONE) -> Origin:
    """The origin of a run. `load` is opened only by a run that has no past.

    Raises CheckpointError when there is one and it cannot be used, ConfigError when `load` is
    another model.
    """
    past = past_of(Path(config.save.folder), world)
    if past and past.imported:
        check_same_model(config.model, past.checkpoint.config, past.checkpoint.path)
    if past or config.load is None:
        return Origin(past)
    source = open_any(place(config.load))
    check_same_model(config.model, source.config, place(config.load))
    return Origin(None, source)


def inherit(config: RunConfig, given: Mapping[str, Any], origin: Origin) -> RunConfig:
    """The configuration with what `given` does not state of INHERITED as the loaded weights have it.

    What it states otherwise than the weights have it is told. A run with a past keeps what it
    inherited when it began.
    """
    if origin.past:
        begun = origin.past.checkpoint.config if origin.past.inherits else None
        return config.model_copy(update={"model": _inherited(config.model, given, begun)}) if begun else config
    if origin.source is None:
        return config
    theirs = origin.source.config
    model = _inherited(config.model, given, theirs)
    for key, ours, other in _differences(model, theirs):
        note(f"model.{key} is {ours}, and the weights in {config.load} had {other}")
    return config.model_copy(update={"model": model})


def _inherited(ours: ModelConfig, given: Mapping[str, Any], theirs: ModelConfig) -> ModelConfig:
    nodes = {}
    for name, keys in INHERITED.items():
        node, other = getattr(ours, name), getattr(theirs, name)
        stated = (given.get("model") or {}).get(name) or {}
        taken = {key: getattr(other, key) for key in keys if key not in stated and hasattr(other, key)}
        nodes[name] = node.model_copy(update=taken) if type(node) is type(other) else node
    return ours.model_copy(update=nodes)


def check_same_model(ours: ModelConfig, theirs: ModelConfig, path: Place) -> None:
    """Raise ConfigError, naming the option, when weights are of another model than the configuration's."""
    for key, mine, other in _differences(ours, theirs):
        free = any(key == name or key.startswith(f"{name}.") for name in FREE)
        if key == "context" and ours.position.kind == "learned":
            free = False  # the table has a row for each position
        if not free:
            raise ConfigError(
                f"model.{key} is {mine}, and the weights in {path} are of a model with {other}",
                f"set model.{key} to what the weights have",
            )


def _differences(ours: ModelConfig, theirs: ModelConfig) -> Iterator[tuple[str, Any, Any]]:
    """The dotted keys at which two models differ, with both values."""
    mine, other = (_flat(config.model_dump(mode="json")) for config in (ours, theirs))
    for key in (*mine, *(key for key in other if key not in mine)):
        if mine.get(key) != other.get(key):
            yield key, mine.get(key), other.get(key)


def _flat(tree: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found.update(_flat(value, f"{at}{key}.") if isinstance(value, Mapping) else {f"{at}{key}": value})
    return found


@dataclass(frozen=True)
class Chosen:
    """A run's tokenizer: the contents of its files by name, where they are from, and its fingerprint."""

    contents: Mapping[str, bytes]
    where: Place | None = None
    fingerprint: str | None = None


def choose_tokenizer(config: RunConfig, origin: Origin) -> Chosen:
    """`data.tokenizer`, else the tokenizer that the weights came with, if they did.

    Raises DataError when the model has no row for its ids, or it is another than the run began with.
    """
    theirs = Chosen({})
    if origin.tokenizer:
        contents = tokenizer_contents(origin.tokenizer)
        if FILE not in contents:
            contents = carry(origin.tokenizer).files
        theirs = Chosen(contents, origin.tokenizer, fingerprint_of(contents[FILE]) if FILE in contents else None)
    if config.data.tokenizer is None:
        return theirs
    ours = open_tokenizer(config.data.tokenizer)
    if ours.vocab > config.model.vocab:
        raise DataError(
            f"{ours.path} has a vocabulary of {ours.vocab}, and model.vocab is {config.model.vocab}",
            f"set model.vocab to {ours.vocab} or more",
        )
    if theirs.fingerprint and ours.fingerprint != theirs.fingerprint:
        if origin.past:
            raise DataError(
                f"{ours.path} is another tokenizer than the one in {theirs.where}, which the run began with",
                "give it the tokenizer it began with, or begin a new run with `load`",
            )
        note(f"{ours.path} is another tokenizer than the one in {theirs.where}, and takes its place")
    return Chosen(ours.contents(), ours.path, ours.fingerprint)

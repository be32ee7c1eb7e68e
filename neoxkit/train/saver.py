"""Checkpoints of a run: written, kept and loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from neoxkit.checkpoint.dtypes import name_of
from neoxkit.checkpoint.folder import delete, list_checkpoints, lock, publish
from neoxkit.checkpoint.plan import cut
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.checkpoint.writer import Writer
from neoxkit.config.model import ModelConfig
from neoxkit.config.run import RunConfig
from neoxkit.convert.hf_source import HuggingFaceSource
from neoxkit.convert.open import open_any
from neoxkit.errors import ConfigError
from neoxkit.log import note
from neoxkit.mesh import ONE
from neoxkit.train.engine import Engine
from neoxkit.train.feed import Identity
from neoxkit.train.resume import Past, Position

FREE = ("family", "tokens", "context", "position.base", "position.scaling")
"""What `load` may find otherwise: it names nothing that the weights depend on, or stretches the context."""


class Saver:
    """Writes the checkpoints of one run into `save.folder`, and keeps as many as `save.keep_last` says."""

    def __init__(
        self,
        config: RunConfig,
        given: Mapping[str, Any],
        identity: Identity,
        tokenizer: Mapping[str, Path] | None,
        lineage: Sequence[Mapping[str, Any]],
        begun: int,
    ) -> None:
        """`given` are the options as the user wrote them; `begun` is the step that `lineage` leads to."""
        self.config, self.identity, self.tokenizer = config, identity, tokenizer
        self.folder = Path(config.save.folder)
        self._lineage, self._begun = list(lineage), begun
        resolved = config.model_dump(mode="json")
        self._run_yaml = yaml.safe_dump({"given": dict(given), "resolved": resolved}, sort_keys=False)

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.folder / f"step-{step:08d}"

    def save(self, engine: Engine, at: Position) -> Path:
        """Write a checkpoint; then make `latest` name it, and remove what is not kept. Raises as Writer does."""
        held = list(engine.state())
        parts = cut({h.name: h.spec for h in held}, {h.name: name_of(h.value.dtype) for h in held}, ONE)
        event = {"event": "train", "from_step": self._begun, "to_step": at.step}
        writer = Writer(
            self.path(at.step),
            parts,
            config=self.config.model,
            mesh={"pp": 1, "tp": 1, "ep": 1, "dp": 1, "zero": 0},
            step=at.step,
            samples=at.samples,
            tokens=at.tokens,
            lineage=[*self._lineage, event],
            run_yaml=self._run_yaml,
            tokenizer=self.tokenizer,
            trainer={**asdict(at), "optimizer": engine.counters(), "data": asdict(self.identity)},
            rng=random_state(),
            force=True,  # only a checkpoint that was found invalid can be there
        )
        with writer:
            for each in held:
                writer.write(each.name, each.box, each.value, each.run)
            writer.commit()
        publish(self.folder, self.path(at.step))
        self._retire(self.path(at.step))
        return self.path(at.step)

    def _retire(self, newest: Path) -> None:
        """Delete what `keep_last` does not keep. A later one can only be damaged, and counts for nothing."""
        saved = list_checkpoints(self.folder)
        saved = saved[: saved.index(newest) + 1]
        for old in saved[: -self.config.save.keep_last] if self.config.save.keep_last else ():
            delete(old)


def random_state() -> dict[str, bytes]:
    """The states of torch's random-number generators, by device."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return {device: state.numpy().tobytes() for device, state in states.items()}


def restore(engine: Engine, past: Past) -> None:
    """Bring an engine, and the random-number generators, to where a run stopped."""
    engine.load_state(past.checkpoint, past.state["optimizer"])
    for device, data in past.checkpoint.rng().items():
        state = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
        if device == "cpu":
            torch.set_rng_state(state)
        elif device == "cuda" and torch.cuda.is_available():
            torch.cuda.set_rng_state(state)


def begin_from(engine: Engine, config: RunConfig) -> tuple[list[Mapping[str, Any]], Path | None]:
    """Load the weights that `load` names; returns their lineage and the folder of their tokenizer.

    Raises CheckpointError when nothing there can be loaded, ConfigError when it is another model.
    """
    assert config.load is not None
    path = Path(config.load)
    source = open_any(path)
    check_same_model(config.model, source.config, path)
    engine.load_weights(source)
    note(f"weights of {path}")
    if isinstance(source, HuggingFaceSource):
        return [source.lineage], source.tokenizer
    assert isinstance(source, Checkpoint)
    event = {"event": "load", "source": str(source.path), "model": source.fingerprint}
    return [*source.manifest.lineage, event], source.tokenizer


def check_same_model(ours: ModelConfig, theirs: ModelConfig, path: Path) -> None:
    """Raise ConfigError, naming the option, when weights are of another model than the configuration's."""
    mine, other = (_flat(config.model_dump(mode="json")) for config in (ours, theirs))
    for key in (*mine, *(key for key in other if key not in mine)):
        free = any(key == name or key.startswith(f"{name}.") for name in FREE)
        if key == "context" and ours.position.kind == "learned":
            free = False  # the table has a row for each position
        if not free and mine.get(key) != other.get(key):
            raise ConfigError(
                f"model.{key} is {mine.get(key)}, and the weights in {path} are of a model with {other.get(key)}",
                f"set model.{key} to what the weights have",
            )


def _flat(tree: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found.update(_flat(value, f"{at}{key}.") if isinstance(value, Mapping) else {f"{at}{key}": value})
    return found


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a run's folder, made when it is not there. Raises ConfigError when another process trains in it."""
    if folder.is_file():
        raise ConfigError(f"save.folder {folder} is a file", "name a folder")
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    held = lock(folder)
    if held is None:
        raise ConfigError(f"another process is training in {folder}", "wait for it, or choose another save.folder")
    try:
        yield
    finally:
        for each in made:
            if not any(each.iterdir()):  # refused before the first step
                each.rmdir()
        os.close(held)

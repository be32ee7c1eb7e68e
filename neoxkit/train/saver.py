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
from neoxkit.checkpoint.folder import list_checkpoints, lock, publish
from neoxkit.checkpoint.plan import cut
from neoxkit.checkpoint.retention import carry_out, plan
from neoxkit.checkpoint.store import StorePath, place
from neoxkit.checkpoint.writer import Writer
from neoxkit.config.run import RunConfig
from neoxkit.errors import ConfigError
from neoxkit.mesh import ONE
from neoxkit.train.engine import Engine
from neoxkit.train.feed import Identity
from neoxkit.train.resume import Past, Position


class Saver:
    """Writes the checkpoints of one run into `save.folder`, and keeps as many as `save.keep_last` says."""

    def __init__(
        self,
        config: RunConfig,
        given: Mapping[str, Any],
        identity: Identity,
        tokenizer: Mapping[str, bytes] | None,
        lineage: Sequence[Mapping[str, Any]],
        begun: int,
    ) -> None:
        """`given` are the options as the user wrote them; `begun` is the step that `lineage` leads to.

        `tokenizer` are the contents of its files by name: a checkpoint that they came from may be retired.
        """
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
        """Delete what `keep_last` does not keep. A later one can only be damaged, and is not looked at."""
        if self.config.save.keep_last is not None:
            saved = list_checkpoints(self.folder)
            carry_out(plan(self.folder, saved[: saved.index(newest) + 1], self.config.save.keep_last, invalid=True))


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


def run_folder(given: str) -> Path:
    """The folder of a run. Raises ConfigError for one in an object store."""
    folder = place(given)
    if isinstance(folder, StorePath):
        raise ConfigError(f"save.folder {folder}: a run is saved to a disk only", "name a folder, and copy it later")
    return folder


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

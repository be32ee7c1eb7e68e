"""Checkpoints of a run: written, kept and loaded."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from neoxkit.checkpoint.dtypes import name_of
from neoxkit.checkpoint.folder import list_checkpoints, lock, publish
from neoxkit.checkpoint.plan import Holding, Part, cut, deal
from neoxkit.checkpoint.retention import carry_out, plan
from neoxkit.checkpoint.store import StorePath, place
from neoxkit.checkpoint.writer import Writer
from neoxkit.config.run import RunConfig
from neoxkit.errors import CheckpointError, ConfigError
from neoxkit.mesh import ONE
from neoxkit.parallel.world import ALONE, World
from neoxkit.train.engine import Engine, Held
from neoxkit.train.feed import Identity
from neoxkit.train.resume import Past, Position


class Saver:
    """Writes the checkpoints of one run into `save.folder`, and keeps as many as `save.keep_last` says.

    Every process of the run has one, and writes what it holds; the first names the checkpoint.
    """

    def __init__(
        self,
        config: RunConfig,
        given: Mapping[str, Any],
        identity: Identity,
        tokenizer: Mapping[str, bytes] | None,
        lineage: Sequence[Mapping[str, Any]],
        begun: int,
        world: World = ALONE,
    ) -> None:
        """`given` are the options as the user wrote them; `begun` is the step that `lineage` leads to.

        `tokenizer` are the contents of its files by name: a checkpoint that they came from may be retired.
        """
        self.config, self.identity, self.tokenizer, self.world = config, identity, tokenizer, world
        self.folder = Path(config.save.folder)
        self._lineage, self._begun = list(lineage), begun
        resolved = config.model_dump(mode="json")
        self._run_yaml = yaml.safe_dump({"given": dict(given), "resolved": resolved}, sort_keys=False)
        self._plan: tuple[list[Holding], list[list[Part]]] = [], []

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.folder / f"step-{step:08d}"

    def save(self, engine: Engine, at: Position) -> Path:
        """Write a checkpoint; then make `latest` name it, and remove what is not kept.

        Raises as Writer does, on every process when it fails on one.
        """
        held, failure = list(engine.state()), None
        counters, plan = engine.counters(), self.plan(held)
        attempt = self.world.agree(lambda: secrets.token_hex(3))
        begin = partial(self._writer, plan, at, counters, attempt)
        # The others begin once it is certain that the checkpoint may be put there.
        begun: list[Writer] = []
        self.world.agree(lambda: begun.append(begin()))
        try:
            with begun[0] if begun else begin() as writer:
                own = {(part.name, part.box, part.run) for part in plan[self.world.rank]}
                for each in held:
                    if self.world.size == 1 or (each.name, each.box, each.run) in own:
                        writer.write(each.name, each.box, each.value, each.run)
                writer.commit()
        except CheckpointError as error:
            failure = error
        if failures := [each for each in self.world.gather(failure) if each]:
            raise failures[0]
        if self.world.first:
            publish(self.folder, self.path(at.step))
            self._retire(self.path(at.step))
        return self.path(at.step)

    def plan(self, held: Sequence[Held]) -> list[list[Part]]:
        """What each process writes. It is the same at every save, and the processes ask each other once."""
        specs = {each.name: each.spec for each in held}
        dtypes = {each.name: name_of(each.value.dtype) for each in held}
        if self.world.size == 1:
            return [cut(specs, dtypes, ONE)]
        mine = [Holding(each.name, dtypes[each.name], each.box, each.run) for each in held]
        if self.world.highest(int(mine != self._plan[0])):
            told = self.world.gather((mine, specs))
            known = {name: spec for _, each in told for name, spec in each.items()}
            self._plan = mine, deal([holdings for holdings, _ in told], known, self.config.placed)
        return self._plan[1]

    def _writer(self, plan: list[list[Part]], at: Position, counters: Mapping[str, Any], attempt: str) -> Writer:
        event = {"event": "train", "from_step": self._begun, "to_step": at.step}
        mesh = self.config.placed
        return Writer(
            self.path(at.step),
            [part for parts in plan for part in parts],
            config=self.config.model,
            mesh={"pp": mesh.pp, "tp": mesh.tp, "ep": mesh.ep, "dp": mesh.dp, "zero": self.config.zero.stage},
            step=at.step,
            samples=at.samples,
            tokens=at.tokens,
            lineage=[*self._lineage, event],
            run_yaml=self._run_yaml,
            tokenizer=self.tokenizer,
            trainer={**asdict(at), "optimizer": counters, "data": asdict(self.identity)},
            rng=random_state(),
            rank=self.world.rank,
            world=self.world.size,
            attempt=attempt,
            force=True,  # only a checkpoint that was found invalid can be there
        )

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


def restore(engine: Engine, past: Past, rank: int = 0) -> None:
    """Bring an engine, and the random-number generators of this rank, to where a run stopped."""
    engine.load_state(past.checkpoint, past.state["optimizer"])
    for device, data in past.checkpoint.rng(rank).items():
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
def alone_in(folder: Path, world: World = ALONE) -> Iterator[None]:
    """Hold a run's folder, made when it is not there. Raises ConfigError when another job trains in it."""
    holding = ExitStack()
    with holding:
        world.agree(lambda: holding.enter_context(_held(folder)))
        yield


@contextmanager
def _held(folder: Path) -> Iterator[None]:
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

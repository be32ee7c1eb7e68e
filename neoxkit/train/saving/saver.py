"""Checkpoints of a run: written, kept and loaded."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
import yaml

from neoxkit.checkpoint.dtypes import name_of
from neoxkit.checkpoint.folder import lock
from neoxkit.checkpoint.plan import Holding, Part, cut, deal
from neoxkit.checkpoint.store import StorePath, place
from neoxkit.config.run import RunConfig
from neoxkit.errors import CheckpointError, ConfigError
from neoxkit.log import warn
from neoxkit.mesh import ONE
from neoxkit.parallel.world import ALONE, World
from neoxkit.spec import Axis
from neoxkit.train.engine import Engine, Held
from neoxkit.train.identity import Identity
from neoxkit.train.resume import Past, Position
from neoxkit.train.saving.background import Background
from neoxkit.train.saving.exchange import pack, unpack
from neoxkit.train.saving.order import Order, Value

ASIDE = 64_000_000
"""Bytes that a process writes of a checkpoint from which on it is worth a process beside it, and a copy."""


class Saver:
    """Writes the checkpoints of one run into `save.folder`, and keeps those that `save` says.

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
        self._background = Background()
        self._under_way: Path | None = None
        self._stalled: float | None = None
        self.told: list[str] = []

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.folder / f"step-{step:08d}"

    def save(self, engine: Engine, at: Position, last: bool = False) -> Path:
        """Save the run, in the background where that is asked for; then the file `latest` names the checkpoint.

        A save that fails is told of, and training goes on; the `last` one is waited for, and raises as
        Writer does, on every process when it failed on one.
        """
        self.settle()
        held = list(engine.state())
        plan = self.plan(held)
        own = {(part.name, part.box, part.run) for part in plan[self.world.rank]}
        alone = self.world.size == 1
        values = [
            Value(each.name, each.box, each.run, each.value)
            for each in held
            if alone or (each.name, each.box, each.run) in own
        ]
        order = self._order(plan, at, engine.counters())
        if not last and self._aside(plan):
            begun = time.perf_counter()
            self._background.submit(order, values)
            self._under_way = order.path
            self._stalled = time.perf_counter() - begun
            return order.path
        self._judge(order.path, self._write(order, values), last)
        return order.path

    def _write(self, order: Order, values: Sequence[Value]) -> list[str | None]:
        """Write at once; why it failed, on each process.

        The processes meet when each has written its part: who waited for a file of one that is gone
        would wait for long.
        """
        told: list[str | None] = []
        failure = None

        def ready() -> None:
            told[:] = self.world.gather(None)
            if any(told):
                raise CheckpointError("another process could not write its part")

        try:
            order.fulfil(values, ready)
        except CheckpointError as error:
            failure = str(error)
            told = told or self.world.gather(failure)
        return told if any(told) else self.world.gather(failure)

    def settle(self) -> None:
        """Wait for the save that is under way, if any, on all processes; a failure is told of."""
        if (path := self._under_way) is None:
            return
        self._under_way = None
        # The first waits for what the others write: when one of them failed it would wait in vain.
        failures = self.world.gather(None if self.world.first else self._background.wait())
        if self.world.first:
            if any(failures):
                self._background.stop()
            else:
                failures[0] = self._background.wait()
        self._judge(path, self.world.agree(lambda: failures), last=False)

    def _judge(self, path: Path, failures: Sequence[str | None], last: bool) -> None:
        """What is told, or raised, of a save, given why it failed on each process."""
        found = next(((rank, each) for rank, each in enumerate(failures) if each), None)
        if found is None:
            stall = "" if self._stalled is None else f", training waited {self._stalled:.2f} s"
            self.told.append(f"saved {path}{stall}")
        else:
            where = f" on rank {found[0]}" if self.world.size > 1 else ""
            if last:
                raise CheckpointError(f"{path} was not saved{where}: {found[1]}")
            warn(f"{path} was not saved{where}, and training goes on: {found[1]}")
        self._stalled = None

    def poll(self) -> list[str]:
        """What became of saves since the last call. A save in the background is told of at the next save, or here."""
        if self._under_way is not None and self.world.size == 1 and not self._background.busy:
            self.settle()
        told, self.told = self.told, []
        return told

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Wait for the save that is under way, and end the process that writes. A second Ctrl-C does not wait."""
        if kind is KeyboardInterrupt:
            self._background.stop()
        elif (path := self._under_way) is not None and (failure := self._background.wait()):
            warn(f"{path} was not saved: {failure}")
        self._background.close()

    def _aside(self, plan: list[list[Part]]) -> bool:
        """Whether the processes save in the background: the same on all."""
        wanted = self.config.save.background
        return wanted == "always" or (
            wanted == "auto" and max(sum(part.bytes for part in parts) for parts in plan) >= ASIDE
        )

    def plan(self, held: Sequence[Held]) -> list[list[Part]]:
        """What each process writes. It is the same at every save, and the processes ask each other once."""
        specs = {each.name: each.spec for each in held}
        dtypes = {each.name: name_of(each.value.dtype) for each in held}
        if self.world.size == 1:
            return [cut(specs, dtypes, ONE)]
        mine = [Holding(each.name, dtypes[each.name], each.box, each.run) for each in held]
        if self.world.highest(int(mine != self._plan[0])):
            found, known = unpack(self.world.gather(pack(mine, specs)))
            self._plan = mine, deal(found, known, self.config.placed)
        return self._plan[1]

    def _order(self, plan: list[list[Part]], at: Position, counters: Mapping[str, Any]) -> Order:
        event = {"event": "train", "from_step": self._begun, "to_step": at.step}
        mesh = self.config.placed
        about = {
            "config": self.config.model,
            "mesh": {axis.value: mesh.size(axis) for axis in Axis} | {"zero": self.config.zero.stage},
            "step": at.step,
            "samples": at.samples,
            "tokens": at.tokens,
            "lineage": [*self._lineage, event],
            "run_yaml": self._run_yaml,
            "tokenizer": dict(self.tokenizer or {}),
            "trainer": {**asdict(at), "optimizer": counters, "data": self.identity.saved()},
            "rng": random_state(),
            "rank": self.world.rank,
            "world": self.world.size,
            "attempt": self.world.agree(lambda: secrets.token_hex(3)),
        }
        return Order(self.path(at.step), [part for parts in plan for part in parts], self.config.save, about)


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

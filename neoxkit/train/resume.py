"""Going on where a run stopped: what the newest checkpoint holds, and whether this run may follow it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from neoxkit.checkpoint.folder import list_checkpoints, newest
from neoxkit.checkpoint.format import MODEL
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.config.run import RunConfig
from neoxkit.errors import CheckpointError, ConfigError
from neoxkit.parallel.world import ALONE, World
from neoxkit.train.identity import Began, Identity
from neoxkit.train.schedule import rate_of

FIXED = ("model.", "seed", "precision", "optimizer.kind", "mup")
"""Options that a run keeps to its end: others would be another model, or other data."""

PRECISIONS = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}
"""The precision of a run by the dtype of its weights."""

UNTOLD = ("load", "init.", "data.sequence")
"""Options that no longer matter once a run has begun, or are compared elsewhere; `_load_changed` tells of `load`."""


@dataclass(frozen=True)
class Position:
    """How far a run is: optimiser steps, samples and tokens that it learned from.

    `skipped` are steps that changed nothing, as fp16 does: the learning rate does not count them.
    """

    step: int = 0
    samples: int = 0
    tokens: int = 0
    skipped: int = 0

    def after(self, samples: int, tokens: int, skipped: bool = False) -> Position:
        """One step further."""
        return Position(self.step + 1, self.samples + samples, self.tokens + tokens, self.skipped + skipped)


@dataclass(frozen=True)
class Past:
    """The checkpoint that a run goes on from."""

    checkpoint: Checkpoint
    position: Position
    state: Mapping[str, Any]
    resolved: Mapping[str, Any]

    @property
    def identity(self) -> Identity | None:
        """The data that the run began with; None where another program began it, which does not say."""
        return Identity.read(self.state["data"]) if self.state["data"] is not None else None

    @property
    def began(self) -> Began | None:
        """What it learned from; None where another program began it."""
        if self.identity is None:
            return None
        return Began(self.identity, self.position.samples, str(self.checkpoint.path))

    @property
    def imported(self) -> bool:
        """Whether another program made the checkpoint, and this one has made no step yet."""
        return self.state["data"] is None

    @property
    def inherits(self) -> bool:
        """Whether the run began with weights from elsewhere, which tell what its configuration leaves open."""
        events = (event.get("event") for event in self.checkpoint.manifest.lineage)
        return bool(self.resolved.get("load")) or "import" in events

    @property
    def lineage(self) -> tuple[list[Mapping[str, Any]], int]:
        """The events before this stretch of training, and the step at which it began."""
        events = list(self.checkpoint.manifest.lineage)
        if events and events[-1].get("event") == "train":
            return events[:-1], int(events[-1]["from_step"])
        return events, self.position.step


def past_of(folder: Path, world: World = ALONE) -> Past | None:
    """What a run's folder says of its past; None when nothing was saved yet. All processes take the same one.

    Raises CheckpointError when there are checkpoints and none can be gone on from: a fresh start
    would look like a resumed run.
    """
    path = world.agree(lambda: _newest(folder))
    if path is None:
        return None
    checkpoint = Checkpoint.open(path)
    state, run_yaml = checkpoint.trainer_state(), checkpoint.run_yaml
    imported = isinstance(state, dict) and "data" in state and state["data"] is None
    if state is None or (run_yaml is None and not imported):
        raise CheckpointError(
            f"{path} holds no state of a trainer", f"choose another save.folder, and begin with load: {path}"
        )
    try:
        step, samples, tokens = (int(state[key]) for key in ("step", "samples", "tokens"))
        position = Position(step, samples, tokens, int(state.get("skipped", 0)))
        resolved = state["options"] if run_yaml is None else yaml.safe_load(run_yaml)["resolved"]
        past = Past(checkpoint, position, state, resolved)
        past.identity  # noqa: B018 (raises when it is not there)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: its trainer state cannot be read ({error!r})", "upgrade neoxkit, or begin anew with `load`"
        ) from None
    return past


def _newest(folder: Path) -> Path | None:
    if not folder.is_dir() or not list_checkpoints(folder):
        return None
    path = newest(folder)
    if path is None:
        raise CheckpointError(
            f"{folder} has checkpoints, and none is valid", "restore a copy, or choose another save.folder"
        )
    return path


def settle(config: RunConfig, past: Past) -> tuple[RunConfig, list[str]]:
    """The run that goes on from `past`, and a line for each option that changed or has no say any longer.

    Raises ConfigError for an option that a run cannot change.
    """
    if past.imported:
        config, lines = _settle_imported(config, past)
        return config, [*lines, *_load_changed(config, past)]
    if config.precision == "auto":
        config = config.computing_in(past.resolved["precision"])
    changes = list(_load_changed(config, past))
    for key, before, now in _differences(past.resolved, config.model_dump(mode="json")):
        if key.startswith(FIXED):
            raise ConfigError(
                f"{key} is {_shown(now)}, and the run in {past.checkpoint.path} began with {_shown(before)}",
                f"set it back, or choose another save.folder and begin with load: {past.checkpoint.path}",
            )
        if not key.startswith(UNTOLD):
            changes.append(_changed(key, before, now, past.position.step))
    return config, changes


def _load_changed(config: RunConfig, past: Past) -> Iterator[str]:
    """A warning when `load` names what the run did not begin with: a run that has a past does not read it."""
    began = past.resolved.get("load")
    if config.load in (None, began):
        return
    with_what = f"with {began}" if began else "by import" if past.imported else "with random weights"
    yield (
        f"warning: load: {config.load} is not read: the run in {past.checkpoint.path} began {with_what}, and goes on; "
        f"to begin with {config.load}, choose another save.folder"
    )


def _changed(key: str, before: Any, now: Any, step: int) -> str:
    return f"{key} was {_shown(before)} until step {step}, and is {_shown(now)} from here on"


def _shown(value: Any) -> str:
    """A value as YAML has it."""
    if value is None:
        return "null"
    if isinstance(value, list | dict):
        return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf).strip()
    return str(value).lower() if isinstance(value, bool) else str(value)


def _settle_imported(config: RunConfig, past: Past) -> tuple[RunConfig, list[str]]:
    """The same for a run of another program, of which some options are known and none is fixed."""
    dtype = past.checkpoint.dtype(f"{MODEL}embed.weight")
    if config.precision == "auto" and dtype in PRECISIONS:
        config = config.computing_in(PRECISIONS[dtype])
    lines = ["another program began this run, and which data it read is not known"]
    now = config.model_dump(mode="json")
    now["data"]["sequence"] = config.sequence
    for key, before, ours in _differences(past.resolved, now, known=True):
        lines.append(_changed(key, before, ours, past.position.step))
    rate, wanted = rate_of(config, past.position.step - past.position.skipped), past.state.get("lr")
    if isinstance(wanted, float) and abs(rate - wanted) > 1e-6 * wanted:
        lines.append(f"the learning rate of step {past.position.step + 1} is {rate:g}, and was to be {wanted:g}")
    if scale := past.state.get("loss_scale"):
        if config.precision == "fp16":
            config = config.model_copy(update={"loss_scale": config.loss_scale.model_copy(update={"initial": scale})})
        else:
            lines.append(f"the loss scale {scale:g} of fp16 is not used: {config.precision} needs none")
    return config, lines


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any], at: str = "", known: bool = False
) -> Iterator[tuple[str, Any, Any]]:
    """The dotted keys at which two trees differ, with both values; null where one has no such key.

    With `known`, keys that `before` has not are passed over.
    """
    for key in before if known else (*now, *(key for key in before if key not in now)):
        ours, theirs, dotted = before.get(key), now.get(key), f"{at}{key}"
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            yield from _differences(ours, theirs, f"{dotted}.", known)
        elif ours != theirs:
            yield dotted, ours, theirs

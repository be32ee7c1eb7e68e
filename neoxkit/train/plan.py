"""What a run would do, without doing it: `neoxkit train --dry-run`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neoxkit.checkpoint.format import ITEM_BYTES
from neoxkit.config.run import RunConfig
from neoxkit.convert.load import check_model
from neoxkit.families import by_name
from neoxkit.nn.decoder import specs
from neoxkit.parallel.device import choose_device
from neoxkit.spec import volume, whole
from neoxkit.train.loop import decide, open_feed
from neoxkit.train.objectives.lm import NextToken
from neoxkit.train.origin import Origin, choose_tokenizer, origin_of
from neoxkit.train.plain import PlainEngine
from neoxkit.train.saver import alone_in

MASTERS, MOMENTS = 4, 8
"""Bytes of optimiser state a parameter: fp32 masters (with bf16 weights), two fp32 moments."""


def plan(config: RunConfig, given: Mapping[str, Any]) -> dict[str, str]:
    """The plan of a run by what it is about; arguments as for `train`.

    Raises what the run itself would raise before its first step.
    """
    by_name(config.model.family)
    device = choose_device(config.device)
    folder = Path(config.save.folder)
    with alone_in(folder):
        origin = origin_of(config)
        config = decide(config, given, origin, device)
        feed = open_feed(config, origin.past, choose_tokenizer(config, origin))
        check_origin(config, origin)
    past, at = origin.past, origin.at
    parameters = sum(volume(whole(spec.shape)) for spec in specs(config.model).values())
    tokens = config.batch.size * config.sequence
    low = config.precision == "bf16"
    weight = ITEM_BYTES["BF16" if low else "F32"]
    saved = parameters * (weight + MOMENTS + (MASTERS if low else 0))
    left = max(0, config.steps - at.step)
    every = config.save.every or config.steps
    saves = max(0, config.steps // every - at.step // every) + (1 if left and config.steps % every else 0)
    read = (at.samples + left * config.batch.size) * config.sequence
    return {
        "model": f"{config.model.family}, {parameters:,} parameters",
        "computes in": f"{config.precision} on {device.type}",
        "begins": f"from {past.checkpoint.path}" if past else f"with {config.load or 'random weights'}",
        "steps": f"{left:,} of {config.steps:,}, {config.batch.size} samples of {config.sequence} tokens each",
        "tokens": f"{left * tokens:,}; {tokens:,} a step, "
        f"in {config.accumulation} micro-batches of {config.micro} samples",
        "text": f"{feed.identity.tokens:,} tokens in {feed.identity.documents:,} documents, "
        f"{read / feed.identity.tokens:.2f} epochs",
        "held out": f"{feed.held_out.count:,} samples" if feed.held_out else "none",
        "memory at least": f"{(saved + 4 * parameters) / 1e6:,.1f} MB for weights, gradients and optimizer",
        "checkpoints": f"{saves} of {saved / 1e6:,.1f} MB in {folder}",
    }


def check_origin(config: RunConfig, origin: Origin) -> None:
    """Raise what filling an engine would raise, but for damage that shows only in the values. Closes the origin."""
    if origin.source:
        check_model(origin.source)
    if origin.past:
        engine = PlainEngine(config, NextToken(), "meta")
        engine.check_state(origin.past.checkpoint, origin.past.state["optimizer"])
    origin.close()

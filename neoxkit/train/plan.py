"""What a run would do, without doing it: `neoxkit train --dry-run`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neoxkit.config.run import RunConfig
from neoxkit.convert.load import check_model
from neoxkit.families import by_name
from neoxkit.nn.decoder import Decoder, pieces
from neoxkit.parallel.device import choose_device
from neoxkit.train.begin import decide, open_feed
from neoxkit.train.engine import DTYPES
from neoxkit.train.memory import of_run
from neoxkit.train.objectives.lm import NextToken
from neoxkit.train.optim import Learner
from neoxkit.train.origin import Origin, choose_tokenizer, origin_of
from neoxkit.train.plain import PlainEngine
from neoxkit.train.saving.saver import alone_in
from neoxkit.train.schedule import samples_after


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
    tokens = config.batch.size * config.sequence
    model = Decoder(config.model, "meta", DTYPES[config.precision])
    parameters = sum(value.numel() for *_, value in pieces(model))
    state = Learner(model.parameters(), config.optimizer).state()
    saved = sum(value.nbytes for *_, value in pieces(model)) + sum(value.nbytes for *_, value in state)
    left = max(0, config.steps - at.step)
    saves = sum(config.save.wants(step) or step == config.steps for step in range(at.step + 1, config.steps + 1))
    saves += at.step == 0 and config.save.wants(0)
    samples = samples_after(config, left, at.samples)
    needs = max(of_run(config), key=lambda memory: memory.total)
    return {
        "model": f"{config.model.family}, {parameters:,} parameters",
        "computes in": f"{config.precision} on {device.type}",
        "begins": f"from {past.checkpoint.path}" if past else f"with {config.load or 'random weights'}",
        "steps": f"{left:,} of {config.steps:,}, {config.batch.size} samples of {config.sequence} tokens each",
        "tokens": f"{(samples - at.samples) * config.sequence:,}; {tokens:,} a step, "
        f"in {config.accumulation} micro-batches of {config.micro} samples",
        "text": f"{feed.identity.tokens:,} tokens in {feed.identity.documents:,} documents, "
        f"{samples * config.sequence / feed.identity.tokens:.2f} epochs",
        "held out": f"{feed.held_out.count:,} samples" if feed.held_out else "none",
        "memory of a device": f"{needs.total / 1e6:,.1f} MB: weights {needs.weights / 1e6:,.1f}, "
        f"gradients {needs.gradients / 1e6:,.1f}, optimizer {needs.optimizer / 1e6:,.1f}, "
        f"activations {needs.activations / 1e6:,.1f}, loss {needs.loss / 1e6:,.1f}",
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

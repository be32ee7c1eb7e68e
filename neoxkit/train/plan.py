"""What a run would do, without doing it: `neoxkit train --dry-run`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neoxkit.config.run import RunConfig
from neoxkit.convert.load import check_model
from neoxkit.families import by_name
from neoxkit.log import counted, sized
from neoxkit.nn import kernels
from neoxkit.nn.decoder import Decoder, pieces
from neoxkit.parallel.device import choose_device
from neoxkit.train.begin import decide, open_feed
from neoxkit.train.engine import DTYPES
from neoxkit.train.memory import of_run
from neoxkit.train.objectives.lm import NextToken
from neoxkit.train.optim import Learner
from neoxkit.train.origin import Origin, choose_tokenizer, origin_of
from neoxkit.train.plain import PlainEngine
from neoxkit.train.saving.saver import alone_in, run_folder
from neoxkit.train.schedule import samples_by_length


def plan(config: RunConfig, given: Mapping[str, Any]) -> dict[str, str]:
    """The plan of a run by what it is about; arguments as for `train`.

    Raises what the run itself would raise before its first step.
    """
    by_name(config.model.family)
    device = choose_device(config.device)
    folder = run_folder(config.save.folder)
    with alone_in(folder):
        origin = origin_of(config)
        config = decide(config, given, origin, device)
        kernels.begin(config.kernels, config.model, device, DTYPES[config.precision])
        feed = open_feed(config, origin.past, choose_tokenizer(config, origin))
        check_origin(config, origin)
    past, at = origin.past, origin.at
    grows = "up to " if config.batch.warmup or config.data.curriculum else ""
    tokens = f"{grows}{config.batch.size * config.sequence:,} a step"
    model = Decoder(config.model, "meta", DTYPES[config.precision])
    parameters = sum(value.numel() for *_, value in pieces(model))
    state = Learner(model.parameters(), config.optimizer).state()
    saved = sum(value.nbytes for *_, value in pieces(model)) + sum(value.nbytes for *_, value in state)
    left = max(0, config.steps - at.step)
    saves = sum(config.save.wants(step) or step == config.steps for step in range(at.step + 1, config.steps + 1))
    saves += at.step == 0 and config.save.wants(0)
    lengths = samples_by_length(config, left, at.step, at.samples)
    samples = at.samples + sum(lengths.values())
    needs = max(of_run(config), key=lambda memory: memory.total)
    return {
        "model": f"{config.model.family}, {parameters:,} parameters",
        "computes in": f"{config.precision} on {device.type}",
        "begins": f"from {past.checkpoint.path}" if past else f"with {config.load or 'random weights'}",
        "steps": f"{left:,} of {config.steps:,}, {counted(config.batch.size, 'sample')} of "
        f"{counted(config.sequence, 'token')} each",
        "tokens": f"{sum(length * number for length, number in lengths.items()):,}; {tokens}, "
        f"in {counted(config.accumulation, 'micro-batch')} of {counted(config.micro, 'sample')}",
        "text": f"{counted(feed.identity.tokens, 'token')} in {counted(feed.identity.documents, 'document')}, "
        f"{samples * config.sequence / feed.identity.tokens:.2f} epochs",
        "held out": counted(feed.held_out.count, "sample") if feed.held_out else "none",
        "memory of a device": f"{sized(needs.total)}: weights {sized(needs.weights)}, "
        f"gradients {sized(needs.gradients)}, optimizer {sized(needs.optimizer)}, "
        f"activations {sized(needs.activations)}, loss {sized(needs.loss)}",
        "checkpoints": f"{saves} of {sized(saved)} in {folder}",
    }


def check_origin(config: RunConfig, origin: Origin) -> None:
    """Raise what filling an engine would raise, but for damage that shows only in the values. Closes the origin."""
    if origin.source:
        check_model(origin.source)
    if origin.past:
        engine = PlainEngine(config, NextToken(), "meta")
        engine.check_state(origin.past.checkpoint, origin.past.state["optimizer"])
    origin.close()

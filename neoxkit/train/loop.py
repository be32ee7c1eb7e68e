"""The training loop: begin or go on, step, evaluate, save, tell."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from neoxkit.checkpoint.store import Place
from neoxkit.config.run import RunConfig
from neoxkit.errors import ConfigError
from neoxkit.families import by_name
from neoxkit.log import note, silence
from neoxkit.nn.decoder import form_groups, specs
from neoxkit.parallel.device import choose_device
from neoxkit.parallel.groups import Groups
from neoxkit.parallel.world import ALONE, World, join
from neoxkit.spec import Axis, volume, whole
from neoxkit.train.engine import Engine
from neoxkit.train.feed import Feed, check_tokens
from neoxkit.train.interrupt import Interrupt
from neoxkit.train.metrics import Metrics, draw
from neoxkit.train.objectives.lm import NextToken
from neoxkit.train.origin import Chosen, Origin, choose_tokenizer, inherit, origin_of
from neoxkit.train.plain import PlainEngine, TrainingError
from neoxkit.train.precision import choose_precision
from neoxkit.train.resume import Past, Position, check_data, settle
from neoxkit.train.saver import Saver, alone_in, restore, run_folder
from neoxkit.train.schedule import rate_of

STOPPED = 128
"""Added to the number of the signal that stopped a run: the exit code that shells expect."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its newest checkpoint, how far it is, and 128 + the signal that stopped it, or 0."""

    checkpoint: Place
    position: Position
    code: int


def train(config: RunConfig, given: Mapping[str, Any]) -> Outcome:
    """Train, or go on training, until `steps`. `given` are the options as the user wrote them.

    The same configuration and folder go on from the newest valid checkpoint. Raises NeoxkitError for
    anything that cannot be used, before a step is made; TrainingError when the loss is lost.
    """
    by_name(config.model.family)
    if config.threads:
        torch.set_num_threads(config.threads)
    world = join(config.device)
    if not world.first:
        silence()
    device = choose_device(config.device)
    config = config.on(world.size)
    folder = run_folder(config.save.folder)
    with Interrupt() as interrupt, alone_in(folder, world):
        origin = origin_of(config, world)
        past, at = origin.past, origin.at
        config = decide(config, given, origin, device, world)
        if past and at.step >= config.steps:
            note(f"{past.checkpoint.path} is at step {at.step} of {config.steps}: nothing to do")
            return Outcome(past.checkpoint.path, at, 0)
        tokenizer = choose_tokenizer(config, origin)
        groups = form_groups(config.model, config.placed, device)
        feed = open_feed(config, past, tokenizer, groups.mesh.coord()[Axis.DP][0])
        if not tokenizer.contents:
            note("no data.tokenizer is given: the checkpoints will have no tokenizer")
        saver = Saver(config, given, feed.identity, tokenizer.contents, *origin.lineage, world)
        engine = build_engine(config, device, groups)
        begin(engine, config, origin, world)
        describe(config, feed, at, device)
        with Metrics(folder if world.first else None, at.step, config.steps, config.logging.every) as metrics:
            outcome = run(engine, config, feed, saver, metrics, interrupt, at, world)
        if world.first:
            draw(folder)
        return outcome


def build_engine(config: RunConfig, device: torch.device, groups: Groups) -> Engine:
    """The engine that the configuration asks for, its weights uninitialised."""
    if config.runs_on_deepspeed:
        raise ConfigError("ZeRO and pipelines are not built yet", "set zero.stage: 0 and mesh.pp: 1")
    return PlainEngine(config, NextToken(), device, groups, config.mesh.sequence_parallel)


def run(
    engine: Engine,
    config: RunConfig,
    feed: Feed,
    saver: Saver,
    metrics: Metrics,
    interrupt: Interrupt,
    at: Position,
    world: World = ALONE,
) -> Outcome:
    """Step until the end, or until a signal; evaluate and save on the way as the configuration says.

    Whoever asked for a stop waits for the step and the save, not for an evaluation. A signal that
    any process was sent stops all.
    """
    while True:
        begun, lr = time.perf_counter(), rate_of(config, at.step - at.skipped)
        try:
            report = engine.step(feed.batches(at.samples), lr)
        except TrainingError as error:
            raise TrainingError(f"step {at.step + 1}: {error.cause}", error.remedy) from None
        at = at.after(config.batch.size, report.tokens)
        seconds = time.perf_counter() - begun
        metrics.step({"step": at.step, **report._asdict(), "lr": lr, "seconds": round(seconds, 6)})
        last = at.step == config.steps
        stopped = world.highest(interrupt.signal or 0)
        if feed.held_out and (last or (due(at.step, config.evaluation.every) and not stopped)):
            metrics.evaluation({"step": at.step, **evaluate(engine, feed)})
            stopped = world.highest(interrupt.signal or 0)
        if last or stopped or due(at.step, config.save.every):
            path = saver.save(engine, at)
            metrics.tell(f"step {at.step}/{config.steps}  saved {path}")
        if last or stopped:
            return Outcome(path, at, 0 if last else STOPPED + stopped)


def due(step: int, every: int | None) -> bool:
    """Whether something that happens every so many steps happens after this one."""
    return every is not None and step % every == 0


def evaluate(engine: Engine, feed: Feed) -> dict[str, float]:
    """The mean loss on held-out data, and bits per byte where the text's bytes are known."""
    nats, count = engine.evaluate(feed.held_out_batches())
    loss = nats / max(count, 1)
    bits = feed.bits_per_byte(loss)
    return {"valid_loss": loss} | ({"bits_per_byte": bits} if bits is not None else {})


def decide(
    config: RunConfig, given: Mapping[str, Any], origin: Origin, device: torch.device, world: World = ALONE
) -> RunConfig:
    """The configuration with what is inherited or measured filled in: as it was when the run began, when it goes on."""
    config = inherit(config, given, origin)
    if origin.past is None:
        precision = world.agree(lambda: choose_precision(config, device))
        return config.model_copy(update={"precision": precision})
    config, changes = settle(config, origin.past)
    note(f"going on from {origin.past.checkpoint.path}")
    for change in changes:
        note(change)
    return config


def open_feed(config: RunConfig, past: Past | None, tokenizer: Chosen, dp_rank: int = 0) -> Feed:
    """The data of a run, for a data-parallel rank: that which it began with, when it goes on."""
    check_tokens(config, tokenizer.where, tokenizer.fingerprint)
    if past is None:
        return Feed(config, dp_rank=dp_rank)
    left = (config.steps - past.position.step) * config.batch.size
    if past.identity is None:
        note(
            f"going on with sample {past.position.samples} of data.train: in gpt-neox's own order, if tokens, split, "
            f"seed, steps and batch are as they were"
        )
        return Feed(config, None, past.position.samples + left, dp_rank)
    feed = Feed(config, past.identity.epochs, past.position.samples + left, dp_rank)
    check_data(feed.identity, past)
    before, now = past.identity, feed.identity
    feed.identity = replace(now, sources=now.sources or before.sources, tokenizer=now.tokenizer or before.tokenizer)
    return feed


def begin(engine: Engine, config: RunConfig, origin: Origin, world: World = ALONE) -> None:
    """Fill the engine: from the run's past, from `load`, or from the seed."""
    if origin.past:
        restore(engine, origin.past, world.rank)
    elif origin.source:
        engine.load_weights(origin.source)
        note(f"weights of {config.load}")
    else:
        engine.initialise()
    origin.close()


def describe(config: RunConfig, feed: Feed, at: Position, device: torch.device) -> None:
    """Say what is about to be trained."""
    count = sum(volume(whole(spec.shape)) for spec in specs(config.model).values())
    mesh = config.placed
    sizes = [f"{axis.value} {mesh.size(axis)}" for axis in (Axis.TP, Axis.PP, Axis.DP) if mesh.size(axis) > 1]
    where = f" ({', '.join(sizes)})" if sizes else ""
    each = config.batch.size * config.sequence
    note(
        f"{config.model.family}: {count:,} parameters in {config.precision} on {device.type}{where}, "
        f"{torch.get_num_threads()} threads; {config.steps - at.step:,} steps of {each:,} tokens; "
        f"{feed.identity.tokens:,} tokens of text"
    )

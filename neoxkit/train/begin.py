"""What comes before the first step: what is decided, opened and filled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from neoxkit.checkpoint.store import Place
from neoxkit.config.run import RunConfig
from neoxkit.log import counted, note
from neoxkit.nn import kernels
from neoxkit.nn.compiling import check_compiler
from neoxkit.nn.decoder import specs
from neoxkit.parallel.groups import Groups
from neoxkit.parallel.world import ALONE, World
from neoxkit.spec import Axis, volume, whole
from neoxkit.train.engine import DTYPES, Engine
from neoxkit.train.feed import Feed, check_tokens
from neoxkit.train.length import lasting
from neoxkit.train.objectives.lm import NextToken
from neoxkit.train.origin import Chosen, Origin, inherit
from neoxkit.train.plain import PlainEngine
from neoxkit.train.precision import check_precision, choose_precision
from neoxkit.train.resume import Past, Position, settle
from neoxkit.train.saving.saver import restore
from neoxkit.train.schedule import samples_after


def decide(
    config: RunConfig, given: Mapping[str, Any], origin: Origin, device: torch.device, world: World = ALONE
) -> RunConfig:
    """The configuration with what is inherited or measured filled in: as it was when the run began, when it goes on."""
    config = lasting(inherit(config, given, origin))
    if origin.past is None:
        precision = world.agree(lambda: choose_precision(config, device))
        config = config.computing_in(precision)
        check_precision(config, device)
        return config
    config, changes = settle(config, origin.past)
    check_precision(config, device)
    note(f"going on from {origin.past.checkpoint.path}")
    for change in changes:
        note(change)
    return config


def open_feed(config: RunConfig, past: Past | None, tokenizer: Chosen, dp_rank: int = 0) -> Feed:
    """The data of a run, for a data-parallel rank: that which it began with, when it goes on."""
    check_tokens(config, tokenizer.where, tokenizer.fingerprint)
    if past is not None and past.began is None:
        note(
            f"going on with sample {past.position.samples} of data.train: in gpt-neox's own order, if tokens, split, "
            f"seed, steps and batch are as they were"
        )
    return feed_of(config, past, tokenizer.where, dp_rank)


def feed_of(config: RunConfig, past: Past | None, tokenizer: Place | None, dp_rank: int = 0) -> Feed:
    """The same, of a tokenizer that is somewhere, without a look at what it fits."""
    if past is None:
        return Feed(config, dp_rank=dp_rank, tokenizer=tokenizer)
    done = past.position
    needed = samples_after(config, max(0, config.steps - done.step), done.samples)
    return Feed(config, past.began, needed, dp_rank, tokenizer)


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
    sizes = [f"{axis.value} {mesh.size(axis)}" for axis in (Axis.TP, Axis.PP, Axis.CP, Axis.DP) if mesh.size(axis) > 1]
    where = f" ({', '.join(sizes)})" if sizes else ""
    each = config.batch.size * config.sequence
    note(
        f"{config.model.family}: {count:,} parameters in {config.precision} on {device.type}{where}, "
        f"{counted(torch.get_num_threads(), 'thread')}; {counted(config.steps - at.step, 'step')} of {each:,} tokens; "
        f"{feed.identity.tokens:,} tokens of text"
    )


def build_engine(config: RunConfig, device: torch.device, groups: Groups) -> Engine:
    """The engine that the configuration asks for, its weights uninitialised.

    Raises ConfigError when the device cannot compute as `kernels` says.
    """
    kernels.begin(config.kernels, config.model, device, DTYPES[config.precision])
    if config.kernels.compile:
        check_compiler(device)
    if config.runs_on_deepspeed:
        from neoxkit.train.deepspeed.pipeline import DeepSpeedEngine, PipelineEngine

        return (PipelineEngine if config.mesh.pp > 1 else DeepSpeedEngine)(config, NextToken(), device, groups)
    return PlainEngine(config, NextToken(), device, groups, config.mesh.sequence_parallel)

"""The training loop: begin or go on, step, evaluate, save, tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch

from neoxkit.checkpoint.attempt import remove_dead_attempts
from neoxkit.checkpoint.store import Place
from neoxkit.config.run import RunConfig
from neoxkit.families import by_name
from neoxkit.log import counted, note, silence, warn
from neoxkit.nn.decoder import form_groups
from neoxkit.parallel.device import choose_device
from neoxkit.parallel.world import ALONE, World, in_contact, join
from neoxkit.spec import Axis
from neoxkit.train.begin import begin, build_engine, decide, describe, open_feed
from neoxkit.train.benchmarks import Benchmarks
from neoxkit.train.engine import Engine, TrainingError
from neoxkit.train.feed import Feed
from neoxkit.train.interrupt import Interrupt
from neoxkit.train.metrics import Metrics, draw, open_metrics
from neoxkit.train.origin import choose_tokenizer, origin_of
from neoxkit.train.resume import Position, past_of
from neoxkit.train.saving.saver import Saver, alone_in, restore, run_folder
from neoxkit.train.schedule import batch_after, rate_of
from neoxkit.train.spikes import Spikes
from neoxkit.train.watch import Watch, due

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
    patience = timedelta(seconds=config.faults.timeout)
    world = join(config.device, timeout=patience)
    if not world.first:
        silence()
    device = choose_device(config.device)
    config = config.on(world.size)
    folder = run_folder(config.save.folder)
    with in_contact(world), Interrupt() as interrupt, alone_in(folder, world):
        origin = origin_of(config, world)
        past, at = origin.past, origin.at
        config = decide(config, given, origin, device, world)
        if past and at.step >= config.steps:
            note(f"{past.checkpoint.path} is at step {at.step} of {config.steps}: nothing to do")
            if world.first:  # it may have been killed after its last checkpoint
                remove_dead_attempts(folder)
                draw(folder)
            return Outcome(past.checkpoint.path, at, 0)
        tokenizer = choose_tokenizer(config, origin)
        groups = form_groups(config.model, config.placed, device, patience)
        feed = open_feed(config, past, tokenizer, groups.mesh.coord()[Axis.DP][0])
        if not tokenizer.contents:
            note("no data.tokenizer is given: the checkpoints will have no tokenizer")
        saver = Saver(config, given, feed.identity, tokenizer.contents, *origin.lineage, world)
        engine = build_engine(config, device, groups)
        begin(engine, config, origin, world)
        describe(config, feed, at, device)
        with (
            Benchmarks(config, folder, world) as benchmarks,  # which outlasts the saver: the last save is theirs too
            saver,
            Watch(config, engine.model, device, folder, groups) as watch,
            open_metrics(config, folder, at.step, world.first) as metrics,
        ):
            metrics.event("resumed" if past else "begun", at.step)
            outcome = Loop(engine, config, feed, saver, metrics, watch, benchmarks, interrupt, at, world).run()
            metrics.code = outcome.code
        if world.first:
            draw(folder)
        return outcome


@dataclass
class Loop:
    """All that takes part in training, and how far it is."""

    engine: Engine
    config: RunConfig
    feed: Feed
    saver: Saver
    metrics: Metrics
    watch: Watch
    benchmarks: Benchmarks
    interrupt: Interrupt
    at: Position
    world: World = ALONE

    def __post_init__(self) -> None:
        self._spikes = Spikes(self.config.faults)
        self._rewinds = 0

    def run(self) -> Outcome:
        """Step until the end, or until a signal; evaluate and save on the way as the configuration says.

        Whoever asked for a stop waits for the step and the save, not for an evaluation. A signal that
        any process was sent stops all.
        """
        config, metrics = self.config, self.metrics
        if self.at.step == 0 and config.save.wants(0):
            self.saver.save(self.engine, self.at)
        while True:
            if (trouble := self._step()) is not None:
                self._rewind(trouble)
                continue
            step = self.at.step
            last = step == config.steps
            stopped = self.world.highest(self.interrupt.signal or 0)
            if self.feed.held_out and (last or (due(step, config.evaluation.every) and not stopped)):
                metrics.evaluation({"step": step, **evaluate(self.engine, self.feed)})
                stopped = self.world.highest(self.interrupt.signal or 0)
            if last or stopped or config.save.wants(step):
                path = self.saver.save(self.engine, self.at, bool(last or stopped))
            for line in (*self.saver.poll(), *self.benchmarks.poll()):
                metrics.tell(f"step {step}/{config.steps}  {line}")
            if last or stopped:
                self.benchmarks.complete = last
                metrics.event("ended" if last else "stopped", step)
                return Outcome(path, self.at, 0 if last else STOPPED + stopped)

    def _step(self) -> TrainingError | None:
        """Make a step. What went wrong, when that is a reason to go back; raises what is none."""
        at, config = self.at, self.config
        lr = rate_of(config, at.step - at.skipped)
        self.watch.begin(at.step + 1)
        after = batch_after(config, at.samples)
        try:
            report = self.engine.step(self.watch.batches(self.feed.batches(at.samples, at.step)), lr)
        except TrainingError as error:
            self.at = at.after(after, 0)
            if self._rewinds < config.faults.rewinds:
                return TrainingError(f"step {self.at.step}: {error.cause}", error.remedy)
            told = TrainingError(f"step {self.at.step}: {error.cause}{self._in_vain()}", error.remedy)
            self.metrics.event("failed", self.at.step, cause=error.cause)
            raise told from None
        self.at = at.after(after, report.tokens, report.skipped)
        self.metrics.step(self.watch.record(self.at.step, report, lr))
        if report.skipped or (spike := self._spikes.found(report.loss)) is None:
            return None
        if self._rewinds < config.faults.rewinds:
            return TrainingError(f"step {self.at.step}: {spike}")
        self.metrics.tell(f"warning: step {self.at.step}: {spike}{self._in_vain()}")
        return None

    def _in_vain(self) -> str:
        """What is said of trouble that no more rewinds are there for."""
        if not self._rewinds:
            return ""
        return f"; {counted(self._rewinds, 'rewind')} did not help, and faults.rewinds allows no more"

    def _rewind(self, trouble: TrainingError) -> None:
        """Go back to the newest checkpoint, and pass over the samples since then.

        Raises the trouble itself when there is none.
        """
        self.saver.settle()
        past, samples = past_of(self.saver.folder, self.world), self.at.samples
        if past is None:
            raise TrainingError(f"{trouble.cause}, and nothing is saved to go back to", _SAVE)
        restore(self.engine, past, self.world.rank)
        past.checkpoint.close()
        self._rewinds += 1
        self.at = replace(past.position, samples=samples)
        self.metrics.rewind(self.at.step)
        self.metrics.event("rewound", self.at.step, cause=trouble.cause, samples=samples)
        warn(f"{trouble.cause}; back to {past.checkpoint.path}, and on with sample {samples}")


_SAVE = "set save.every, or lower optimizer.lr"


def evaluate(engine: Engine, feed: Feed) -> dict[str, float]:
    """The mean loss on held-out data, and bits per byte where the text's bytes are known."""
    nats, count = engine.evaluate(feed.held_out_batches())
    loss = nats / max(count, 1)
    bits = feed.bits_per_byte(loss)
    return {"valid_loss": loss} | ({"bits_per_byte": bits} if bits is not None else {})

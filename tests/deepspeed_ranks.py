"""Engines over processes: a chain of meshes and ZeRO stages, each of which goes on where the one before it saved.

One process goes the whole way with the plain engine. A rank compares what it has with that, with DeepSpeed's own
gathers, and with what the other ranks have, and names what differs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jobs
import tiny_runs as runs
import torch
import torch.distributed as dist
from divided import Finding, part
from torch import Tensor

from neoxkit.checkpoint.dtypes import name_of
from neoxkit.checkpoint.plan import Holding, deal
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.checkpoint.writer import Writer
from neoxkit.config.run import RunConfig
from neoxkit.data.rows.batch import Batch
from neoxkit.mesh import Mesh
from neoxkit.nn.decoder import form_groups
from neoxkit.parallel.world import World
from neoxkit.spec import Axis, volume
from neoxkit.train.engine import Engine, TrainingError
from neoxkit.train.objectives.lm import NextToken
from neoxkit.train.plain import PlainEngine

ROWS, LENGTH = 8, 8
"""Samples of a step, tokens of each."""

CLOSE = {"fp32": 2e-5, "bf16": 6e-2, "fp16": 1e-2}
"""How near numbers must be, to the largest of their tensor."""


@dataclass(frozen=True)
class Link:
    """One engine of a chain. `changes` replace options of the run."""

    name: str
    mesh: Mesh
    stage: int = 0
    engine: str = "deepspeed"
    changes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Chain:
    """A model, the engines that train it in turn, each for some steps, and what one process has after each.

    With `packed` they are given rows of several documents, each of which that process had in a row of its own.
    """

    name: str
    family: str
    precision: str
    links: tuple[Link, ...]
    steps: int = 2
    options: dict[str, Any] = field(default_factory=dict)
    packed: bool = False
    reports: tuple[tuple[float, float, int], ...] = ()
    states: tuple[dict[str, Tensor], ...] = ()
    judged: tuple[tuple[float, int], ...] = ()

    def config(self, link: Link | None = None) -> RunConfig:
        """The run of a link; of one process when None."""
        mesh = link.mesh if link else Mesh()
        options: dict[str, Any] = {
            "batch": {"size": ROWS, "micro": 1},
            "optimizer": {"lr": 0.01, "eps": 0.01},
            "clip": 0.3,
            "precision": self.precision,
            "init": {"std": 0.1},
            "mesh": {"tp": mesh.tp, "pp": mesh.pp, "cp": mesh.cp, "dp": mesh.dp},
            **self.options,
        }
        if link:
            options |= {"engine": link.engine, "zero": {"stage": link.stage}} | link.changes
        return runs.config(self.family, **options)

    def rows(self, step: int) -> list[Batch]:
        """The micro-batches of a step."""
        return packed_rows(step) if self.packed else rows(step)


def packed_rows(step: int) -> list[Batch]:
    """Rows of several documents, for micro-batches of two rows: one has but one row, one has no documents."""
    seed = 10 * step
    found = [
        runs.packed(2, seed, LENGTH),
        runs.batch(2, seed + 1, LENGTH),
        runs.packed(2, seed + 2, LENGTH, masked=True),
        runs.packed(1, seed + 3, LENGTH),
    ]
    return found[step % 2 * 2 :]


def rows(step: int) -> list[Batch]:
    """The samples of a step, one in each micro-batch; they differ in how many tokens count. Odd steps have half."""
    batch = runs.batch(ROWS, 100 + step, LENGTH, masked=True)
    count = ROWS // (1 + step % 2)
    return [Batch(batch.ids[i : i + 1], batch.labels[i : i + 1], batch.mask[i : i + 1]) for i in range(count)]


def apart(batches: list[Batch]) -> list[Batch]:
    """The same with each document in a row of its own."""
    return [each for batch in batches for each in ([batch] if batch.segments is None else runs.alone(batch))]


def values(engine: Engine) -> dict[str, Tensor]:
    """A copy of the state of one process, by name."""
    return {held.name: held.value.detach().clone() for held in engine.state()}


def prepare(
    name: str, family: str, precision: str, links: Sequence[Link], steps: int = 2, packed: bool = False, **options: Any
) -> Chain:
    """A chain, with what one process has after each link."""
    begun = Chain(name, family, precision, tuple(links), steps, options, packed)
    engine = PlainEngine(begun.config(), NextToken())
    engine.initialise()
    reports, states, judged = [], [], []
    for step in range(steps * len(links)):
        report = engine.step(apart(begun.rows(step)), begun.config().optimizer.lr)
        reports.append((report.loss, report.norm, report.tokens))
        if step % steps == steps - 1:
            states.append(values(engine))
            judged.append(engine.evaluate(apart(begun.rows(10_000))))
    return replace(begun, reports=tuple(reports), states=tuple(states), judged=tuple(judged))


def build(chain: Chain, link: Link) -> Engine:
    """The engine of a link, on the processes that are running."""
    config = chain.config(link)
    config.check()
    groups = form_groups(config.model, link.mesh)
    if link.engine == "plain":
        return PlainEngine(config, NextToken(), groups=groups)
    from deepspeed.accelerator import get_accelerator

    from neoxkit.train.deepspeed.pipeline import DeepSpeedEngine, PipelineEngine

    # DeepSpeed refuses fp16 on a CPU, since it is slow there; the numbers are right.
    get_accelerator().is_fp16_supported = lambda: True
    return (PipelineEngine if link.mesh.pp > 1 else DeepSpeedEngine)(config, NextToken(), "cpu", groups)


def near(what: str, found: Tensor, wanted: Tensor, close: float, scale: float) -> Iterator[str]:
    """A line when two tensors differ by more than `close` of the largest number."""
    if found.shape != wanted.shape:
        yield f"{what} is {list(found.shape)} and not {list(wanted.shape)}"
    elif found.numel():
        error = float((found.float() - wanted.float()).abs().max())
        if not error <= close * scale + 1e-7:
            yield f"{what} is off by {error:.3g}, where the largest number is {scale:.3g}"


def check_steps(chain: Chain, number: int, engine: Any) -> Iterator[str]:
    """Losses, norms and tokens of the steps of a link, and an evaluation."""
    close, mesh = CLOSE[chain.precision], chain.links[number].mesh
    dp = mesh.coord(dist.get_rank())[Axis.DP][0]
    for step in range(chain.steps * number, chain.steps * (number + 1)):
        loss, norm, tokens = chain.reports[step]
        report = engine.step(iter(chain.rows(step)[dp :: mesh.dp]), engine.config.optimizer.lr)
        if not abs(report.loss - loss) <= close * loss:
            yield f"step {step}: the loss is {report.loss:.7f} and not {loss:.7f}"
        if report.skipped != (not math.isfinite(norm)) or (
            not report.skipped and not abs(report.norm - norm) <= close * norm
        ):
            yield f"step {step}: the norm is {report.norm:.7f} and not {norm:.7f}"
        if report.tokens != tokens:
            yield f"step {step}: {report.tokens} tokens and not {tokens}"
    nats, count = engine.evaluate(iter(chain.rows(10_000)[dp :: mesh.dp]))
    if count != chain.judged[number][1] or not abs(nats - chain.judged[number][0]) <= close * nats:
        yield f"the evaluation is {nats}, {count} and not {chain.judged[number]}"
    made = sum(math.isfinite(norm) for _, norm, _ in chain.reports[: chain.steps * (number + 1)])
    if engine.counters()["steps"] != made:
        yield f"{engine.counters()['steps']} steps are counted and not {made}"


def check_state(chain: Chain, number: int, engine: Engine) -> Iterator[str]:
    """What this rank has of weights, masters and moments, against one process; and all ranks together have all."""
    wanted, close = chain.states[number], CLOSE[chain.precision]
    mine = list(engine.state())
    for held in mine:
        whole = wanted[held.name]
        expected = part(whole, held.box)
        if held.run is not None:
            expected = expected.flatten()[slice(*held.run)]
        yield from near(held.name, held.value, expected, close, float(whole.abs().max()))
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, [(held.name, held.box, held.run) for held in mine])
    counts = {name: torch.zeros(value.shape, dtype=torch.int) for name, value in wanted.items()}
    for each in told:
        for name, box, run in each:
            marks = torch.zeros([stop - start for start, stop in box], dtype=torch.int)
            marks.view(-1)[slice(*run) if run else slice(None)] += 1
            part(counts[name], box).add_(marks)
    for name, count in counts.items():
        if not count.all():
            yield f"{name}: {int((count == 0).sum())} elements are on no rank"


def check_gathers(engine: Any) -> Iterator[str]:
    """DeepSpeed's own full gather of each parameter's master and moments, against our fragments of them."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    optimizer = engine.runtime.optimizer
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):  # linked after the first group's step only
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()
    own = {id(fragment.parameter): fragment for fragment in engine.fragments}
    for parameter in engine.model.parameters():
        fragment = own.get(id(parameter))
        for what in ("master", *engine.optimizer.states):
            if what == "master":
                theirs = safe_get_full_fp32_param(parameter)
            else:
                theirs = safe_get_full_optimizer_state(parameter, what)
            if fragment is None:
                continue
            state = fragment.flat if what == "master" else engine.optimizer.base.state[fragment.flat][what]
            if not torch.equal(fragment.of(state), theirs.flatten()[slice(*fragment.run)]):
                yield f"{what} of {parameter.held[0].spec.name}: DeepSpeed's gather has other values"


LOST = "layers.1.mlp.down.weight"


def check_lost(engine: Any, link: Link) -> Iterator[str]:
    """A weight that is no number any more: all ranks say the same, and the step is not made."""
    for fragment in engine.fragments:
        for portion in fragment.portions():
            if portion.spec.name == LOST:
                fragment.of(fragment.flat)[portion.within][0] = float("nan")
    engine.layout.publish()
    dp = link.mesh.coord(dist.get_rank())[Axis.DP][0]
    try:
        engine.step(rows(0)[dp :: link.mesh.dp], 0.01)
        said = "nothing"
    except TrainingError as error:
        said = error.cause
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, said)
    if len(set(told)) > 1 or not said.startswith(f"the loss is nan: the weight of {LOST} is not finite (rank "):
        yield f"of a weight that is no number is said: {told}"


def check_scaled(chain: Chain, link: Link, engine: Any, saved: Checkpoint) -> Iterator[str]:
    """One step more, in which the matrices of the MLPs learn at half the rate, against the plain engine."""
    counters = saved.trainer_state()["optimizer"]
    for group in list(counters["groups"]):
        slow = [name for name in group["names"] if ".mlp." in name]
        group["names"] = [name for name in group["names"] if name not in slow]
        counters["groups"].append({**group, "names": slow, "lr_scale": 0.5})
    plain = PlainEngine(chain.config(), NextToken())
    plain.load_state(saved, counters)
    engine.load_state(saved, counters)
    report = plain.step(chain.rows(0), 0.01)
    dp = link.mesh.coord(dist.get_rank())[Axis.DP][0]
    if (
        abs(engine.step(chain.rows(0)[dp :: link.mesh.dp], 0.01).loss - report.loss)
        > CLOSE[chain.precision] * report.loss
    ):
        yield "at two rates the loss is another"
    wanted = values(plain)
    for held in engine.state():
        whole = wanted[held.name]
        expected = part(whole, held.box).flatten()[slice(*held.run) if held.run else slice(None)]
        what = f"at two rates {held.name}"
        yield from near(what, held.value.flatten(), expected, CLOSE[chain.precision], float(whole.abs().max()))
    if engine.counters() != plain.counters():
        yield "at two rates the counters are others"


def save(chain: Chain, link: Link, engine: Engine, path: Path) -> None:
    """Write a checkpoint as a run does: every rank what it holds."""
    world = World(dist.get_rank(), dist.get_world_size())
    held = list(engine.state())
    mine = [Holding(each.name, name_of(each.value.dtype), each.box, each.run) for each in held]
    told = world.gather((mine, {each.name: each.spec for each in held}))
    known = {name: spec for _, each in told for name, spec in each.items()}
    parts = deal([holdings for holdings, _ in told], known, link.mesh)
    writer = Writer(
        path,
        [each for dealt in parts for each in dealt],
        config=chain.config().model,
        mesh={},
        trainer={"optimizer": engine.counters()},
        rank=world.rank,
        world=world.size,
        attempt="a0b1c2",
    )
    with writer:
        own = {(each.name, each.box, each.run) for each in parts[world.rank]}
        for each in held:
            if (each.name, each.box, each.run) in own and volume(each.box):
                writer.write(each.name, each.box, each.value, each.run)
        writer.commit()


def check_link(chain: Chain, number: int, folder: Path) -> Iterator[str]:
    """Go on from the link before, or begin; step, compare, save."""
    link = chain.links[number]
    engine: Any = build(chain, link)
    path = folder / f"{chain.name}-{number}"
    engine.initialise()
    if number:
        if link.engine == "deepspeed":
            yield from check_lost(engine, link)
        with Checkpoint.open(folder / f"{chain.name}-{number - 1}") as before:
            engine.load_state(before, before.trainer_state()["optimizer"])
    yield from check_steps(chain, number, engine)
    yield from check_state(chain, number, engine)
    if link.engine == "deepspeed" and link.stage:
        yield from check_gathers(engine)
    save(chain, link, engine, path)
    dist.barrier()  # the first names it
    if number == len(chain.links) - 1 and link.engine == "deepspeed":
        with Checkpoint.open(path) as saved:
            yield from check_scaled(chain, link, engine, saved)


def check(folder: Path) -> list[Finding]:
    """One rank: go through every chain; what is found."""
    chains: list[Chain] = torch.load(folder / "chains.pt", weights_only=False)
    return [
        Finding(chain.name, link.name, f"rank {dist.get_rank()}: {what}")
        for chain in chains
        for number, link in enumerate(chain.links)
        for what in check_link(chain, number, folder)
    ]


def run(world: int, chains: Sequence[Chain], folder: Path, seconds: float = 560.0) -> list[Finding]:
    """What so many ranks find in chains."""
    torch.save(list(chains), folder / "chains.pt")
    return [finding for (found,) in jobs.run(world, check, [(folder,)], folder, seconds) for finding in found]

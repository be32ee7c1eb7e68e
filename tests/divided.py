"""Models divided over processes: the cases, what one process computes of them, and what each rank finds.

A rank compares what it has with what one process had, and names what differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import jobs
import tiny_runs as runs
import torch
import torch.distributed as dist
import torch.nn.functional as F
from engines import continued
from torch import Tensor

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.checkpoint.writer import Writer, cut
from neoxkit.config.model import ModelConfig
from neoxkit.config.optimizer import Init
from neoxkit.convert.load import load_decoder
from neoxkit.data.rows.batch import Batch, positions_of
from neoxkit.errors import ConfigError
from neoxkit.mesh import Mesh
from neoxkit.nn import loss
from neoxkit.nn.decoder import Decoder, form_groups, holdings, pieces, specs
from neoxkit.nn.init import drawing, initial, initialise
from neoxkit.nn.loss import cross_entropy
from neoxkit.parallel.collectives import summed
from neoxkit.parallel.gradients import total_norm
from neoxkit.parallel.groups import LOCAL, Groups, form
from neoxkit.spec import Axis, Box, box, volume, whole
from neoxkit.train.objectives.lm import NextToken
from neoxkit.train.plain import PlainEngine

RELATIVE, ABSOLUTE = 5e-6, 2e-7
"""To the largest number of a tensor; sums in another order differ by a few times 6e-8."""

SLICE_ELEMENTS = 150
"""Small enough that the loss takes several slices."""

INIT, SEED = Init(std=0.1), 5

ADAMW: dict[str, Any] = {"lr": 0.01, "eps": 0.01}
MUON: dict[str, Any] = {"kind": "muon", "lr": 0.01, "rest": {"eps": 0.01}}


CONTEXT = {2: {"cp 2": Mesh(cp=2)}, 4: {"cp 4": Mesh(cp=4), "cp 2 x tp 2": Mesh(cp=2, tp=2)}}
"""Meshes that divide the tokens of every sample, by the number of processes."""


def chosen(names: Sequence[str], world: int) -> list[str]:
    """The cases for the meshes of CONTEXT: all on two processes; on more, of each family one."""
    made = [name for name in names if name.startswith(("made-", "segments"))]
    rest = [name for name in names if name not in made]
    return [*made, *(rest if world == 2 else {name.partition("-")[0]: name for name in rest}.values())]


class Finding(NamedTuple):
    """Something that a rank has and one process has otherwise."""

    case: str
    topic: str
    what: str


@dataclass(frozen=True)
class Case:
    """A model, what it is asked, and what one process answers."""

    name: str
    config: ModelConfig
    weights: dict[str, Tensor]
    ids: Tensor
    labels: Tensor
    mask: Tensor
    segments: Tensor | None
    logits: Tensor
    loss: Tensor
    gradients: dict[str, Tensor]
    norm: Tensor
    losses: list[float]
    trained: dict[str, Tensor]
    told: list[int]
    by_muon: dict[str, Tensor]


def part(value: Tensor, here: Box) -> Tensor:
    """A box of a tensor."""
    return value[tuple(slice(*span) for span in here)]


def share(value: Tensor, groups: Groups) -> Tensor:
    """The tokens of [B, T, ...] that context parallelism gives to a place."""
    index, size = groups.mesh.coord()[Axis.CP]
    return value.chunk(size, 1)[index].contiguous()


def fill(model: Decoder, weights: dict[str, Tensor]) -> Decoder:
    """Give a model its boxes of whole weights."""
    for spec, here, value in pieces(model):
        value.copy_(part(weights[spec.name], here))
    return model


def random_weights(config: ModelConfig, seed: int) -> dict[str, Tensor]:
    """Weights of which no bias is zero and no norm one, or a mistake with those would not show."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, spec in specs(config).items():
        drawn = torch.randn(spec.shape, generator=generator)
        weights[name] = 1 + 0.3 * drawn if name.endswith("norm.weight") or ".norm" in name else 0.2 * drawn
    return weights


def prepare(name: str, config: ModelConfig, seed: int, segmented: bool = False) -> Case:
    """A case, with what one process says of it."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, config.vocab, (2, 9), generator=generator)
    ids, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    mask = (torch.rand(ids.shape, generator=generator) < (1 if segmented else 0.8)).float()
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2], [4, 5, 5, 5, 5, 5, 6, 6]], dtype=torch.int32)
    weights = random_weights(config, seed)
    model = fill(Decoder(config), weights)
    hidden = apart(model, ids, segments) if segmented else model.hidden(ids)
    nats, gradients, norm = backward(model, hidden, labels, mask, LOCAL)
    whole_gradients = {spec.name: value for spec, _, value in gradients}
    for tensor, value in whole_gradients.items():
        if tensor.endswith("attn.k.bias") and config.rotated == 0:
            continue  # it adds the same to every score of a query, which softmax does not see
        assert value.abs().max() > 1e-5, f"{name}: the gradient of {tensor} is zero, and would prove nothing"
    logits = model.head(hidden).detach()
    losses, state = train(config, LOCAL, False, weights, Batch(ids, labels, mask.bool()))
    trained = {held.name: held.value.clone() for held in state}
    made = name.startswith("made-")
    state = train(config, LOCAL, False, weights, Batch(ids, labels, mask.bool()), MUON)[1] if made else []
    by_muon = {held.name: held.value.clone() for held in state}
    answers = (logits, nats, whole_gradients, norm, losses, trained, tell(model, ids), by_muon)
    return Case(name, config, weights, ids, labels, mask, segments if segmented else None, *answers)


def apart(model: Decoder, ids: Tensor, segments: Tensor) -> Tensor:
    """The stream of rows whose documents are read one by one."""
    found = []
    for row, each in zip(ids, segments, strict=True):
        sizes = each.unique_consecutive(return_counts=True)[1].tolist()
        found.append(torch.cat([model.hidden(part[None]) for part in row.split(sizes)], dim=1))
    return torch.cat(found)


def tell(model: Decoder, ids: Tensor) -> list[int]:
    """Tokens drawn one by one; each rank has an engine of its own, and all make the same passes."""
    return continued(model, ids[0, :3].tolist(), 6, temperature=0.9, top_k=5, seed=3)


def train(
    config: ModelConfig,
    groups: Groups,
    sequence: bool,
    weights: dict[str, Tensor],
    batch: Batch,
    optimizer: dict[str, Any] = ADAMW,
) -> tuple[list[float], list[Any]]:
    """Losses and norms of two steps of two micro-batches, with clipping, and the state after them."""
    run = runs.config(clip=0.3, optimizer=optimizer).model_copy(update={"model": config})
    engine = PlainEngine(run, NextToken(), groups=groups, sequence_parallel=sequence)
    fill(engine.model, weights)
    said = []
    for _ in range(2):
        report = engine.step([batch, Batch(batch.labels, batch.ids, batch.mask)], lr=0.01)
        said += [report.loss, report.norm]
    return said, list(engine.state())


def gradient_of(parameter: Tensor) -> Tensor:
    """Its gradient; zeros where none arrived, so that the tensor is named that this concerns."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def backward(
    model: Decoder, hidden: Tensor, labels: Tensor, mask: Tensor, groups: Groups
) -> tuple[Tensor, list[tuple[Any, Box, Tensor]], Tensor]:
    """The mean loss, every gradient by piece, and their norm over all processes."""
    counted = None if mask.all() else mask.flatten()
    total, count = cross_entropy(hidden.flatten(0, 1), model.head, labels.flatten(), counted)
    nats = total.detach()
    if groups.alike is not None:
        nats, count = summed(torch.stack((nats, count.float())), groups.alike)
    (total / count).backward(retain_graph=True)
    gradients = []
    if groups.alike is not None:
        for parameter in model.parameters():
            parameter.grad = summed(gradient_of(parameter).contiguous(), groups.alike)
    for parameter in model.parameters():
        gradient = gradient_of(parameter)
        for spec, here, rows in holdings(parameter):
            gradients.append((spec, here, gradient[rows].clone()))
    norm = total_norm(((p, gradient_of(p)) for p in model.parameters()), groups)
    return nats / count, gradients, norm


def differs(what: str, found: Tensor, wanted: Tensor, scale: Tensor | None = None) -> Iterator[str]:
    """A line when two tensors differ; `scale` is what the numbers are small parts of."""
    if found.shape != wanted.shape:
        yield f"{what} is {list(found.shape)} and not {list(wanted.shape)}"
        return
    largest = float((wanted if scale is None else scale).abs().max())
    error = float((found - wanted).detach().abs().max()) if found.numel() else 0.0
    if not error <= RELATIVE * largest + ABSOLUTE:
        yield f"{what} is off by {error:.3g}, where the largest number is {largest:.3g}"


def check_model(case: Case, groups: Groups, sequence: bool) -> Iterator[str]:
    """Logits, loss, every gradient box, their norm; and gradients by way of logits that were gathered."""
    model = fill(Decoder(case.config, groups=groups, sequence_parallel=sequence), case.weights)
    segments = positions = None
    if case.segments is not None:
        segments, positions = (share(x, groups) for x in (case.segments, positions_of(case.segments)))
    hidden = model.hidden(share(case.ids, groups), positions, segments)
    nats, gradients, norm = backward(model, hidden, share(case.labels, groups), share(case.mask, groups), groups)
    logits = model.head(hidden)
    yield from differs("the logits", logits, share(case.logits, groups))
    yield from differs("the loss", nats, case.loss)
    yield from differs("the norm of the gradients", norm, case.norm)
    for spec, here, value in gradients:
        wanted = case.gradients[spec.name]
        yield from differs(f"the gradient of {spec.name} at {here}", value, part(wanted, here), wanted)
    for parameter in model.parameters():
        last = holdings(parameter)[-1]
        if parameter[last.rows.stop :].any():
            yield f"the padding of {last.spec.name} is not zero"
    if case.name.startswith("made-") and groups.mesh.cp == 1:
        yield from check_gathered(case, model, logits)


def check_gathered(case: Case, model: Decoder, logits: Tensor) -> Iterator[str]:
    """A loss over whole logits has the same gradients."""
    model.zero_grad()
    nats = F.cross_entropy(logits.flatten(0, 1), case.labels.flatten(), reduction="none")
    ((nats * case.mask.flatten()).sum() / case.mask.sum()).backward()
    for parameter in model.parameters():
        gradient = gradient_of(parameter)
        for spec, here, rows in holdings(parameter):
            wanted = case.gradients[spec.name]
            what = f"by way of whole logits, the gradient of {spec.name} at {here}"
            yield from differs(what, gradient[rows], part(wanted, here), wanted)


def check_decoding(case: Case, groups: Groups) -> Iterator[str]:
    """Three tokens at once, then one by one, with a state."""
    model = fill(Decoder(case.config, groups=groups), case.weights)
    with torch.inference_mode():
        state = model.new_state(2, 8)
        steps = [model(case.ids[:, :3], torch.arange(3)[None], state=state)]
        steps += [model(case.ids[:, t : t + 1], torch.tensor([[t]]), state=state) for t in range(3, 8)]
    yield from differs("the logits of decoding", torch.cat(steps, 1), case.logits)
    if (told := tell(model, case.ids)) != case.told:
        yield f"{told} is told and not {case.told}"


def check_initial(case: Case, groups: Groups) -> Iterator[str]:
    """The weights of a seed, bit for bit those of the whole tensor."""
    model = Decoder(case.config, groups=groups)
    initialise(model, case.config, INIT, SEED)
    for spec, here, value in pieces(model):
        wanted = initial(spec, SEED, drawing(case.config, INIT))
        if not torch.equal(value, part(wanted, here)):
            yield f"the initial {spec.name} at {here} is another"


class Recorder:
    """A source that remembers which boxes were read."""

    def __init__(self, source: Checkpoint) -> None:
        self.source, self.reads = source, {}  # type: ignore[var-annotated]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def read(self, name: str, want: Box | None = None) -> Tensor:
        self.reads[name] = want
        return self.source.read(name, want)


def check_loading(case: Case, groups: Groups, folder: Path) -> Iterator[str]:
    """The boxes of this place, from checkpoints of several cuts, and no other box read."""
    at = groups.mesh.coord()
    for path in sorted(folder.glob(f"{case.name}-cut*")):
        with Checkpoint.open(path) as checkpoint:
            source = Recorder(checkpoint)
            model = load_decoder(source, groups=groups)
        for spec, here, value in pieces(model):
            if not torch.equal(value, part(case.weights[spec.name], here)):
                yield f"{spec.name} at {here}, loaded from {path.name}, is another"
            if here != box(spec, at):
                yield f"{spec.name} is held at {here} and belongs at {box(spec, at)}"
            if volume(here) and source.reads.pop("model/" + spec.name, None) != here:
                yield f"{spec.name}: another box was read than {here}"
        if source.reads:
            yield f"more was read: {source.reads}"


def save_cuts(case: Case, folder: Path, meshes: Sequence[Mesh]) -> None:
    """Checkpoints of a case, each cut for another mesh."""
    known = {f"model/{name}": spec for name, spec in specs(case.config).items()}
    for number, mesh in enumerate(meshes):
        parts = cut(known, dict.fromkeys(known, "F32"), mesh)
        with Writer(folder / f"{case.name}-cut{number}", parts, config=case.config, mesh={}) as writer:
            for name, spec in known.items():
                writer.write(name, whole(spec.shape), case.weights[spec.name])
            writer.commit()


def check_half(case: Case, groups: Groups, sequence: bool) -> Iterator[str]:
    """In bf16: the loss near to that of fp32, every gradient in bf16 and in the same direction."""
    model = fill(Decoder(case.config, dtype=torch.bfloat16, groups=groups, sequence_parallel=sequence), case.weights)
    hidden = model.hidden(share(case.ids, groups))
    nats, gradients, _ = backward(model, hidden, share(case.labels, groups), share(case.mask, groups), groups)
    if abs(float(nats) - float(case.loss)) > 0.03 * float(case.loss):
        yield f"the loss in bf16 is {float(nats):.4f} and in fp32 {float(case.loss):.4f}"
    for spec, here, value in gradients:
        wanted = part(case.gradients[spec.name], here)
        if value.dtype != torch.bfloat16:
            yield f"the gradient of {spec.name} is {value.dtype}"
        elif wanted.numel() and wanted.norm() > 1e-3 * case.gradients[spec.name].norm():
            alike = float(F.cosine_similarity(value.float().flatten(), wanted.flatten(), dim=0))
            if alike < 0.9:
                yield f"the gradient of {spec.name} at {here} in bf16 points elsewhere: {alike:.3f}"


def check_training(case: Case, groups: Groups, sequence: bool) -> Iterator[str]:
    """Losses, norms, weights and moments after two steps of the plain engine."""
    losses, state = train(case.config, groups, sequence, case.weights, Batch(case.ids, case.labels, case.mask.bool()))
    yield from differs("a loss or a norm in training", torch.tensor(losses), torch.tensor(case.losses))
    for held in state:
        wanted = case.trained[held.name]
        yield from differs(f"after two steps {held.name} at {held.box}", held.value, part(wanted, held.box), wanted)


def check_muon(case: Case, groups: Groups) -> Iterator[str]:
    """Two steps of Muon, which makes whole matrices orthogonal: in bf16, so a step is known to a part of itself."""
    _, state = train(case.config, groups, False, case.weights, Batch(case.ids, case.labels, case.mask.bool()), MUON)
    for held in state:
        wanted, before = part(case.by_muon[held.name], held.box), part(case.weights[held.spec.name], held.box)
        size = (wanted - before if held.name.startswith("model/") else wanted).norm()
        if (error := (held.value - wanted).norm()) > 0.15 * size + 1e-7:
            yield f"after two steps of Muon {held.name} at {held.box} is off by {error:.3g} of {size:.3g}"


def check_groups(world: int) -> Iterator[str]:
    """Each group of a mesh of two axes has the ranks that the mesh says."""
    for mesh in (Mesh(dp=2, tp=world // 2), Mesh(pp=2, tp=world // 2), Mesh(dp=world // 2, cp=2)):
        groups = form(mesh)
        if mesh.pp == 1 and (groups.alike is None or dist.get_world_size(groups.alike) != mesh.dp * mesh.cp):
            yield f"{mesh}: not all that have the same part of the model sum its gradients"
        for axis in Axis:
            ranks = next((r for r in mesh.along([axis]) if dist.get_rank() in r), None)
            group = groups.along.get(axis)
            if axis is Axis.EP or ranks is None or len(ranks) == 1:
                if group is not None:
                    yield f"{mesh}: a group along {axis.value}"
                continue
            assert group is not None
            if tuple(dist.get_process_group_ranks(group)) != ranks:
                yield f"{mesh}: along {axis.value} are {dist.get_process_group_ranks(group)} and not {ranks}"


def check_tokens(case: Case, groups: Groups) -> Iterator[str]:
    """Tokens that the ranks do not divide are refused, and not cut short."""
    model = fill(Decoder(case.config, groups=groups, sequence_parallel=True), case.weights)
    try:
        model(case.ids[:, :5])
    except ConfigError as error:
        if f"cannot divide 5 tokens over tp {groups.mesh.tp}" not in error.cause:
            yield f"5 tokens: {error.cause}"
    else:
        yield "5 tokens were divided"


def everything(cases: Sequence[Case], groups: Groups, folder: Path) -> Iterator[Finding]:
    """All findings of this rank. The loss is taken in slices, as that of a large vocabulary is."""
    with patch.object(loss, "SLICE_ELEMENTS", SLICE_ELEMENTS):
        for case in cases:
            yield from findings(case, groups, folder)


def findings(case: Case, groups: Groups, folder: Path) -> Iterator[Finding]:
    """All findings of this rank in one case."""
    checks: dict[str, Callable[[], Iterator[str]]] = {
        "whole stream": lambda: check_model(case, groups, False),
        "divided stream": lambda: check_model(case, groups, True),
    }
    if case.segments is None and case.name.startswith("made-"):
        checks |= {
            "decoding": lambda: check_decoding(case, groups),
            "initial": lambda: check_initial(case, groups),
            "loading": lambda: check_loading(case, groups, folder),
            "training": lambda: check_training(case, groups, False),
            "training by Muon": lambda: check_muon(case, groups),
            "training, divided stream": lambda: check_training(case, groups, True),
            "bf16": lambda: check_half(case, groups, False),
            "bf16, divided stream": lambda: check_half(case, groups, True),
        }
    for topic, check in checks.items():
        yield from (Finding(case.name, topic, what) for what in check())


def context_findings(case: Case, groups: Groups, mesh: str) -> Iterator[Finding]:
    """All findings of this rank in one case, where samples are divided."""
    made = case.name.startswith("made-")
    for sequence in (False, True) if made and groups.mesh.tp > 1 else (True,):
        yield from (Finding(case.name, mesh, what) for what in check_model(case, groups, sequence))
    if case.segments is None and made:
        yield from (Finding(case.name, mesh, what) for what in check_training(case, groups, True))
        yield from (Finding(case.name, mesh, what) for what in check_half(case, groups, False))


def check(folder: Path) -> list[Finding]:
    """One rank: run every check; what it finds."""
    world = dist.get_world_size()
    cases: list[Case] = torch.load(folder / "cases.pt", weights_only=False)
    groups = form(Mesh(tp=world), units=range(1, world))
    needed = {case.config.mixer.kv_heads for case in cases if case.config.mixer.kv_heads < world}
    made = form_groups(next(case.config for case in cases if case.config.mixer.kv_heads == 1), Mesh(tp=world))
    found: list[Finding] = []
    if set(made.sharing) != {1} or not needed <= set(groups.sharing):
        found.append(Finding("", "groups", f"groups for {set(made.sharing)} units, and not for 1"))
    found.extend(Finding("", "groups", what) for what in check_groups(world))
    found.extend(Finding("", "groups", what) for case in cases[:3] for what in check_tokens(case, groups))
    found.extend(everything(cases, groups, folder))
    for name, mesh in CONTEXT[world].items():
        groups, some = form(mesh, units=range(1, mesh.tp)), chosen([case.name for case in cases], world)
        with patch.object(loss, "SLICE_ELEMENTS", SLICE_ELEMENTS):
            found.extend(f for case in cases if case.name in some for f in context_findings(case, groups, name))
    return found


def run(world: int, folder: Path) -> list[Finding]:
    """What so many ranks find."""
    return [
        finding._replace(what=f"rank {rank}: {finding.what}")
        for rank, (found,) in enumerate(jobs.run(world, check, [(folder,)], folder))
        for finding in found
    ]

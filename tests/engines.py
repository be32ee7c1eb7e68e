"""Engines over small models for tests: what they answer, and what transformers answers."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tiny import SPELLED, TINY, Tiny, save

from neoxkit.convert.load import load_decoder
from neoxkit.convert.open import open_foreign
from neoxkit.mesh import Mesh
from neoxkit.native import ops as native
from neoxkit.nn.decoder import Decoder, form_groups
from neoxkit.nn.packing import pack
from neoxkit.parallel.groups import LOCAL
from neoxkit.parallel.packed import panels
from neoxkit.parallel.world import ALONE, World
from neoxkit.serve.engine import Engine
from neoxkit.serve.pages import Pages
from neoxkit.serve.ranks import Leader, follow
from neoxkit.serve.request import Limits, Request, Scored
from neoxkit.serve.runner import Runner

SIZE = 8
"""Tokens of a page: small, so that texts have several."""

ROOMY = Limits()

NEW = 16
"""Tokens of each answer."""


def engine_of(
    model: Decoder, limits: Limits = ROOMY, pages: int = 128, world: World = ALONE, size: int = SIZE
) -> Engine:
    """An engine over a live model."""
    leader = Leader(Runner(model, pages, size), world)
    return Engine(leader.run, model.config.vocab, model.config.context, limits, Pages(pages, size), leader.beat)


@dataclass
class Answer:
    """All that came of a request."""

    tokens: list[int] = field(default_factory=list)
    scores: list[Scored] = field(default_factory=list)
    prompt: tuple[Scored, ...] = ()
    finish: str | None = None
    stopped_by: int | None = None
    cached: int = 0


def answers(engine: Engine, requests: Iterable[Request]) -> list[Answer]:
    """What an engine answers to requests that come at once."""
    found = {engine.submit(request): Answer() for request in requests}
    while not engine.idle:
        for event in engine.tick():
            answer = found[event.number]
            assert answer.finish is None, "an event after the last"
            if event.token is not None:
                answer.tokens.append(event.token)
            if event.scored is not None:
                answer.scores.append(event.scored)
            answer.prompt += event.prompt
            answer.cached += event.cached
            answer.finish, answer.stopped_by = event.finish, event.stopped_by
    assert all(answer.finish for answer in found.values())
    return list(found.values())


def continued(model: Decoder, prompt: Sequence[int], most: int, **sampling: Any) -> list[int]:
    """The answer to one prompt."""
    from neoxkit.serve.request import Sampling

    request = Request(tuple(prompt), Sampling(**sampling), max_tokens=most)
    return answers(engine_of(model), [request])[0].tokens


def wide(tiny: Tiny) -> Tiny:
    """The same with 8 heads, and 2 key/value heads where it has fewer: tp 4 divides them, and shares keys."""
    spelled = SPELLED.get(tiny.family, {})
    options = {**tiny.options, spelled.get("hidden_size", "hidden_size"): 64}
    options[spelled.get("num_attention_heads", "num_attention_heads")] = 8
    for name in ("num_key_value_heads", "num_kv_heads"):
        if name in options:
            options[name] = min(2, options[name])
    return replace(tiny, options=options)


def one_of_each() -> list[Tiny]:
    """A model of each family; of those with fewer key/value heads, one that has."""
    found: dict[str, Tiny] = {}
    for each in TINY:
        if each.family not in found or each.variant in ("gqa", "grouped", "window"):
            found[each.family] = each
    return list(found.values())


def prompts() -> list[list[int]]:
    """Prompts of many lengths, around those of pages; two begin alike."""
    drawn = random.Random(3)
    found = [[drawn.randrange(3, 97) for _ in range(count)] for count in (1, 5, 17, 33, 40, 24)]
    return [*found, [*found[3][:25], 5, 6]]


@dataclass
class Foreign:
    """What transformers answers with a model: greedy tokens, and log-probabilities of prompt and answer [S, V]."""

    folder: Path
    tokens: list[list[int]]
    logprobs: list[torch.Tensor]


@torch.no_grad()
def foreign(tiny: Tiny, folder: Path) -> Foreign:
    """Let transformers save a model and answer the prompts."""
    model = tiny.model()
    save(model, folder)
    tokens, logprobs = [], []
    for prompt in prompts():
        ids = torch.tensor([prompt])
        whole = model.generate(ids, max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0)
        tokens.append(whole[0, len(prompt) :].tolist())
        logprobs.append(model(whole).logits[0].log_softmax(-1))
    return Foreign(folder, tokens, logprobs)


LIMITS = {
    "alone": (Limits(batch=1), 128),
    "mixed": (Limits(batch=8, step_tokens=16), 128),
    "tight": (Limits(batch=8, step_tokens=64), 9),  # pages for little more than one text: others are put back
    "packed": (Limits(batch=8, step_tokens=64), 128),
}
"""How the same prompts are worked on, and the pages that there are: `packed` by native code, the others by torch."""


def disagreements(
    folder: Path, theirs: Foreign, tp: int = 1, world: World = ALONE, ways: Sequence[str] = tuple(LIMITS)
) -> list[str]:
    """What an engine answers otherwise than transformers, on the first rank; others follow."""
    opened = open_foreign(folder)
    groups = LOCAL if tp == 1 else form_groups(opened.config, Mesh(tp=tp))
    model = load_decoder(opened, torch.float32, groups=groups)
    opened.close()
    found = []
    for name in ways:
        with patch.object(native, "available", lambda packed=name == "packed": packed):
            found += _disagreements(model, theirs, name, world)
    return found


def _disagreements(model: Decoder, theirs: Foreign, name: str, world: World) -> list[str]:
    found = []
    limits, pages = LIMITS[name]
    if name == "packed":
        pack(model, panels)
    runner = Runner(model, pages, SIZE, limits.batch)
    if (runner.step is not None) != (name == "packed" and world.size == 1):
        found.append(f"{name}: there is {'a' if runner.step else 'no'} step")
    if not world.first:
        follow(runner, world)
        return found
    leader = Leader(runner, world)
    engine = Engine(leader.run, model.config.vocab, model.config.context, limits, Pages(pages, SIZE), leader.beat)
    asked = [Request(tuple(each), max_tokens=NEW, logprobs=3, scored_from=1) for each in prompts()]
    plain = [Request(tuple(each), max_tokens=NEW) for each in prompts()]
    for kind, requests in (("scored", asked), ("shared", plain)):
        given = answers(engine, requests)
        for number, answer in enumerate(given):
            found += [f"{name}, {kind}, prompt {number}: {what}" for what in _compare(answer, theirs, number)]
    if engine.statistics().pages_used:
        found.append(f"{name}: pages are still held")
    if not engine.statistics().cached_tokens:
        found.append(f"{name}: nothing was shared")
    if name == "tight" and not engine.statistics().preemptions:
        found.append("nobody was put back")
    leader.end()
    return found


def _compare(answer: Answer, theirs: Foreign, number: int) -> Iterable[str]:
    if answer.tokens != theirs.tokens[number]:
        yield f"{answer.tokens} is {theirs.tokens[number]}"
        return
    known = theirs.logprobs[number]
    for index, scored in enumerate([*answer.prompt, *answer.scores] if answer.scores else []):
        row = known[index]
        best = row.topk(3)
        near = [
            abs(scored.logprob - row[scored.token]),
            *(abs(value - row[token]) for token, value in scored.alternatives),
        ]
        if max(float(each) for each in near) > 1e-4:
            yield f"log-probabilities at {index} differ by {max(near):.2g}"
        if abs(scored.alternatives[0][1] - best.values[0]) > 1e-4:
            yield f"another token is likeliest at {index}"

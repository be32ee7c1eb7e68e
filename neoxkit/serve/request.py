"""What is asked of an engine, and what it answers: values, without torch and without text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Finish = Literal["stop", "length", "cancelled"]
"""Why no more tokens come: one of the stop ids, or as many as were asked for or as the context holds, or `cancel`."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen.

    `temperature` 0 takes the likeliest; `top_k` 0, `top_p` 1 and `min_p` 0 keep every token. `repetition_penalty`
    divides the scores of tokens of prompt and answer that are above zero, and multiplies those below (arXiv
    1909.05858); `presence_penalty` is taken from the score of every token of the answer, `frequency_penalty` once for
    each time that it occurs. `bias` is added to the scores of some ids. `seed` decides what is drawn: the n-th token
    of an answer depends on the seed, n and the logits, and on nothing else.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, and how it is to be continued.

    The answer ends after `max_tokens` tokens, or where the context is full, or with a token of `stop_ids`, which is
    not part of it and is not chosen before `min_tokens` tokens. With `logprobs` each token comes with its
    log-probability and that many likeliest alternatives. With `scored_from` k, so do the tokens of the prompt from
    the k-th on, counted from 0 (the first token of a prompt has none); what lies before k may be shared with other
    requests. With `summed` only the sum of these is told. `max_tokens` may be 0 where only the prompt is scored.
    """

    ids: tuple[int, ...]
    sampling: Sampling = Sampling()
    max_tokens: int = 16
    min_tokens: int = 0
    stop_ids: frozenset[int] = frozenset()
    logprobs: int | None = None
    scored_from: int | None = None
    summed: bool = False


@dataclass(frozen=True, slots=True)
class Scored:
    """A token, the natural logarithm of its probability by the model itself (before temperature, penalties, bias and
    truncation), and the likeliest tokens with theirs, best first."""

    token: int
    logprob: float
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Likelihood:
    """The natural logarithm of the probability of some tokens together, and whether each is the likeliest there."""

    logprob: float = 0.0
    greedy: bool = True

    def __add__(self, other: Likelihood) -> Likelihood:
        return Likelihood(self.logprob + other.logprob, self.greedy and other.greedy)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that became of a request in a tick.

    The last one has `finish`. One that finishes by a stop id has no token, and `stopped_by` is the id. The first one
    has what is known of the prompt: how many of its tokens were `cached`, and `prompt`, if it was to be scored, or the
    `likelihood` of its tokens, if that was to be summed.
    """

    number: int
    token: int | None = None
    scored: Scored | None = None
    finish: Finish | None = None
    stopped_by: int | None = None
    prompt: tuple[Scored, ...] = ()
    cached: int = 0
    likelihood: Likelihood | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine holds at most.

    `batch` requests are worked on at once; `waiting` more may wait. A pass has at most `step_tokens` tokens, so a long
    prompt is read in chunks and holds nobody up. `context` is the longest text, prompt and answer; None is the
    model's own. The key/value cache has room for `cache_tokens` tokens; None is what `batch` texts of the context
    need, or as much as memory allows.
    """

    batch: int = 32
    waiting: int = 256
    step_tokens: int = 512
    context: int | None = None
    cache_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Statistics:
    """What an engine does now, and what it has done since it was made."""

    running: int = 0
    waiting: int = 0
    pages_used: int = 0
    pages: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    preemptions: int = 0

"""What is asked of a service, and the replies as they grow: filled by one thread, taken from by another."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from neoxkit.serve.request import Finish, Request, Scored
from neoxkit.serve.seeds import derived_seed


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt that is to be answered `samples` times, and how text is made of it.

    The first sample has the seed of the request itself, every other one that is derived from it and its number
    (`neoxkit.serve.seeds`): so the first is what is answered to the question with one sample. A text of `stop` ends
    an answer, and is part of it only with `keep_stop`; special tokens are shown with `special`.
    """

    request: Request
    samples: int = 1
    stop: tuple[str, ...] = ()
    keep_stop: bool = False
    special: bool = False

    def requests(self) -> list[Request]:
        """The request of each sample."""
        sampling = self.request.sampling
        return [
            replace(self.request, sampling=replace(sampling, seed=derived_seed(sampling.seed, sample=sample)))
            for sample in range(self.samples)
        ]


@dataclass(frozen=True, slots=True)
class Part:
    """What an answer has grown by: text, `tokens` new tokens and, if they were asked for, their scores.

    The last one has `finish`; `stopped_by` is the id or the text that ended it. `prompt` has the scores of the
    prompt's tokens, when they have just become known.
    """

    text: str = ""
    tokens: int = 0
    scored: tuple[Scored, ...] = ()
    prompt: tuple[Scored, ...] = ()
    finish: Finish | None = None
    stopped_by: int | str | None = None

    def __bool__(self) -> bool:
        return bool(self.text or self.tokens or self.prompt or self.finish is not None)


class Reply:
    """One answer as it grows: the engine's thread adds to it, whoever asked takes from it.

    `tokens` are the new tokens so far, `cached` the tokens of the prompt that need not be computed.
    """

    def __init__(self, question: Question, request: Request) -> None:
        self.question, self.request = question, request
        self.tokens = self.cached = 0
        self.finish: Finish | None = None
        self.began = time.monotonic()
        self.last: float | None = None  # when its newest token came
        self._lock = threading.Lock()
        self._texts: list[str] = []
        self._scored: list[Scored] = []
        self._prompt: tuple[Scored, ...] = ()
        self._stopped_by: int | str | None = None
        self._taken = 0  # of the tokens
        self._told = False  # that it has ended

    def add(self, text: str, scored: Scored | None, tokens: int) -> None:
        """A token, or what was held back of the text."""
        with self._lock:
            self.tokens += tokens
            if text:
                self._texts.append(text)
            if scored is not None:
                self._scored.append(scored)

    def begin(self, prompt: tuple[Scored, ...], cached: int) -> None:
        """What is known of the prompt."""
        with self._lock:
            self.cached, self._prompt = cached, prompt

    def end(self, finish: Finish, stopped_by: int | str | None = None) -> None:
        """Nothing more comes."""
        with self._lock:
            self.finish, self._stopped_by = finish, stopped_by

    def take(self) -> Part:
        """What was added since the last time; a false one when that is nothing."""
        with self._lock:
            finish = None if self._told else self.finish
            found = Part(
                text="".join(self._texts),
                tokens=self.tokens - self._taken,
                scored=tuple(self._scored),
                prompt=self._prompt,
                finish=finish,
                stopped_by=None if finish is None else self._stopped_by,
            )
            self._taken, self._prompt, self._told = self.tokens, (), self.finish is not None
            self._texts.clear()
            self._scored.clear()
            return found


class Asked:
    """Questions that were asked together, and the replies: of the first question all samples, then of the next.

    `accepted` once the engine has taken them up. With an `error` no more comes of any of them. Whoever asked is woken
    when they are accepted and done and, with `pieces`, each time that there is something to take.
    """

    def __init__(self, questions: Sequence[Question], wake: Wake, pieces: bool = True) -> None:
        self.replies = tuple(Reply(each, request) for each in questions for request in each.requests())
        self.accepted = self.cancelled = False
        self.error: BaseException | None = None
        self.wake, self.pieces = wake, pieces

    @property
    def done(self) -> bool:
        """Whether nothing more comes."""
        return self.error is not None or all(reply.finish is not None for reply in self.replies)


Wake = Callable[[Collection[Asked]], None]
"""Called by the engine's thread, once before and once after a tick at most, with everything of one asker that has
changed. It must be quick, and must not raise."""


class Observer(Protocol):
    """Who measures: told by the engine's thread of every answer, in seconds."""

    def first_token(self, waited: float) -> None:
        """The first token came so long after it was asked for."""

    def next_token(self, since: float) -> None:
        """Another token came, so long after the one before."""

    def ended(self, finish: Finish, lasted: float) -> None:
        """An answer ended, so long after it was asked for."""

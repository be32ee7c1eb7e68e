"""Answers that an engine makes of tasks: one as it grows, or many at once, each as it is done."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neoxkit.errors import ConfigError
from neoxkit.serve.prompts import Task
from neoxkit.serve.request import Event, Finish, Scored
from neoxkit.serve.text import TextStream

if TYPE_CHECKING:
    from neoxkit.data.tokenizer import Tokenizer
    from neoxkit.serve.engine import Engine


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a task.

    `text` ends before the stop text or token that ended it, `stopped_by`; `tokens` are all that were made, those of a
    stop text too. `scored` has as many where log-probabilities were asked for.
    """

    task: Task
    text: str
    tokens: tuple[int, ...]
    finish: Finish
    stopped_by: int | str | None = None
    scored: tuple[Scored, ...] = ()

    def fills(self, context: int) -> bool:
        """Whether it ended because no more tokens fit into the context."""
        request = self.task.request
        full = len(request.ids) + len(self.tokens) >= context
        return self.finish == "length" and full and len(self.tokens) < request.max_tokens

    def json(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """Ready for JSON; an object for each answer.

        index           of the prompt, counted from 0; with the prompt's id, if it has one
        sample          of those of the prompt, counted from 0
        prompt          what was asked; or messages, or ids, as they were given; prompt is null with --unconditional
        text            the answer
        finish_reason   "stop": a stop text or token; "length": max_tokens, or the context is full
        stop_reason     the text or the token's id that ended it, else null
        tokens          ids of the answer, with those of a stop text
        prompt_tokens   how many tokens the prompt was
        seed            what the answer was drawn with
        logprobs        with --logprobs K, for each token {"token", "id", "logprob", "top_logprobs"}, where the last
                        has the K likeliest tokens, best first: natural logarithms, by the model itself
        """
        request, prompt = self.task.request, self.task.prompt
        named = {} if prompt.id is None else {"id": prompt.id}
        found = {
            "index": prompt.index,
            **named,
            "sample": self.task.sample,
            **prompt.json(),
            "text": self.text,
            "finish_reason": self.finish,
            "stop_reason": self.stopped_by,
            "tokens": list(self.tokens),
            "prompt_tokens": len(request.ids),
            "seed": request.sampling.seed,
        }
        if request.logprobs is not None:
            found["logprobs"] = [
                {
                    **_scored(scored.token, scored.logprob, tokenizer),
                    "top_logprobs": [_scored(*each, tokenizer) for each in scored.alternatives],
                }
                for scored in self.scored
            ]
        return found


def _scored(token: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    return {"token": tokenizer.decode([token], special=True), "id": token, "logprob": logprob}


class Draft:
    """An answer while it grows."""

    def __init__(self, task: Task, tokenizer: Tokenizer) -> None:
        self.task = task
        self._finish: Finish | None = None
        request = task.request
        self._stream = TextStream(tokenizer, request.ids, task.stop, min_tokens=request.min_tokens)
        self._pieces: list[str] = []
        self._tokens: list[int] = []
        self._scored: list[Scored] = []
        self._stopped_by: int | str | None = None

    def take(self, event: Event) -> str:
        """The text that an event of the engine adds, as far as it is safe to show."""
        piece = ""
        if event.token is not None:
            self._tokens.append(event.token)
            if event.scored is not None:
                self._scored.append(event.scored)
            piece = self._stream.add(event.token)
        if event.finish is not None:
            piece += self._stream.finish()
        stopped = self._stream.stopped
        if stopped is not None:
            self._finish, self._stopped_by = "stop", stopped
        elif event.finish is not None:
            self._finish, self._stopped_by = event.finish, event.stopped_by
        self._pieces.append(piece)
        return piece

    def over(self) -> bool:
        """Whether nothing more is added."""
        return self._finish is not None

    def answer(self) -> Answer:
        """The answer, once it is over."""
        assert self._finish is not None, "the answer is not over"
        return Answer(
            self.task,
            "".join(self._pieces),
            tuple(self._tokens),
            self._finish,
            self._stopped_by,
            tuple(self._scored),
        )


def never() -> bool:
    """Nobody stops it."""
    return False


def grow(engine: Engine, draft: Draft, stop: Callable[[], bool] = never) -> Iterator[str]:
    """The text of an answer, piece by piece, from an engine that does nothing else.

    Ends, with the draft "cancelled", when `stop` says so; whoever takes all pieces leaves the engine idle. Raises
    what `Engine.submit` raises.
    """
    number = _submit(engine, draft.task)
    left = False
    while not left:
        for event in engine.tick():
            if event.number != number:
                continue
            left = event.finish is not None
            if not draft.over() and (piece := draft.take(event)):
                yield piece
        if not left and (draft.over() or stop()):
            engine.cancel(number)


def answers(
    engine: Engine, tasks: Iterable[Task], tokenizer: Tokenizer, stop: Callable[[], bool] = never
) -> Iterator[Answer]:
    """The answers to tasks, each as it is done, until `stop` says so. Tasks begin in their order.

    The engine is given as many as it works on at once and as many again, if so many may wait. Raises what
    `Engine.submit` raises, naming the prompt.
    """
    limits = engine.limits
    waiting = iter(tasks)
    drafts: dict[int, Draft] = {}
    done: deque[Answer] = deque()
    exhausted = False
    while True:
        while not exhausted and len(drafts) < 2 * limits.batch and engine.statistics().waiting < limits.waiting:
            task = next(waiting, None)
            if task is None:
                exhausted = True
            else:
                drafts[_submit(engine, task)] = Draft(task, tokenizer)
        if not drafts or stop():
            return
        for event in engine.tick():
            draft = drafts.get(event.number)
            if draft is None:
                continue
            if not draft.over():
                draft.take(event)
                if draft.over():
                    done.append(draft.answer())
                    if event.finish is None:
                        engine.cancel(event.number)
            if event.finish is not None:
                del drafts[event.number]
        while done:
            yield done.popleft()


def _submit(engine: Engine, task: Task) -> int:
    """The number of a task's request. An error says which prompt it is about."""
    try:
        return engine.submit(task.request)
    except ConfigError as error:
        raise ConfigError(f"{task.prompt.where}{error.cause}", error.remedy) from error


def in_order(found: Iterable[Answer], tasks: Iterable[Task]) -> Iterator[Answer]:
    """Answers in the order of their tasks, each as soon as those before it are there."""
    early: dict[tuple[int, int], Answer] = {}
    wanted = deque((task.prompt.index, task.sample) for task in tasks)
    for answer in found:
        early[answer.task.prompt.index, answer.task.sample] = answer
        while wanted and wanted[0] in early:
            yield early.pop(wanted.popleft())

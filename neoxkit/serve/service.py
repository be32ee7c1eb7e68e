"""The engine in a thread of its own: asked from other threads, answered in text. Pure of HTTP.

That thread alone touches the engine. What is asked lies in a box until the next tick; what comes of it is added to
the answers, from which whoever asked takes what has gathered since the last time. So a reader who is slow, or never
comes, holds nobody up, and costs no more memory than the answer itself.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from neoxkit.errors import NeoxkitError
from neoxkit.serve.asking import Asked, Observer, Question, Reply, Wake
from neoxkit.serve.engine import Full
from neoxkit.serve.request import Event, Finish, Statistics
from neoxkit.serve.text import TextStream

if TYPE_CHECKING:
    from neoxkit.serve.start import Serving

HEARTBEAT = 1.0
"""Seconds between ticks while there is nothing to do: other ranks take a longer silence for a death."""

PATIENCE = 10.0
"""Seconds that the thread may take to end: a pass that has begun is finished."""


class BusyError(NeoxkitError):
    """As much is asked already as may wait. Later there is room again."""


class ClosingError(NeoxkitError):
    """Nothing new is answered: the service is being stopped, or has failed."""


class CutError(NeoxkitError):
    """An answer was not finished, because the service was stopped."""


@dataclass(eq=False, slots=True)
class _Open:
    """An answer that the engine is working on."""

    asked: Asked
    reply: Reply
    text: TextStream


class Service:
    """An engine that answers whoever asks; a context manager, for as long as which its thread runs.

    As many answers are open at once as the engine's limits say: those it works on, and those that may wait.
    `failure` is what the engine has died of; then every open answer has got it as its error, and none is begun.
    """

    def __init__(self, serving: Serving, observer: Observer | None = None) -> None:
        self.serving, self.observer = serving, observer
        self.failure: BaseException | None = None
        self.draining = False
        self._engine = serving.engine
        self.room = self._engine.limits.batch + self._engine.limits.waiting
        self.statistics: Statistics = self._engine.statistics()
        self._condition = threading.Condition()  # of what is shared with other threads: the next four
        self._box: deque[Callable[[], None]] = deque()
        self._asked: dict[Asked, None] = {}
        self._load = 0
        self._ending = False
        self._open: dict[int, _Open] = {}
        self._changed: dict[Wake, dict[Asked, None]] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def __enter__(self) -> Service:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def load(self) -> int:
        """Answers that are open."""
        return self._load

    def ask(self, questions: Sequence[Question], wake: Wake, pieces: bool = True) -> Asked:
        """Ask questions together. `wake` is called as `Asked` says.

        Raises BusyError when there is no room for all of them, ClosingError when the service is being stopped or has
        failed.
        What the engine refuses, a prompt that is too long say, becomes the `error` of what is returned.
        """
        asked = Asked(questions, wake, pieces)
        with self._condition:
            if self.failure is not None:
                raise ClosingError("the engine has failed", "start the server again")
            if self.draining or self._ending:
                raise ClosingError("the server is being stopped", "ask another one, or later")
            if self._load + len(asked.replies) > self.room:
                raise BusyError(f"{self._load} answers are open, of at most {self.room}", "ask again later")
            self._load += len(asked.replies)
            self._asked[asked] = None
            self._put(lambda: self._begin(asked))
        return asked

    def cancel(self, asked: Asked) -> None:
        """Stop working on what was asked; nothing happens to what is done."""
        asked.cancelled = True
        with self._condition:
            if asked in self._asked:
                self._put(lambda: self._end_early(asked, CutError("nobody waits for the answer")))

    def drain(self) -> None:
        """Answer nothing new; what is open goes on."""
        self.draining = True

    def cut(self) -> None:
        """End all that is open, with an error for whoever asked, and answer nothing new."""
        self.drain()
        with self._condition:
            self._put(
                lambda: self._end_all(CutError("the server was stopped before the answer was finished", "ask again"))
            )

    def close(self, grace: float = 0.0) -> bool:
        """Stop: what is open may take so many seconds, then it is cut; whether the thread has ended.

        It may not have when a pass of the engine takes long; nothing waits for it then.
        """
        self.drain()
        until = time.monotonic() + grace
        with self._condition:
            while self._load and (left := until - time.monotonic()) > 0:
                self._condition.wait(left)
        self.cut()
        with self._condition:
            self._ending = True
            self._condition.notify_all()
        if self._thread.is_alive():
            self._thread.join(PATIENCE)
        return not self._thread.is_alive()

    def _put(self, act: Callable[[], None]) -> None:
        """Leave something for the engine's thread to do before its next tick; the condition must be held."""
        self._box.append(act)
        self._condition.notify_all()

    def _run(self) -> None:
        """What the engine's thread does."""
        try:
            while self._work():
                pass
        except BaseException as error:  # noqa: BLE001 (whatever it is, whoever waits must be told)
            with self._condition:
                self.failure = error
            self._end_all(error)

    def _work(self) -> bool:
        """One round: what is in the box, a tick of the engine, what came of it; false when it was the last."""
        with self._condition:
            if not self._box and not self._ending and self._engine.idle:
                self._condition.wait(HEARTBEAT)
            ending = self._ending
        while self._box:
            self._box.popleft()()
        self._wake_all()  # a pass may take long
        if not ending:
            events = self._engine.tick()
            now = time.monotonic()
            for event in events:
                self._deliver(event, now)
            self.statistics = self._engine.statistics()
        self._wake_all()
        return not ending

    def _begin(self, asked: Asked) -> None:
        """Give what was asked to the engine; all of it or nothing."""
        self._touch(asked)
        if asked.cancelled:
            self._end_early(asked, CutError("nobody waits for the answer"))
            return
        try:
            for reply in asked.replies:
                text = self._text(reply)
                self._open[self._engine.submit(reply.request)] = _Open(asked, reply, text)
        except Full as error:
            self._end_early(asked, BusyError(error.cause, "ask again later"))
        except NeoxkitError as error:
            self._end_early(asked, error)
        else:
            asked.accepted = True

    def _text(self, reply: Reply) -> TextStream:
        """What makes text of its tokens."""
        question = reply.question
        return TextStream(
            self.serving.tokenizer,
            before=reply.request.ids,
            stop=question.stop,
            keep_stop=question.keep_stop,
            special=question.special,
            min_tokens=reply.request.min_tokens,
        )

    def _deliver(self, event: Event, now: float) -> None:
        """Add to a reply what became of its request. Events of replies that were ended here are passed over."""
        found = self._open.get(event.number)
        if found is None:
            return
        reply, text = found.reply, found.text
        if found.asked.pieces:
            self._touch(found.asked)
        if event.prompt or event.cached:
            reply.begin(event.prompt, event.cached)
        if event.token is not None:
            reply.add(text.add(event.token), event.scored, 1)
            self._measure(reply, now)
        if event.finish is not None and text.stopped is None:
            reply.add(text.finish(), None, 0)
        stopped = text.stopped
        if stopped is None and event.finish is None:
            return
        if event.finish is None:
            self._engine.cancel(event.number)
        del self._open[event.number]
        if stopped is not None:
            self._end(found.asked, reply, "stop", stopped)
        elif event.finish is not None:
            self._end(found.asked, reply, event.finish, event.stopped_by)

    def _measure(self, reply: Reply, now: float) -> None:
        """A token came."""
        if self.observer is not None:
            if reply.last is None:
                self.observer.first_token(now - reply.began)
            else:
                self.observer.next_token(now - reply.last)
        reply.last = now

    def _end(self, asked: Asked, reply: Reply, finish: Finish, stopped_by: int | str | None = None) -> None:
        """Nothing more comes of a reply."""
        reply.end(finish, stopped_by)
        if asked.done:
            self._touch(asked)
        if self.observer is not None:
            self.observer.ended(finish, time.monotonic() - reply.began)
        with self._condition:
            self._load -= 1
            if asked.done:
                self._asked.pop(asked, None)
            self._condition.notify_all()

    def _end_early(self, asked: Asked, error: BaseException) -> None:
        """End what is open of what was asked, and tell the engine, if it lives."""
        if asked.done:
            return
        asked.error = error
        for number in [number for number, found in self._open.items() if found.asked is asked]:
            del self._open[number]
            if self.failure is None:
                self._engine.cancel(number)
        for reply in asked.replies:
            if reply.finish is None:
                self._end(asked, reply, "cancelled")
        self._touch(asked)

    def _end_all(self, error: BaseException) -> None:
        """End everything that is open."""
        with self._condition:
            everything = list(self._asked)
        for asked in everything:
            self._end_early(asked, error)
        self._wake_all()

    def _touch(self, asked: Asked) -> None:
        """Have whoever asked woken soon."""
        self._changed.setdefault(asked.wake, {})[asked] = None

    def _wake_all(self) -> None:
        changed, self._changed = self._changed, {}
        for wake, asked in changed.items():
            wake(asked.keys())

"""Where an engine is asked for what a benchmark needs: how likely a text is, and how it goes on. Values are ids."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from neoxkit.data.tokenizer import Tokenizer
from neoxkit.serve.engine import Engine
from neoxkit.serve.request import Event, Likelihood, Request
from neoxkit.serve.text import TextStream


@dataclass(frozen=True, slots=True)
class Ask:
    """A request: with `max_tokens` 0 for the likelihood of its tokens from `scored_from` on, else for its answer, which
    ends before a text of `stop`."""

    request: Request
    stop: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[Hashable, ...]:
        """What tells it from any other ask of the same model."""
        request = self.request
        sampling = repr(request.sampling) if request.max_tokens else ""
        return (
            request.ids,
            request.scored_from,
            request.max_tokens,
            tuple(sorted(request.stop_ids)),
            self.stop,
            sampling,
        )


Answer: TypeAlias = Likelihood | str


def likelihood_of(ids: Iterable[int], count: int) -> Ask:
    """The ask for the likelihood of the last `count` of these tokens."""
    row = tuple(ids)
    return Ask(Request(row, max_tokens=0, scored_from=len(row) - count, summed=True))


class Desk:
    """Takes asks, each with a number of the asker's, and gives answers as they are done."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer) -> None:
        self._engine, self._tokenizer = engine, tokenizer
        self._open: dict[int, _Case] = {}

    @property
    def open(self) -> int:
        """Asks that have no answer yet."""
        return len(self._open)

    @property
    def room(self) -> int:
        """How many asks more are of use now: as many wait as are worked on at once, so that none is waited for."""
        limits = self._engine.limits
        return min(2 * limits.batch - self.open, limits.waiting - self._engine.statistics().waiting)

    def take(self, number: int, ask: Ask) -> None:
        """Take an ask. Raises what `Engine.submit` raises."""
        self._open[self._engine.submit(ask.request)] = _Case(number, ask, self._tokenizer)

    def tick(self) -> list[tuple[int, Answer]]:
        """Do one pass of the model; the answers that are done."""
        done = []
        for event in self._engine.tick():
            case = self._open.get(event.number)
            if case is None:
                continue
            if not case.over and (answer := case.add(event)) is not None:
                done.append((case.number, answer))
                if event.finish is None:
                    self._engine.cancel(event.number)
            if event.finish is not None:
                del self._open[event.number]
        return done


class _Case:
    """An ask, and its answer as it grows."""

    def __init__(self, number: int, ask: Ask, tokenizer: Tokenizer) -> None:
        self.number, self.over = number, False
        # Decoded by itself, as the harness does it: not as what goes on from the prompt's text.
        self._text = TextStream(tokenizer, stop=ask.stop) if ask.request.max_tokens else None
        self._pieces: list[str] = []

    def add(self, event: Event) -> Answer | None:
        """Take note of what the engine says; the answer, if it is over with that."""
        if self._text is None:
            self.over = True
            return event.likelihood
        if event.token is not None:
            self._pieces.append(self._text.add(event.token))
        if event.finish is not None:
            self._pieces.append(self._text.finish())
        self.over = event.finish is not None or self._text.stopped is not None
        return "".join(self._pieces) if self.over else None


def answered(
    desk: Desk, asks: Iterable[tuple[int, Ask]], interrupted: Callable[[], bool] = lambda: False
) -> Iterator[tuple[int, Answer]]:
    """The answers to asks with numbers, each as it is done; asks begin in their order.

    Raises KeyboardInterrupt between two passes when it is `interrupted`: in one, other ranks would wait.
    """
    waiting = iter(asks)
    exhausted = False
    while not exhausted or desk.open:
        while not exhausted and desk.room > 0:
            following = next(waiting, None)
            if following is None:
                exhausted = True
            else:
                desk.take(*following)
        if desk.open:
            yield from desk.tick()
        if interrupted():
            raise KeyboardInterrupt


def in_good_order(asks: Sequence[Ask]) -> Iterable[tuple[int, Ask]]:
    """Asks with their numbers, the longest first; those that begin alike come together.

    Those are the asks that share all but what is asked for: the choices of a question.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, ask in enumerate(asks):
        groups.setdefault(_shared(ask), []).append(number)
    for numbers in sorted(groups.values(), key=lambda each: -max(len(asks[number].request.ids) for number in each)):
        yield from ((number, asks[number]) for number in numbers)


def _shared(ask: Ask) -> tuple[int, ...]:
    """What an ask may have in common with others."""
    ids = ask.request.ids
    return ids if ask.request.scored_from is None else ids[: ask.request.scored_from]

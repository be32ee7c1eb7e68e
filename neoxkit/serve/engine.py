"""Continuous batching: requests go in at any time, and each tick advances all that run by one pass of the model.

Pure of HTTP and of text. One thread owns an engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from neoxkit.errors import ConfigError, NeoxkitError
from neoxkit.serve.likelihood import likelihood
from neoxkit.serve.pages import Pages
from neoxkit.serve.request import Event, Finish, Limits, Request, Scored, Statistics
from neoxkit.serve.runner import Pass, pass_of
from neoxkit.serve.sampler import Row, choose, score
from neoxkit.serve.scheduler import Scheduler, Text, Work

Run = Callable[[Pass], Tensor]
"""Takes a pass to every rank and runs it: logits [R, V] of the rows that are wanted."""


class Full(NeoxkitError):  # noqa: N818 (what the engine is, as queue.Full)
    """As many requests wait as may."""


class Engine:
    """Answers requests, as many at once as its limits say."""

    def __init__(
        self, run: Run, vocab: int, context: int, limits: Limits, pages: Pages, beat: Callable[[], None] = lambda: None
    ) -> None:
        """`context` is that of the model: what it was made for. `beat` is called in ticks that have nothing to do."""
        self._run, self.vocab, self.limits, self._beat = run, vocab, limits, beat
        self.context = min(context, limits.context or context, pages.count * pages.size)
        self._pages = pages
        self._scheduler = Scheduler(limits, pages)
        self._texts: dict[int, Text] = {}
        self._cancelled: list[int] = []
        self._numbers = 0
        self._prompt_tokens = self._cached_tokens = self._new_tokens = 0

    @property
    def idle(self) -> bool:
        """Whether a tick would do nothing."""
        return not self._texts and not self._cancelled

    def submit(self, request: Request) -> int:
        """Take a request in; its number.

        Raises Full when too many wait, ConfigError when it cannot be answered: the prompt is empty, as long as the
        context, or has ids that the model has no row for. One that is only scored may be a token longer than the
        context: nothing is computed of its last.
        """
        self._check(request)
        if len(self._scheduler.waiting) >= self.limits.waiting:
            raise Full(f"{self.limits.waiting} requests wait already", "try again later, or let more wait")
        self._numbers += 1
        text = Text(self._numbers, request, list(request.ids))
        self._texts[text.number] = text
        self._scheduler.waiting.append(text)
        return text.number

    def cancel(self, number: int) -> None:
        """Give a request up: its last event follows with the next tick, unless it has ended already."""
        if number in self._texts and number not in self._cancelled:
            self._cancelled.append(number)

    def tick(self) -> list[Event]:
        """Do one pass; what became of requests. Empty when there was nothing to do."""
        events = []
        for number in self._cancelled:
            if (text := self._texts.get(number)) is not None:
                events.append(self._end(text, "cancelled"))
        self._cancelled.clear()
        works = self._scheduler.plan()
        if works:
            events += self._advance(works)
        else:
            self._beat()
        return events

    def statistics(self) -> Statistics:
        """What it does and has done."""
        return Statistics(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            pages_used=self._pages.used,
            pages=self._pages.count,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            new_tokens=self._new_tokens,
            preemptions=self._scheduler.preemptions,
        )

    def _check(self, request: Request) -> None:
        if not request.ids:
            raise ConfigError("the prompt has no tokens", "give some text to continue")
        if max(request.ids) >= self.vocab or min(request.ids) < 0:
            wrong = max(request.ids) if min(request.ids) >= 0 else min(request.ids)
            raise ConfigError(
                f"the prompt has token {wrong}, the model's vocabulary {self.vocab} rows",
                "use the tokenizer that the model was trained with",
            )
        if len(request.ids) + (1 if request.max_tokens else -1) > self.context:
            raise ConfigError(
                f"the prompt is {len(request.ids)} tokens long, the model's context {self.context}",
                "shorten the prompt",
            )

    def _advance(self, works: Sequence[Work]) -> list[Event]:
        """Run a pass; score what is to be scored of prompts, and choose a token for each text that is whole."""
        wanted: list[int] = []
        scored: list[tuple[Text, int, int]] = []  # whose tokens, from which on, how many
        chosen: list[Text] = []
        first = 0
        for text, count in works:
            last = text.computed + count
            begin = max(text.unscored - 1, text.computed)
            if (rows := min(text.prompt - 1, last) - begin) > 0:
                scored.append((text, begin + 1, rows))
                wanted += range(first + begin - text.computed, first + begin - text.computed + rows)
            if last == len(text.ids) and text.request.max_tokens:
                chosen.append(text)
            first += count
        scores = len(wanted)
        first = 0
        for text, count in works:
            first += count
            if text in chosen:
                wanted.append(first - 1)
        logits = self._run(pass_of(works, wanted))
        for work in works:
            self._scheduler.done(work)
        self._score(logits[:scores], scored)
        events = self._choose(logits[scores:], chosen)
        ended = [work.text for work in works if not work.text.left and not work.text.request.max_tokens]
        return events + [self._end(text, "length") for text in ended]

    def _score(self, logits: Tensor, scored: Sequence[tuple[Text, int, int]]) -> None:
        """Keep the scores of prompts' tokens."""
        row = 0
        for text, first, count in scored:
            tokens, rows = text.ids[first : first + count], logits[row : row + count]
            if text.request.summed:
                text.likelihood += likelihood(rows, tokens)
            else:
                text.scores += score(rows, tokens, text.request.logprobs or 0)
            text.scored += count
            row += count

    def _choose(self, logits: Tensor, texts: Sequence[Text]) -> list[Event]:
        """The next token of each text, and what comes of it."""
        if not texts:
            return []
        rows = []
        for text in texts:
            request, index = text.request, text.answer
            banned = request.stop_ids if index < request.min_tokens else frozenset()
            rows.append(Row(request.sampling, index, request.ids, text.ids[text.prompt :], banned, request.logprobs))
        events = []
        for text, (token, scored) in zip(texts, choose(logits, rows), strict=True):
            if token in text.request.stop_ids:
                events.append(self._end(text, "stop", stopped_by=token))
                continue
            text.ids.append(token)
            full = text.answer >= text.request.max_tokens or len(text.ids) >= self.context
            self._new_tokens += 1
            if full:
                events.append(self._end(text, "length", token, scored))
            else:
                events.append(self._event(text, token, scored))
        return events

    def _end(
        self,
        text: Text,
        finish: Finish,
        token: int | None = None,
        scored: Scored | None = None,
        stopped_by: int | None = None,
    ) -> Event:
        event = self._event(text, token, scored, finish, stopped_by)
        self._scheduler.leave(text)
        del self._texts[text.number]
        return event

    def _event(
        self,
        text: Text,
        token: int | None,
        scored: Scored | None,
        finish: Finish | None = None,
        stopped_by: int | None = None,
    ) -> Event:
        """An event; with the first one of a text, what is known of its prompt."""
        prompt: tuple[Scored, ...] = ()
        summed = None
        cached = 0
        if not text.told:
            text.told = True
            prompt, cached = tuple(text.scores), text.cached
            summed = text.likelihood if text.request.summed else None
            self._prompt_tokens += text.prompt
            self._cached_tokens += cached
        return Event(text.number, token, scored, finish, stopped_by, prompt, cached, summed)

"""Who is worked on in a pass: texts that wait, texts that run, and their pages. Without tensors.

Each running text gets its next token in every pass; what room a pass has left is divided among prompts that are
still being read. Texts start in the order in which they came. When pages run out, the youngest is put back and
starts again later: what it said so far is then read like a prompt.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from neoxkit.serve.pages import ROOT, Key, Pages
from neoxkit.serve.request import Likelihood, Limits, Request, Scored


@dataclass(eq=False, slots=True)
class Text:
    """A request that is being answered.

    `ids` are prompt and answer; the keys and values of the first `computed` lie in `pages`, of which the first `kept`
    are known to others, the last of them by `link`.
    """

    number: int
    request: Request
    ids: list[int]
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    kept: int = 0
    link: int = ROOT
    cached: int = 0
    scores: list[Scored] = field(default_factory=list)
    likelihood: Likelihood = field(default_factory=Likelihood)
    scored: int = 0
    begun: bool = False
    told: bool = False

    @property
    def prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.ids)

    @property
    def answer(self) -> int:
        """Tokens of the answer so far."""
        return len(self.ids) - self.prompt

    @property
    def due(self) -> int:
        """Tokens that are to be computed in all: nothing follows the last one of a prompt that is only scored."""
        return len(self.ids) if self.request.max_tokens else max(len(self.ids) - 1, 1)

    @property
    def left(self) -> int:
        """Tokens that are still to be computed."""
        return self.due - self.computed

    @property
    def unscored(self) -> int:
        """The first token of the prompt whose score is wanted and not known; where none is, the prompt's length."""
        first = self.request.scored_from
        return self.prompt if first is None else max(first, 1) + self.scored


class Work(NamedTuple):
    """So many tokens of a text, from the first that was not computed on."""

    text: Text
    tokens: int


class Scheduler:
    """Texts by the order in which they came, and the pages that they lie in."""

    def __init__(self, limits: Limits, pages: Pages) -> None:
        self.limits, self.pages = limits, pages
        self.waiting: deque[Text] = deque()
        self.running: list[Text] = []
        self.preemptions = 0

    def plan(self) -> list[Work]:
        """What the next pass computes; every text of it has the pages that it needs. Empty when there is nothing to do.

        Texts with one token come first, in order of length.
        """
        self._admit()
        works: list[Work] = []
        room = self.limits.step_tokens
        reading = []
        for text in list(self.running):
            if text.left > 1:
                reading.append(text)
            elif text in self.running and self._make_room(text, 1):
                works.append(Work(text, 1))
        works = [work for work in works if work.text in self.running]  # one may have been put back for a later one
        room -= len(works)
        reading.sort(key=lambda text: text.left)
        for index, text in enumerate(reading):
            share = max(room // (len(reading) - index), 0)
            count = min(text.left, share)
            if count and text in self.running and self._make_room(text, count):
                works.append(Work(text, count))
                room -= count
        works = [work for work in works if work.text in self.running]
        return sorted(works, key=lambda work: (work.tokens > 1, len(work.text.ids)))

    def done(self, work: Work) -> None:
        """Take note that a text's tokens were computed: pages that are full now can be shared."""
        text, size = work.text, self.pages.size
        text.computed += work.tokens
        while (text.kept + 1) * size <= text.computed:
            key = self.pages.key(text.link, text.ids, text.kept)
            text.link = self.pages.keep(text.pages[text.kept], key)
            text.kept += 1

    def leave(self, text: Text) -> None:
        """Let go of a text that runs or waits."""
        if text in self.running:
            self.running.remove(text)
            self._give_up(text)
        else:
            self.waiting.remove(text)

    def _admit(self) -> None:
        """Let texts start that wait, in order, while there is room for their prompts.

        One whose next page another text is just computing waits for it, and lets others go first.
        """
        computing = {self._next(text.ids, text.link, text.kept) for text in self.running}
        passed: list[Text] = []
        while self.waiting and len(self.running) < self.limits.batch:
            text = self.waiting.popleft()
            pages, link = self.pages.match(text.ids, self._shareable(text))
            if (following := self._next(text.ids, link, len(pages))) is not None and following in computing:
                passed.append(text)
                continue
            missing = -(-(len(text.ids) + 1) // self.pages.size) - len(pages)
            if missing > self.pages.free - self.pages.unheld(pages) and self.running:
                self.waiting.appendleft(text)
                break
            self.pages.hold(pages)
            text.pages, text.link, text.kept = pages, link, len(pages)
            text.computed = len(pages) * self.pages.size
            if not text.begun:
                text.cached = text.computed
                text.begun = True
            self.running.append(text)
            computing.add(following)
        self.waiting.extendleft(reversed(passed))

    def _shareable(self, text: Text) -> int:
        """How many of its first tokens a text need not compute: the last one is, and those before one to be scored."""
        return min(text.due, text.unscored) - 1

    def _next(self, ids: list[int], link: int, page: int) -> Key | None:
        """What the next page of a text would be known by; None where it will not be full."""
        return self.pages.key(link, ids, page) if (page + 1) * self.pages.size < len(ids) else None

    def _make_room(self, text: Text, count: int) -> bool:
        """Give a text the pages for so many tokens more, from the youngest others if need be; whether it has them."""
        missing = -(-(text.computed + count) // self.pages.size) - len(text.pages)
        while missing > self.pages.free:
            youngest = self.running[-1]
            self.running.pop()
            self._give_up(youngest)
            self.waiting.appendleft(youngest)
            self.preemptions += 1
            if youngest is text:
                return False
        text.pages.extend(self.pages.take(max(missing, 0)))
        return True

    def _give_up(self, text: Text) -> None:
        self.pages.release(text.pages)
        text.pages, text.computed, text.kept, text.link = [], 0, 0, ROOT

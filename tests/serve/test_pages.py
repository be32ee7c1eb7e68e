"""The pages of a cache: nothing is given to two, nothing is lost, and what is shared is what begins alike."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from neoxkit.serve.pages import ROOT, Pages

COUNT, SIZE = 12, 4


class Cache(RuleBasedStateMachine):
    """Texts of two letters come, grow and go; a model remembers what each page was last written with."""

    def __init__(self) -> None:
        super().__init__()
        self.pages = Pages(COUNT, SIZE)
        self.texts: list[tuple[list[int], list[int]]] = []
        self.written: dict[int, tuple[int, ...]] = {}

    @rule(ids=st.lists(st.integers(0, 1), min_size=1, max_size=5 * SIZE))
    def come(self, ids: list[int]) -> None:
        found, link = self.pages.match(ids, len(ids) - 1)
        for number, page in enumerate(found):
            assert self.written[page] == tuple(ids[: (number + 1) * SIZE]), "another text's page"
        wanted = -(-len(ids) // SIZE) - len(found)
        if wanted > self.pages.free - self.pages.unheld(found):
            return
        self.pages.hold(found)
        taken = self.pages.take(wanted)
        held = [*found, *taken]
        for number in range(len(found), len(held)):
            end = (number + 1) * SIZE
            self.written[held[number]] = tuple(ids[:end])
            if end <= len(ids):
                link = self.pages.keep(held[number], self.pages.key(link, ids, number))
        self.texts.append((ids, held))

    @rule(which=st.integers(0, 100))
    def go(self, which: int) -> None:
        if self.texts:
            _, held = self.texts.pop(which % len(self.texts))
            self.pages.release(held)

    @invariant()
    def held_pages_are_intact(self) -> None:
        for ids, held in self.texts:
            for number, page in enumerate(held):
                assert self.written[page] == tuple(ids[: (number + 1) * SIZE])

    @invariant()
    def all_are_counted(self) -> None:
        assert self.pages.used == len({page for _, held in self.texts for page in held})


TestCache = Cache.TestCase
TestCache.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_the_longest_known_beginning() -> None:
    pages = Pages(8, 4)
    ids = list(range(10))
    held = pages.take(3)
    link = ROOT
    for number in range(2):
        link = pages.keep(held[number], pages.key(link, ids, number))
    assert pages.match(ids, 9) == (held[:2], link)
    assert pages.match(ids, 7)[0] == held[:1]
    assert pages.match([0, 1, 2, 3, 9, 9, 9, 9], 8)[0] == held[:1]
    assert pages.match([9, *ids], 9)[0] == []


def test_what_was_left_longest_ago_goes_first() -> None:
    pages = Pages(4, 2)
    first, second = [1, 1, 1, 1], [2, 2, 2, 2]
    for ids in (first, second):
        held = pages.take(2)
        link = ROOT
        for number in range(2):
            link = pages.keep(held[number], pages.key(link, ids, number))
        pages.release(held)
    assert pages.free == 4
    pages.take(1)
    assert len(pages.match(first, 4)[0]) == 1, "the end of the older text goes first"
    pages.take(1)
    assert len(pages.match(first, 4)[0]) == 0
    assert len(pages.match(second, 4)[0]) == 2


def test_two_that_computed_the_same_page() -> None:
    """The page that is known stays; the other is its text's alone, and blank afterwards."""
    pages = Pages(4, 2)
    one, other = pages.take(1), pages.take(1)
    key = pages.key(ROOT, [5, 6], 0)
    assert pages.keep(one[0], key) == pages.keep(other[0], key)
    pages.release(other)
    pages.release(one)
    assert pages.match([5, 6, 7], 2)[0] == one

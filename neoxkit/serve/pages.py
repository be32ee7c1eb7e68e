"""Which pages of the key/value cache hold what: arithmetic without tensors.

A page holds the keys and values of some consecutive tokens of a text. A full page is known by its tokens and by the
page before it, and so by all tokens up to its end: a text that begins alike reads the same pages. What nobody reads
is kept, for whoever comes next, until its room is needed; what was left longest ago goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

ROOT = 0
"""The link before a text's first page."""

Key = tuple[int, tuple[int, ...]]
"""A page: the link of the page before it, and its tokens. It is compared whole, so no two texts are mistaken."""


class Pages:
    """The pages of a cache: `count` of them, each for `size` tokens.

    Pages of a running text are *held*, once for each text that reads them. Links number the pages that are known;
    a link is never used twice.
    """

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size
        self._blank = list(range(count - 1, -1, -1))
        self._holders = [0] * count
        self._known: dict[Key, tuple[int, int]] = {}  # the page, and its link
        self._keys: dict[int, Key] = {}  # the other way round
        self._left: OrderedDict[int, None] = OrderedDict()  # known pages that nobody holds, the oldest first
        self._links = ROOT

    @property
    def free(self) -> int:
        """Pages that can be taken."""
        return len(self._blank) + len(self._left)

    @property
    def used(self) -> int:
        """Pages that texts hold."""
        return self.count - self.free

    def unheld(self, pages: Iterable[int]) -> int:
        """How many of these known pages nobody holds: free, until they are held."""
        return sum(page in self._left for page in pages)

    def key(self, link: int, ids: Sequence[int], page: int) -> Key:
        """What the page-th page of a text with such tokens is known by, if the page before it has this link."""
        return link, tuple(ids[page * self.size : (page + 1) * self.size])

    def match(self, ids: Sequence[int], most: int) -> tuple[list[int], int]:
        """The known pages that a text with these tokens begins with, of at most `most` tokens, and the last's link."""
        found: list[int] = []
        link = ROOT
        for page in range(most // self.size):
            known = self._known.get(self.key(link, ids, page))
            if known is None:
                break
            found.append(known[0])
            link = known[1]
        return found, link

    def hold(self, pages: Iterable[int]) -> None:
        """Let one text more read these pages."""
        for page in pages:
            self._holders[page] += 1
            self._left.pop(page, None)

    def take(self, count: int) -> list[int]:
        """So many pages to write, held once; there must be as many free."""
        assert count <= self.free, "more pages than are free"
        taken = []
        for _ in range(count):
            if self._blank:
                page = self._blank.pop()
            else:
                page, _ = self._left.popitem(last=False)
                del self._known[self._keys.pop(page)]
            self._holders[page] = 1
            taken.append(page)
        return taken

    def keep(self, page: int, key: Key) -> int:
        """Make a full page known; its link. A page that is already known by this key stays the one that is."""
        known = self._known.get(key)
        if known is not None:
            return known[1]
        self._links += 1
        self._known[key] = page, self._links
        self._keys[page] = key
        return self._links

    def release(self, pages: Sequence[int]) -> None:
        """Let one text less read the pages of its run; the last are given up first, for the first are shared most."""
        for page in reversed(pages):
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            if page in self._keys:
                self._left[page] = None
            else:
                self._blank.append(page)

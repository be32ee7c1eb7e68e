"""Which rows a token file makes: the order of each kind of packing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from neoxkit.data.rows import fit
from neoxkit.data.rows.cache import Arrays, Cache
from neoxkit.data.rows.fill_in_middle import EXTRA
from neoxkit.data.rows.order import Order, Pass, seed_of
from neoxkit.data.rows.pack import Packed, Packing, epochs_for, pack
from neoxkit.data.tokens.indexed import IndexedFile
from neoxkit.errors import DataError
from neoxkit.log import counted

Kind = Literal["packed", "whole", "single", "best_fit"]

FITS: dict[str, Callable[..., fit.Grouped]] = {
    "whole": fit.until_full,
    "single": fit.alone,
    "best_fit": fit.best_fit,
}


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """How the sequences first:last of a token file are laid into rows of `context` tokens to predict.

    `epochs` is how many epochs a pass has; one, but for packed rows, whose epochs are shuffled together.
    """

    kind: Kind
    context: int
    seed: int
    first: int
    last: int
    epochs: int = 1
    within_documents: bool = False
    turned: bool = False
    """Whether documents are turned to fill gaps, and so grow."""

    def order(self, file: IndexedFile, cache: Cache | None = None) -> Order:
        """The rows. Raises DataError when there is too little text for one."""
        sizes = np.asarray(file.sizes[self.first : self.last])
        cache = cache or Cache(None)
        key = {
            **self.__dict__,
            "sizes": hashlib.sha256(sizes.tobytes()).hexdigest() if cache.folder else "",
        }
        try:
            if self.kind == "packed":
                return Order(lambda number: self._packed(file, cache, key, number), alike=True)
            return Order(lambda number: self._fitted(sizes, cache, key, number), alike=self.kind != "whole")
        except DataError as error:
            raise DataError(f"{file.bin}: {error.cause}", error.remedy) from None

    def _packed(self, file: IndexedFile, cache: Cache, key: dict[str, Any], number: int) -> Pass:
        """gpt-neox's rows in the first pass, which has as many epochs as the run needs."""
        seed = self.seed if number == 0 else seed_of(self.seed, number)

        def make() -> Arrays:
            documents = np.arange(self.first, self.last, dtype=np.int32)
            found = pack(file.sizes, documents, self.context, seed=seed, epochs=self.epochs)
            return {"order": found.order, "bounds": found.bounds, "shuffle": found.shuffle}

        found = cache.arrays({**key, "algorithm": "packed 1", "pass": number}, make)
        return Packed(Packing(found["order"], found["bounds"], found["shuffle"], self.epochs), np.asarray(file.sizes))

    def _fitted(self, sizes: fit.Integers, cache: Cache, key: dict[str, Any], number: int) -> Pass:
        extra = EXTRA if self.turned else 0
        capacity = self.context + 1
        if capacity - extra < 2:
            raise DataError(
                f"rows of {self.context} tokens have no room for the {extra} that fill_in_middle puts into a document",
                "raise data.sequence",
            )

        def make() -> Arrays:
            # A document of one token has nothing to foretell, where it does not foretell that of the next.
            shortest = 2 if self.kind == "single" or self.within_documents else 1
            pieces = fit.pieces_of(sizes, self.first, capacity - extra, shortest)
            if not len(pieces.size):
                raise DataError(f"nothing to predict in {counted(len(sizes), 'document')}", "give more text")
            grouped = FITS[self.kind](pieces, capacity, extra, np.random.RandomState(seed_of(self.seed, number)))
            return {
                "sequence": pieces.sequence,
                "start": pieces.start,
                "size": pieces.size,
                "members": grouped.members,
                "begins": grouped.begins,
            }

        found = cache.arrays({**key, "algorithm": f"{self.kind} 1", "pass": number}, make)
        pieces = fit.Pieces(found["sequence"], found["start"], found["size"])
        return fit.Grouped(pieces, found["members"], found["begins"])


def epochs_of(kind: Kind, file: IndexedFile, first: int, last: int, context: int, rows: int) -> int:
    """The epochs that a pass has in a run of so many rows."""
    tokens = int(file.sizes[first:last].sum(dtype=np.int64))
    return epochs_for(tokens, context, rows) if kind == "packed" and tokens else 1

"""Which data a run learns from, in which order: what a checkpoint says of it, and whether a run may go on with it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import PurePath
from typing import Any

import numpy as np

from neoxkit.data.rows.blend import Phase
from neoxkit.data.tokens.indexed import IndexedFile
from neoxkit.data.tokens.sidecar import Sidecar
from neoxkit.errors import ConfigError


@dataclass(frozen=True)
class Known:
    """One source: what decides the order of its rows.

    `epochs` is how many epochs a pass over it has; they are shuffled together. `prefix` is where it was. `text` is the
    sidecar's hash of the text and `tokenizer` the fingerprint of what made the tokens; None, both: not known.
    """

    tokens: int
    documents: int
    sizes: str  # CRC-32 of the documents' lengths
    epochs: int
    text: str | None = None
    tokenizer: str | None = None
    content: str | None = None  # CRC-32 of some of the tokens; None where it was not taken yet
    labels: str | None = None  # the same of labels; None without
    prefix: str = ""

    @classmethod
    def of(
        cls,
        prefix: str,
        file: IndexedFile,
        stretch: tuple[int, int],
        sidecar: Sidecar | None,
        labels: IndexedFile | None = None,
    ) -> Known:
        """The documents of a stretch of a file, of one epoch."""
        sizes = np.ascontiguousarray(file.sizes[slice(*stretch)])
        return cls(
            tokens=int(sizes.sum(dtype=np.int64)),
            documents=len(sizes),
            sizes=f"{zlib.crc32(sizes.tobytes()):08x}",
            epochs=1,
            text=sidecar.sources or None if sidecar else None,
            tokenizer=sidecar.tokenizer if sidecar else None,
            content=_sampled(file, stretch),
            labels=None if labels is None else _sampled(labels, stretch),
            prefix=prefix,
        )

    def differences(self, now: Known) -> Iterator[tuple[str, Any, Any]]:
        """What differs, with both values; of one not known is what the other has. `epochs` and `prefix` may differ."""
        for name, before in asdict(self).items():
            other = getattr(now, name)
            unknown = name in ("text", "tokenizer", "content", "labels") and None in (before, other)
            if before != other and not unknown and name not in ("epochs", "prefix"):
                yield name, before, other

    def or_known(self, before: Known) -> Known:
        """This one with the epochs it had before, and with what was known of it then."""
        text, tokenizer = self.text or before.text, self.tokenizer or before.tokenizer
        return replace(self, epochs=before.epochs, text=text, tokenizer=tokenizer)

    @property
    def name(self) -> str:
        """Its prefix without the folder."""
        return PurePath(self.prefix).name


def _sampled(file: IndexedFile, stretch: tuple[int, int]) -> str:
    """CRC-32 of some sequences of a stretch, spread evenly, of 4096 tokens each at most: all of a small one."""
    first, last = stretch
    found = 0
    for number in np.unique(np.linspace(first, max(first, last - 1), 256).astype(np.int64)).tolist():
        if number < last:
            found = zlib.crc32(file.read(number, 0, min(4096, int(file.sizes[number]))).tobytes(), found)
    return f"{found:08x}"


_TOLD = {
    "text": "the hash of its text",
    "tokenizer": "its tokenizer",
    "content": "the checksum of its tokens",
    "labels": "the checksum of its labels",
}


@dataclass(frozen=True)
class Began:
    """What a run learned from before it goes on: the data, how many samples of it, and the checkpoint that says so."""

    identity: Identity
    samples: int
    where: str


@dataclass(frozen=True)
class Identity:
    """What decides the order of the data. A run goes on only with the sources it began with, and may get more.

    `phases` have a weight for each of `sources`; one that is no longer read has 0.
    """

    sequence: int
    seed: int
    sources: tuple[Known, ...]
    packing: str = "packed"
    phases: tuple[Phase, ...] = (Phase(0, (1.0,)),)

    @property
    def tokens(self) -> int:
        """Tokens of all sources that are read."""
        return sum(known.tokens for known in self._read())

    @property
    def documents(self) -> int:
        """Documents of all sources that are read."""
        return sum(known.documents for known in self._read())

    def _read(self) -> Sequence[Known]:
        return [known for known, weight in zip(self.sources, self.phases[-1].weights, strict=True) if weight]

    def saved(self) -> dict[str, Any]:
        """What a checkpoint keeps of it: `read` gives it back, but for the folders that the data was in."""
        return asdict(replace(self, sources=tuple(replace(known, prefix=known.name) for known in self.sources)))

    @classmethod
    def read(cls, saved: Mapping[str, Any]) -> Identity:
        """What a checkpoint has. Raises KeyError or TypeError when it cannot be understood."""
        if "sizes" in saved:  # of a single source, as before there were several
            told = {name: saved[name] for name in ("tokens", "documents", "sizes", "epochs")}
            known = Known(**told, text=saved.get("sources"), tokenizer=saved.get("tokenizer"))
            return cls(saved["sequence"], saved["seed"], (known,))
        phases = (Phase(each["start"], tuple(each["weights"]), each["algorithm"]) for each in saved["phases"])
        sources = tuple(Known(**each) for each in saved["sources"])
        return cls(saved["sequence"], saved["seed"], sources, saved["packing"], tuple(phases))

    def after(self, began: Began) -> Identity:
        """This one, as it goes on from another: each source where it was.

        Sources that are new come after those there were, and those that are gone keep their place with no weight. Where
        weights changed, a phase begins.

        Raises ConfigError when it is other data, or in another order.
        """
        before, done = began.identity, began.samples
        places = self._places(before)
        if (found := self._conflict(before, places)) is not None:
            what, was, now = found
            raise ConfigError(
                f"{what} is {now}, and the run in {began.where} began with {was}",
                "give it the data it began with, or begin a new run with `load`",
            )
        sources = list(before.sources)
        weights = [0.0] * (len(before.sources) + places.count(None))
        for known, weight, place in zip(self.sources, self.phases[-1].weights, places, strict=True):
            if place is None:
                place = len(sources)
                sources.append(known)
            else:
                sources[place] = known.or_known(sources[place])
            weights[place] = weight
        padded = [replace(p, weights=_padded(p.weights, len(sources))) for p in before.phases]
        now = Phase(done, tuple(weights), self.phases[-1].algorithm)
        if not _alike(padded[-1], now):
            padded = [*(phase for phase in padded if phase.start < done), now]
            padded[0] = replace(padded[0], start=0)
        return replace(self, sources=tuple(sources), phases=tuple(padded))

    def _conflict(self, before: Identity, places: list[int | None]) -> tuple[str, Any, Any] | None:
        """What a run may not change, as it was and as it is."""
        for name in ("sequence", "seed", "packing"):
            if (was := getattr(before, name)) != (now := getattr(self, name)):
                return name if name == "seed" else f"data.{name}", was, now
        gone = [known for at, known in enumerate(before.sources) if at not in places]
        for known, place in zip(self.sources, places, strict=True):
            of_old = [each for each in gone if each.name == known.name or len(gone) == len(before.sources)]
            for name, was, now in of_old[0].differences(known) if place is None and of_old else ():
                return f"data.train: {_TOLD.get(name, f'the number or order of its {name}')}", was, now
        return None

    def _places(self, before: Identity) -> list[int | None]:
        """Where each source stood before; None for a new one.

        A file that is where it was is the one that it was, for without a sidecar others may look alike.
        """
        places: list[int | None] = [None] * len(self.sources)
        for moved in (False, True):
            for number, known in enumerate(self.sources):
                free = (
                    at
                    for at, each in enumerate(before.sources)
                    if at not in places and (moved or each.name == known.name) and not any(each.differences(known))
                )
                if places[number] is None:
                    places[number] = next(free, None)
        return places


def _padded(weights: tuple[float, ...], count: int) -> tuple[float, ...]:
    return (*weights, *[0.0] * (count - len(weights)))


def _alike(before: Phase, now: Phase) -> bool:
    """Whether two phases choose alike: of one source alone there is no choice."""
    ours, theirs = (np.asarray(phase.weights) / sum(phase.weights) for phase in (before, now))
    same = bool(np.allclose(ours, theirs, rtol=1e-12, atol=0))
    return same and (before.algorithm == now.algorithm or np.count_nonzero(ours) == 1)

"""What cannot be used: counted, listed if wanted, and told in a line for each kind."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from neoxkit import log
from neoxkit.data.text.documents import NO_KEY, TOO_LONG, Reject
from neoxkit.errors import DataError


def remedy(kinds: Collection[str]) -> str:
    """What to do where no document can be used, for faults of these kinds."""
    if any(kind.startswith(NO_KEY) for kind in kinds):
        return "name with --key where a row has its text"
    if TOO_LONG in kinds:
        return "raise --max-document"
    return "give text that is UTF-8 and not empty"


class Skipped:
    """Counts the rows that cannot be used, remembers the first of each kind, and may list them all."""

    def __init__(self, strict: bool = False, listing: Path | None = None) -> None:
        self._strict = strict
        self._file = listing.open("x", encoding="utf-8", errors="surrogateescape") if listing else None
        self.counts: dict[str, int] = {}
        self.first: dict[str, Reject] = {}

    def add(self, reject: Reject) -> None:
        """Count one. Raises DataError when strict."""
        if self._strict:
            raise DataError(str(reject), "mend it, or leave --strict out to skip it")
        self.counts[reject.kind] = self.counts.get(reject.kind, 0) + 1
        self.first.setdefault(reject.kind, reject)
        if self._file:
            self._file.write(f"{reject}\n")

    def close(self) -> None:
        """Finish the list."""
        if self._file:
            self._file.close()

    def report(self, noun: str = "row") -> None:
        """Warn, one line for each kind of fault."""
        for kind, reject in self.first.items():
            log.warn(f"skipped {log.counted(self.counts[kind], noun)} ({kind}), the first at {reject.where}")

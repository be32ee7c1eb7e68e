"""What a request writes, as far as it is: counts that a journal keeps, and the files that they count."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from neoxkit import __version__, log
from neoxkit.data.prepare.encode import Encoded
from neoxkit.data.prepare.journal import TRAINED, Journal
from neoxkit.data.prepare.request import Part, Request, listed
from neoxkit.data.prepare.skipped import remedy
from neoxkit.data.text.documents import Reject
from neoxkit.data.text.pieces import Block, Position
from neoxkit.data.text.sources import Source
from neoxkit.data.tokenizer import Tokenizer
from neoxkit.data.tokens.index import pieces, write_index
from neoxkit.data.tokens.indexed import dtype_for
from neoxkit.data.tokens.sidecar import Sidecar, write_sidecar
from neoxkit.errors import DataError

_REJECTS = "rejects.txt"
_KINDS = ("bin", "sizes", "files")


def behind(sources: Sequence[Source], at: Position) -> str:
    """A hash of the sources that were read, in whole or in part, when reading is there."""
    return listed(sources[: at.source + (at.offset > 0)])


class Results:
    """The files of a request in its journal, and their counts: of an interrupted one, as it left them.

    `at` is where reading goes on, `rows` the usable rows so far, `read` the bytes of files read for them.
    """

    def __init__(self, request: Request, journal: Journal, sources: Sequence[Source]) -> None:
        self._request, self._journal, self._sources = request, journal, sources
        self.parts = request.parts()
        self.at, self.rows, self.read = Position(), 0, 0
        self.skipped: dict[str, int] = {}
        self._first: dict[str, str] = {}
        self._whole = True
        if state := journal.state:
            self.at = Position(**state["at"])
            self.rows, self.read = state["rows"], state["read"]
            self.skipped, self._first = state["skipped"], state["first"]
            for part, counts in zip(self.parts, state["parts"], strict=True):
                part.restore(counts)
            log.note(f"{journal.folder} has {log.counted(self.rows, 'document')} of an interrupted command: going on")

    def open(self, vocab: int) -> None:
        """Make ready to append tokens of a vocabulary."""
        self.dtype = dtype_for(vocab)
        self._files = [
            {kind: self._journal.append(f"{number}.{kind}") for kind in _KINDS} for number in range(len(self.parts))
        ]
        self._rejects = self._journal.append(_REJECTS)

    def append(self, block: Block, done: Encoded) -> None:
        """Write what a block gave. Raises DataError for the first reject when the request is strict."""
        self._whole = False
        for reject in done.rejects:
            self._reject(reject)
        for part, files, output in zip(self.parts, self._files, done.outputs, strict=True):
            part.count(output, self.dtype.itemsize)
            files["bin"].write(output.tokens)
            files["sizes"].write(np.asarray(output.sizes, "<i4").tobytes())
            files["files"].write(b"".join(os.fsencode(_absolute(name)) + b"\n" for name in output.files))
        self.rows += done.rows
        self.at, self.read = block.end, self.read + block.read
        self._whole = True

    def _reject(self, reject: Reject) -> None:
        if self._request.strict:
            raise DataError(str(reject), "mend it, or leave --strict out to skip it")
        self.skipped[reject.kind] = self.skipped.get(reject.kind, 0) + 1
        self._first.setdefault(reject.kind, reject.where)
        self._rejects.write(f"{reject}\n".encode(errors="surrogateescape"))

    def save(self) -> None:
        """Let the journal count on all that was appended. Interrupted within a block, it stays as it was."""
        if self._whole:
            self._journal.save(self.state())

    def state(self) -> dict[str, Any]:
        """What the journal keeps."""
        return {
            "at": asdict(self.at),
            "behind": None if self._request.vocab else behind(self._sources, self.at),
            "rows": self.rows,
            "read": self.read,
            "parts": [part.state() for part in self.parts],
            "skipped": self.skipped,
            "first": self._first,
        }

    def write(self, tokenizer: Tokenizer, eod: int) -> None:
        """Write the indexes and the sidecars. Raises DataError when a part has no documents."""
        self.save()
        for number, part in enumerate(self.parts):
            if not part.documents:
                raise self._nothing(part)
            sizes = self._journal.path(f"{number}.sizes")
            index = self._journal.path(f"{number}.idx")
            index.unlink(missing_ok=True)
            with index.open("xb") as file:
                write_index(file, self.dtype, pieces(np.memmap(sizes, dtype="<i4", mode="r")))
            write_sidecar(self._journal.path(f"{number}.json"), self._sidecar(part, tokenizer, eod))

    def _nothing(self, part: Part) -> DataError:
        what = {"all": "no document can be used", "train": "every group is held out", "heldout": "no group is held out"}
        return DataError(
            f"{self._request.prefix}: {what[part.name]} (skipped: {sum(self.skipped.values())})"
            + "".join(f"; {kind}: {where}" for kind, where in list(self._first.items())[:3]),
            remedy(self.skipped) if part.name == "all" else "give another --holdout, or more groups",
        )

    def _sidecar(self, part: Part, tokenizer: Tokenizer, eod: int) -> Sidecar:
        request = self._request
        return Sidecar(
            tokenizer=tokenizer.fingerprint,
            vocab=tokenizer.vocab,
            eod=eod,
            documents=part.documents,
            tokens=part.tokens,
            bytes=part.bytes,
            part=part.name,
            holdout=request.holdout,
            sources=f"sha256:{part.chain.hexdigest()}",
            skipped=self.skipped,
            writer=f"neoxkit {__version__}",
            options={
                "inputs": [*map(str, request.inputs), *map(str, request.datasets)],
                "key": part.key,
                "append_eod": request.append_eod,
                "prepend_bos": request.prepend_bos,
                "ftfy": request.ftfy,
                "max_documents": request.max_documents,
            },
        )

    def moves(self) -> Mapping[str, Path]:
        """Which file of the journal becomes which, the one that readers open first last."""
        moves: dict[str, Path] = {}
        if self._request.vocab is not None:
            moves[TRAINED] = self._request.trained
        if self._request.rejects is not None:
            moves[_REJECTS] = self._request.rejects
        for number, part in enumerate(self.parts):
            for kind, target in zip(("bin", "idx", "files", "json"), part.targets(), strict=True):
                moves[f"{number}.{kind}"] = target
        return moves

    def empty(self) -> list[str]:
        """The files of the journal that say nothing: lists of files, where documents are rows."""
        names = [f"{number}.files" for number in range(len(self.parts))]
        return [name for name in names if not self._journal.path(name).stat().st_size]

    def leave_rejects(self, target: Path) -> None:
        """Put the list of what cannot be used where it was asked for, though nothing else is written."""
        listed_here = self._journal.path(_REJECTS)
        if self.skipped and listed_here.is_file() and not target.exists():
            self._rejects.flush()
            shutil.copyfile(listed_here, target)

    def tell(self) -> None:
        """Warn of what was skipped, one line for each kind of fault."""
        for kind, where in self._first.items():
            log.warn(f"skipped {log.counted(self.skipped[kind], 'document')} ({kind}), the first at {where}")


def _absolute(name: str) -> str:
    return name if "://" in name else os.path.abspath(name)

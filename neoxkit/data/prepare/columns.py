"""Token files with columns: PREFIX, PREFIX-labels, PREFIX-scores, and PREFIX.json which names them."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from neoxkit import __version__
from neoxkit.data.prepare.examples import Example, Maker
from neoxkit.data.tokens.columns import IGNORED, LABELS, SCORES, column_path, write_column
from neoxkit.data.tokens.indexed import IndexedWriter, pair
from neoxkit.data.tokens.sidecar import Sidecar, path_of, write_sidecar
from neoxkit.data.tokens.stage import Stage


class Output:
    """One prefix while it is written: ids; labels int32, aligned with them, not shifted; scores float32, if any.

    `learned` and `cut` count tokens, and documents.
    """

    def __init__(self, prefix: Path, scored: bool) -> None:
        self.prefix = prefix
        self.columns = [LABELS, *([SCORES] if scored else [])]
        self.documents = self.tokens = self.bytes = self.learned = self.cut = 0
        self._digest = hashlib.sha256()

    def targets(self) -> list[Path]:
        """What is written, the file that readers open first last."""
        pairs = [*(column_path(self.prefix, name) for name in self.columns), self.prefix]
        return [*(path for each in pairs for path in pair(each)), path_of(self.prefix)]

    def open(self, stage: Stage, stack: ExitStack, vocab: int) -> None:
        """Begin to write."""
        self._stage = stage
        self._columns = {
            name: stack.enter_context(write_column(self.prefix, name, stage=stage)) for name in self.columns
        }
        self._ids = stack.enter_context(IndexedWriter(self.prefix, vocab, stage=stage))

    def add(self, example: Example, score: float | None) -> None:
        """Append a document."""
        self._ids.add(example.ids)
        labels = np.where(example.learned, example.ids, IGNORED).astype("<i4")
        self._columns[LABELS].add(labels)
        if score is not None:
            self._columns[SCORES].add([score])
        self.documents += 1
        self.tokens += len(example.ids)
        self.bytes += example.bytes
        self.learned += int(example.learned.sum())
        self.cut += example.cut
        self._digest.update(len(labels).to_bytes(8, "little") + example.ids.astype("<i4").tobytes() + labels.tobytes())

    def close(self, maker: Maker, skipped: dict[str, int]) -> None:
        """Write the indexes and the sidecar, aside."""
        for writer in (*self._columns.values(), self._ids):
            writer.close()
        sidecar = Sidecar(
            tokenizer=maker.tokenizer.fingerprint,
            vocab=maker.tokenizer.vocab,
            eod=maker.eod,
            documents=self.documents,
            tokens=self.tokens,
            bytes=self.bytes,
            sources=f"sha256:{self._digest.hexdigest()}",
            skipped=skipped,
            writer=f"neoxkit {__version__}",
            columns=tuple(self.columns),
            learned=self.learned,
            template=maker.template_fingerprint,
        )
        write_sidecar(self._stage.path(path_of(self.prefix)), sidecar)

"""Answers that are kept as they are made, so that an evaluation that was interrupted goes on."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from neoxkit.errors import DataError
from neoxkit.eval.desk import Answer, Ask
from neoxkit.serve.request import Likelihood


def key_of(ask: Ask) -> str:
    """What tells an ask from any other of the same model: 24 hexadecimal digits."""
    return hashlib.blake2b(json.dumps(ask.key).encode(), digest_size=12).hexdigest()


class Journal:
    """A file of answers, one JSON line each: [key, log-probability, greedy] or [key, text].

    It belongs to one model, in one precision: whoever names the file has to see to that. It is locked while it is open.
    Raises DataError when another command is writing to it, or a line is something else.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._found: dict[str, Answer] = {}
        self._file: BinaryIO = open(path, "ab")  # noqa: SIM115 (closed by __exit__)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError:
            self._file.close()
            raise DataError(
                f"{path}: another command is writing to it", "wait for it, or name another --output"
            ) from None
        except BaseException:
            self._file.close()
            raise

    def _read(self) -> None:
        whole = 0
        for number, line in enumerate(self.path.read_bytes().splitlines(keepends=True), start=1):
            if not line.endswith(b"\n"):
                break  # what was interrupted while it was written
            try:
                key, answer = _parsed(line)
            except (ValueError, TypeError):
                raise DataError(
                    f"{self.path}:{number}: not an answer", "remove the file, or name another --output"
                ) from None
            self._found[key] = answer
            whole += len(line)
        if whole < os.path.getsize(self.path):
            os.truncate(self.path, whole)

    def find(self, ask: Ask) -> Answer | None:
        """The answer that was given to an ask."""
        return self._found.get(key_of(ask))

    def keep(self, ask: Ask, answer: Answer) -> None:
        """Keep an answer; when this returns, no end of this process can take it away."""
        key = key_of(ask)
        row = [answer.logprob, answer.greedy] if isinstance(answer, Likelihood) else [answer]
        self._file.write(json.dumps([key, *row]).encode() + b"\n")
        self._file.flush()
        self._found[key] = answer

    def __len__(self) -> int:
        return len(self._found)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()


def _parsed(line: bytes) -> tuple[str, Answer]:
    """The key and the answer of a line. Raises ValueError or TypeError for anything else."""
    key, *rest = json.loads(line)
    if not isinstance(key, str) or not rest:
        raise ValueError
    if len(rest) == 1 and isinstance(rest[0], str):
        return key, rest[0]
    logprob, greedy = rest
    if not isinstance(greedy, bool):
        raise TypeError
    return key, Likelihood(float(logprob), greedy)

"""A file of answers, written as they are made: what was interrupted goes on, and nothing is answered twice."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.checkpoint.store import Place
from neoxkit.convert.open import is_foreign
from neoxkit.errors import DataError
from neoxkit.log import counted, note, progress
from neoxkit.serve.answers import Answer, answers
from neoxkit.serve.interrupts import interrupts
from neoxkit.serve.prompts import Task

if TYPE_CHECKING:
    from neoxkit.serve.start import Serving

BEGIN = b'{"index": '
"""How each of our lines begins."""

Slot = tuple[int, int]
"""Which answer: the prompt's index, and the sample."""


def key_of(task: Task, model: str) -> str:
    """What tells an answer to this task by this model from any other: 16 hexadecimal digits.

    `model` stands for whatever answers depend on beside the task: weights, precision, tokenizer.
    """
    request = task.request
    settled: list[object] = [model, list(request.ids), sorted(request.stop_ids), list(task.stop)]
    settled += [request.max_tokens, request.min_tokens, request.logprobs, repr(request.sampling)]
    return hashlib.blake2b(json.dumps(settled).encode(), digest_size=8).hexdigest()


class AnswerFile:
    """The answers to tasks in a file, one JSON line each, with the key of its task.

    What an earlier command left there is kept, but for a last line that it could not finish; `missing` are the tasks
    that have no answer yet. While the file is open it is locked. A pipe or a terminal keeps nothing.

    Raises DataError when the file is anything else than answers to these tasks, or another command is writing to it;
    with `force` it is emptied instead.
    """

    def __init__(self, path: Path, tasks: Sequence[Task], model: str, force: bool = False) -> None:
        self.path = path
        self._keys: Mapping[Slot, str] = {(task.prompt.index, task.sample): key_of(task, model) for task in tasks}
        self._file: BinaryIO = open(path, "ab" if path.is_file() or not path.exists() else "wb")  # noqa: SIM115
        self._kept = path.is_file()
        self._at: dict[Slot, int] = {}  # where each line begins
        try:
            if self._kept:
                self._lock()
                self._resume(force)
        except BaseException:
            self._file.close()
            raise
        self.missing = [task for task in tasks if (task.prompt.index, task.sample) not in self._at]

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    @property
    def answered(self) -> int:
        """Answers that the file has."""
        return len(self._at)

    def write(self, answer: Answer, record: Mapping[str, Any]) -> None:
        """Add an answer, as `record`; when this returns, no end of this process can take it away."""
        slot = answer.task.prompt.index, answer.task.sample
        line = json.dumps({**record, "key": self._keys[slot]}, ensure_ascii=False).encode() + b"\n"
        begin = self._file.tell() if self._kept else 0
        self._file.write(line)
        self._file.flush()
        self._at[slot] = begin

    def sort(self) -> None:
        """Put the lines in the order of prompts and samples, in one step; a pipe stays as it is."""
        order = sorted(self._at)
        if not self._kept or [self._at[slot] for slot in order] == sorted(self._at.values()):
            return
        target = Path(os.path.realpath(self.path))
        aside = target.with_name(f".{target.name}.partial")
        try:
            with open(target, "rb") as lines, open(aside, "wb") as sorted_lines:
                for slot in order:
                    lines.seek(self._at[slot])
                    sorted_lines.write(lines.readline())
            shutil.copymode(target, aside)
            os.replace(aside, target)
        finally:
            aside.unlink(missing_ok=True)

    def _lock(self) -> None:
        """Keep other commands out for as long as the file is open, where its file system has locks."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise DataError(f"{self.path}: another command is writing to it", "name another file") from None

    def _resume(self, force: bool) -> None:
        """Find out what is answered, and drop what was not finished."""
        whole = 0 if force else self._read()
        if whole < os.path.getsize(self.path):
            self._file.truncate(whole)
        self._file.seek(whole)

    def _read(self) -> int:
        """Note each answer of the file; how many bytes they take."""
        begin = 0
        with open(self.path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    if not line.startswith(BEGIN[: len(line)]):
                        raise DataError(f"{self.path}:{number}: not an answer", _OTHERWISE)
                    return begin
                self._at[self._slot(line, number)] = begin
                begin += len(line)
        return begin

    def _slot(self, line: bytes, number: int) -> Slot:
        """Which answer a line is. Raises DataError for what is none, or none to a task of ours."""
        where = f"{self.path}:{number}"
        try:
            row = json.loads(line)
            slot, key = (int(row["index"]), int(row["sample"])), row["key"]
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise DataError(f"{where}: not an answer", _OTHERWISE) from None
        if slot in self._at:
            raise DataError(f"{where}: a second answer to prompt {slot[0]}", _OTHERWISE)
        if self._keys.get(slot) != key:
            raise DataError(
                f"{where}: an answer to another prompt, by another model or with other settings", _OTHERWISE
            )
        return slot


_OTHERWISE = "name another file, or begin anew with --force"


def model_of(serving: Serving, source: Place, dtype: str | None) -> str:
    """What an answer depends on beside its task: the weights, the precision that was asked for, the tokenizer.

    The weights of a checkpoint by their fingerprint; of any other source by where it lies.
    """
    weights = Checkpoint.open(source).fingerprint if not is_foreign(source) else os.path.abspath(str(source))
    return f"{weights} {dtype} {serving.tokenizer.fingerprint}"


def check_output(output: Path, prompts: Path) -> None:
    """Raise DataError where answers could not be written, before anything is loaded. Nothing is made or touched."""
    if output.is_dir():
        raise DataError(f"{output}: a folder", "name a file")
    if not output.parent.is_dir():
        raise DataError(f"{output}: there is no folder {output.parent}", "make it first")
    if output.exists() and prompts.exists() and output.samefile(prompts):
        raise DataError(f"{output}: the file of the prompts", "name another for the answers")


def answer_into(output: AnswerFile, serving: Serving) -> None:
    """Answer the tasks that a file has no answer to, into it; at the end its lines are in the order of the prompts.

    KeyboardInterrupt says how far it came.
    """
    total, words = output.answered + len(output.missing), serving.tokenizer
    have = f"{output.path} has {{:,}} of {counted(total, 'answer')}".format
    if output.answered:
        note(have(output.answered) + ("; going on" if output.missing else ": nothing is left to do"))
    try:
        if output.missing:
            with progress("generate", len(output.missing), "answers") as bar:
                for answer in _answered(output.missing, serving):
                    output.write(answer, answer.json(words))
                    bar.advance(1)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(have(output.answered) + "; the same command goes on with the rest") from None
    output.sort()


def answer_lines(tasks: Sequence[Task], serving: Serving) -> Iterator[str]:
    """The answers to tasks as JSON, each as it is done."""
    for answer in _answered(tasks, serving):
        yield json.dumps(answer.json(serving.tokenizer), ensure_ascii=False)


def _answered(tasks: Sequence[Task], serving: Serving) -> Iterator[Answer]:
    """The answers to tasks, each as it is done. Raises KeyboardInterrupt after the tick in which Ctrl-C was pressed."""
    left = len(tasks)
    with interrupts() as interrupted:
        for answer in answers(serving.engine, longest_first(tasks), serving.tokenizer, interrupted):
            left -= 1
            yield answer
    if left:
        raise KeyboardInterrupt


def longest_first(tasks: Iterable[Task]) -> list[Task]:
    """Tasks with the longest prompts first: those that are worked on together are alike, and none is left for the end.

    Samples of a prompt stay together, and so do prompts that begin alike, whose beginning is computed once.
    """
    return sorted(tasks, key=lambda task: (-len(task.request.ids), task.request.ids, task.prompt.index, task.sample))

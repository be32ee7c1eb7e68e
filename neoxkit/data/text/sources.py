"""Where text comes from: files and folders into documents, and which of them are held out."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from neoxkit.errors import DataError

JSONL = ".jsonl"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which files of a folder are text, and where a JSON line has its own.

    A pattern is matched against a file's path below the folder and against its name; `exclude`
    against every folder on the way too, so "test" leaves out whatever lies in a folder of that name.
    """

    include: tuple[str, ...] = ("*.txt", "*.md", "*.jsonl")
    exclude: tuple[str, ...] = ()
    key: str = "text"


@dataclass(frozen=True, slots=True)
class TextFile:
    """A file of text: one document, or one a line where its name ends in .jsonl.

    `name` is its path below the input folder; `group` the first part of that, without a suffix, so
    that `json/decoder.py` and `json/encoder.py` are of one group.
    """

    path: Path
    name: str
    group: str
    bytes: int

    @property
    def lines(self) -> bool:
        """Whether each line is a document."""
        return self.name.endswith(JSONL)


@dataclass(frozen=True, slots=True)
class Document:
    """A text, and the UTF-8 bytes it takes; `read` bytes of the file were read for it.

    `identity` decides on which side of a split it falls: its file's group, or the text itself where a
    file holds many documents, so that a repeated line falls on one side.
    """

    text: str
    bytes: int
    identity: str
    read: int


@dataclass(frozen=True, slots=True)
class Reject:
    """A document that cannot be used: where it is, of what kind the fault is, and what exactly."""

    path: Path
    line: int | None
    kind: str
    detail: str
    read: int

    @property
    def where(self) -> str:
        """FILE, or FILE:LINE."""
        return f"{self.path}:{self.line}" if self.line else str(self.path)

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}" + (f" ({self.detail})" if self.detail else "")


def find(inputs: Sequence[Path], selection: Selection) -> list[TextFile]:
    """The files of text in the inputs, in the order given and then by name. A file given is taken as it is.

    In folders, names that begin with a dot are left out and links to folders are not followed.

    Raises DataError when an input is missing, a file is found twice, or nothing is found.
    """
    found: list[TextFile] = []
    for given in inputs:
        if given.is_dir():
            found.extend(_walk(given, selection))
        elif given.is_file():
            found.append(TextFile(given, given.name, _group(given.name), given.stat().st_size))
        else:
            raise DataError(f"{given}: no such file or folder", "mend the path")
    seen: set[Path] = set()
    for file in found:
        path = Path(os.path.abspath(file.path))
        if path in seen:
            raise DataError(f"{file.path} is in two of the inputs", "give each file once")
        seen.add(path)
    if not found:
        raise DataError(
            f"no text found in {', '.join(map(str, inputs))}: no file is named {' or '.join(selection.include)}",
            'name what to take: --include "*.py"',
        )
    return found


def _walk(root: Path, selection: Selection) -> Iterator[TextFile]:
    """The text files below a folder, by name, whatever order the file system has them in."""
    files: list[tuple[str, Path]] = []
    for folder, below, names in os.walk(root):
        here = Path(folder).relative_to(root)
        below[:] = [name for name in below if not name.startswith(".") and not _matches(here / name, selection.exclude)]
        for name in names:
            path = here / name
            wanted = _matches(path, selection.include) and not _matches(path, selection.exclude)
            if wanted and not name.startswith(".") and (root / path).is_file():
                files.append((path.as_posix(), root / path))
    for name, path in sorted(files):
        yield TextFile(path, name, _group(name.split("/")[0]), path.stat().st_size)


def _matches(path: Path, patterns: tuple[str, ...]) -> bool:
    whole = path.as_posix()
    return any(fnmatchcase(whole, pattern) or fnmatchcase(path.name, pattern) for pattern in patterns)


def _group(name: str) -> str:
    return name.split(".")[0] or name


def documents(file: TextFile, key: str) -> Iterator[Document | Reject]:
    """The documents of a file in order, and what in it is none.

    Raises OSError when it cannot be read.
    """
    if file.lines:
        yield from _json_lines(file, key)
        return
    content = file.path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        yield Reject(file.path, content.count(b"\n", 0, error.start) + 1, "not UTF-8", error.reason, len(content))
        return
    if not text:
        yield Reject(file.path, None, "empty", "", 0)
        return
    yield Document(text, len(content), file.group, len(content))


def _json_lines(file: TextFile, key: str) -> Iterator[Document | Reject]:
    with file.path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue  # a blank line, at the end as a rule, is no document
            text, kind, detail = _json_text(line, key)
            if kind:
                yield Reject(file.path, number, kind, detail, len(line))
                continue
            content = text.encode("utf-8")
            yield Document(text, len(content), hashlib.sha256(content).hexdigest(), len(line))


def _json_text(line: bytes, key: str) -> tuple[str, str, str]:
    """(text, "", "") of a JSON line, or ("", kind of fault, detail)."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return "", "not UTF-8", error.reason
    except (ValueError, RecursionError) as error:
        return "", "broken JSON", str(error)
    if not isinstance(row, dict) or key not in row:
        return "", f'no key "{key}"', ""
    text = row[key]
    if not isinstance(text, str):
        return "", f'"{key}" is not a string', type(text).__name__
    if not text:
        return "", "empty", ""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        return "", "not Unicode", "half of a surrogate pair"
    return text, "", ""


def held_out(identity: str, share: float) -> bool:
    """Whether a document of this identity is among the `share` (0 to 1) that is held out.

    By a hash of the identity alone, so adding documents moves none of the others.
    """
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") < share * 2.0**64


def thinned(found: Iterator[Document], share: float) -> Iterator[Document]:
    """About `share` (0 to 1) of the bytes, in whole documents spread evenly; always the first one."""
    seen = taken = 0
    for document in found:
        if taken <= seen * share:
            taken += document.bytes
            yield document
        seen += document.bytes

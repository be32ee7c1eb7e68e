"""Where text lies: files, folders, patterns, URLs and datasets, in the order in which they are read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

from neoxkit.checkpoint.store import Tree, reaching
from neoxkit.errors import DataError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2", ".xz": "xz"}
"""How the end of a name tells of compression."""

Form: TypeAlias = Literal["lines", "json", "parquet", "text", "dataset"]
_FORMS: dict[str, Form] = {".jsonl": "lines", ".ndjson": "lines", ".json": "json", ".parquet": "parquet"}
_MAGIC = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which files of a folder are text, and where a row has its own; `option` is what changes `include`, if anything.

    A pattern is matched against a file's path below the folder and against its name, both as they are and
    without the end that tells of compression; `exclude` against every folder on the way too, so "test"
    leaves out whatever lies in a folder of that name.
    """

    include: tuple[str, ...] = ("*.txt", "*.md", "*.jsonl", "*.ndjson", "*.parquet")
    exclude: tuple[str, ...] = ()
    keys: tuple[str, ...] = ("text",)
    option: str | None = "--include"

    @property
    def advice(self) -> str:
        """What to do where no file of a folder is wanted."""
        return f'name what to take: {self.option} "*.py"' if self.option else "name the files themselves"


@dataclass(frozen=True, slots=True)
class Remote:
    """A file that fsspec reads: its file system, and the name that it has there."""

    url: str
    fs: Any
    key: str

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True, slots=True)
class Dataset:
    """A split of a dataset that the `datasets` library streams: NAME[:CONFIG] of the Hub, or a folder."""

    given: str
    split: str

    def __str__(self) -> str:
        return f"dataset {self.given} ({self.split})"

    def named(self) -> tuple[str, str | None]:
        """Its name and its configuration."""
        name, colon, config = self.given.rpartition(":")
        return (name, config) if colon and not Path(self.given).exists() else (self.given, None)


@dataclass(frozen=True, slots=True)
class Source:
    """A file of text, or a dataset.

    `name` is its path below the input folder; `group` the first part of that, without a suffix, so
    that `json/decoder.py` and `json/encoder.py` are of one group. `bytes` is its size, None where it is
    not known; `stamp` is another once the file is.
    """

    where: Path | Remote | Dataset
    name: str
    group: str
    bytes: int | None
    stamp: str = ""

    @property
    def compression(self) -> str | None:
        """gzip, zstd, bzip2 or xz, by its name."""
        return None if isinstance(self.where, Dataset) else COMPRESSIONS.get(PurePosixPath(self.name).suffix)

    @property
    def form(self) -> Form:
        """How documents lie in it, by its name; whatever else it is called, a file is one document."""
        if isinstance(self.where, Dataset):
            return "dataset"
        return _FORMS.get(PurePosixPath(_bare(self.name)).suffix, "text")


def find(inputs: Sequence[str | Path], selection: Selection, datasets: Sequence[Dataset] = ()) -> list[Source]:
    """What the inputs hold, in the order given and then by name; the datasets last. A file given is taken as it is.

    In folders, names that begin with a dot are left out and links to folders are not followed.

    Raises DataError when an input is missing, a file is found twice, or nothing is found, and
    CheckpointError when a store cannot be reached.
    """
    found: list[Source] = []
    for given in inputs:
        if isinstance(given, str) and "://" in given:
            found.extend(_remote(given, selection))
        else:
            found.extend(_local(Path(given), selection))
    seen: set[str] = set()
    for source in found:
        path = os.path.abspath(source.where) if isinstance(source.where, Path) else str(source.where)
        if path in seen:
            raise DataError(f"{source.where} is in two of the inputs", "give each file once")
        seen.add(path)
    found.extend(Source(each, each.given, each.given, None) for each in datasets)
    if not found:
        raise DataError(
            f"no text found in {', '.join(map(str, inputs))}: no file is named {' or '.join(selection.include)}",
            selection.advice,
        )
    return found


def _local(given: Path, selection: Selection) -> Iterator[Source]:
    if given.is_dir():
        yield from _walk(given, selection)
    elif given.is_file():
        yield _file(given, given.name, given.name)
    elif _MAGIC & set(str(given)):
        matches = _glob(given)
        if not matches:
            raise DataError(f"{given}: no file or folder is named so", "mend the pattern")
        for each in matches:
            yield from _local(each, selection)
    else:
        raise DataError(f"{given}: no such file or folder", "mend the path")


def _file(path: Path, name: str, first: str) -> Source:
    about = path.stat()
    return Source(path, name, _group(first), about.st_size, str(about.st_mtime_ns))


def _glob(pattern: Path) -> list[Path]:
    """What matches a pattern, by name. Links to folders are not followed by `**`, so that no circle of them is."""
    parts = pattern.parts
    fixed = next(k for k, part in enumerate(parts) if _MAGIC & set(part))
    base, below = Path(*parts[:fixed]), str(Path(*parts[fixed:]))
    hidden = any(part.startswith(".") for part in parts[fixed:])
    found = (path for path in base.glob(below) if path.is_file() or (path.is_dir() and parts[-1] != "**"))
    return sorted(
        path for path in found if hidden or not any(part.startswith(".") for part in path.relative_to(base).parts)
    )


def _walk(root: Path, selection: Selection) -> Iterator[Source]:
    """The text files below a folder, by name, whatever order the file system has them in."""
    files: list[str] = []
    for folder, below, names in os.walk(root):
        here = PurePosixPath(Path(folder).relative_to(root))
        below[:] = [name for name in below if not name.startswith(".") and not _matches(here / name, selection.exclude)]
        for name in names:
            if _wanted(here / name, selection) and (root / here / name).is_file():
                files.append(str(here / name))
    for name in sorted(files):
        yield _file(root / name, name, name.split("/")[0])


def _remote(url: str, selection: Selection) -> Iterator[Source]:
    """The files at a URL: one, those that match a pattern, or the wanted ones of a folder."""
    tree = Tree(url)
    try:
        with reaching(url):
            fs, root = tree.fs, tree.root
            web = url.startswith(("http://", "https://"))
            if not web and _MAGIC & set(url):
                files = {name: about for name, about in fs.glob(root, detail=True).items() if about["type"] == "file"}
                named = {name: name.rpartition("/")[2] for name in files}
            elif (about := fs.info(root))["type"] == "file":
                files, named = {root: about}, {root: urlsplit(url).path.rpartition("/")[2] if web else tree.url}
                named = {root: named[root].rpartition("/")[2]}
            else:
                listed = {name: about for name, about in fs.find(root, detail=True).items() if about["type"] == "file"}
                below = {name: name[len(root) :].lstrip("/") for name in listed}
                named = {name: short for name, short in below.items() if _wanted(PurePosixPath(short), selection, True)}
                files = {name: listed[name] for name in named}
    except FileNotFoundError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):  # fsspec takes silence for absence
            raise DataError(f"{url} cannot be reached: {cause}", "check the address and the network") from None
        raise DataError(f"{url}: no such file or folder", "mend the URL") from None
    if not files:
        raise DataError(f"{url}: no file there is wanted", f"mend the URL, or {selection.advice}")
    for key in sorted(files):
        about, short = files[key], named[key]
        where = Remote(url if web else str(fs.unstrip_protocol(key)), fs, key)
        stamp = " ".join(str(about[field]) for field in ("ETag", "mtime", "LastModified", "created") if field in about)
        size = about.get("size")
        yield Source(where, short, _group(short.split("/")[0]), None if size is None else int(size), stamp)


def _wanted(path: PurePosixPath, selection: Selection, folders: bool = False) -> bool:
    """Whether a file of a folder is; with `folders`, what is left out on the way to it is looked at too."""
    on_the_way = [path, *path.parents[:-1]] if folders else [path]
    if any(each.name.startswith(".") or _matches(each, selection.exclude) for each in on_the_way):
        return False
    return _matches(path, selection.include)


def _matches(path: PurePosixPath, patterns: tuple[str, ...]) -> bool:
    spelled = {str(path), path.name, _bare(str(path)), _bare(path.name)}
    return any(fnmatchcase(each, pattern) for each in spelled for pattern in patterns)


def _bare(name: str) -> str:
    """A name without the end that tells of compression."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix in COMPRESSIONS and path.stem else name


def _group(name: str) -> str:
    return name.split(".")[0] or name

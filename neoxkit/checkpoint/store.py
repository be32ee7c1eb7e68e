"""Places that are no folders of a disk: URLs of object stores, used like paths. No torch, and fsspec only for a URL.

A place is a Path or a StorePath; `place` makes the one or the other of what a user wrote. A StorePath
has as much of pathlib's interface as checkpoints need. universal-pathlib has all of it, and asks the
store anew for each question; here what lies below a place is listed once.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, NoReturn, TypeAlias

from neoxkit.errors import CheckpointError, NeoxkitError

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
_LOCAL = ("file", "local")
_NO_STORES = ("http", "https")
_HUB = "hf"  # names of the Hub's models, which import fetches: see convert/hub.py
_S3 = ("s3", "s3a")
_CONNECTIONS = 32
_OURS = (AssertionError, AttributeError, NameError, TypeError)  # mistakes of a program, which must not be hidden


class Size(NamedTuple):
    """What a store tells of an object, under the name that os.stat_result has for it."""

    st_size: int


class Tree:
    """What lies below one place of a store, as it was when it was first asked for."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def forget(self) -> None:
        """Forget what there was: it will be listed anew."""
        for name in ("objects", "sizes", "folders"):
            self.__dict__.pop(name, None)

    @cached_property
    def fs(self) -> Any:
        """The file system of fsspec that the place lies in."""
        return self._connect()

    @cached_property
    def aside(self) -> Any:
        """The same, but files that are opened there to be written are not visible before they are committed."""
        fs = self._connect(skip_instance_cache=True)
        fs.start_transaction()
        return fs

    def _connect(self, **more: Any) -> Any:
        import fsspec

        scheme = self.url.partition("://")[0]
        options: dict[str, Any] = {}
        if scheme in _S3:
            options["config_kwargs"] = {"max_pool_connections": _CONNECTIONS, "read_timeout": 60}
        try:
            fs, _ = fsspec.core.url_to_fs(self.url, **options, **more)
        except ImportError as error:
            raise CheckpointError(f"{self.url}: {_first_line(error)}", _install(scheme)) from error
        except ValueError as error:
            raise CheckpointError(f"{self.url}: {_first_line(error)}", "write it as s3://BUCKET/FOLDER") from error
        return fs

    @cached_property
    def root(self) -> str:
        """The place as its file system spells it."""
        found: str = self.fs._strip_protocol(self.url)
        return found.rstrip("/")

    @cached_property
    def objects(self) -> Mapping[str, Mapping[str, Any]]:
        """What the store tells of each object, by its name, counted from the place ("": it is an object itself)."""
        fs, root = self.fs, self.root
        with reaching(self.url):
            fs.invalidate_cache(root)
            try:
                found = fs.find(root, detail=True)
            except FileNotFoundError as error:
                if "bucket" in str(error).lower():
                    raise CheckpointError(f"{self.url}: {error}", "check the name of the bucket") from error
                found = {}
        return {
            name[len(self.root) :].lstrip("/"): about
            for name, about in found.items()
            if about["type"] == "file" and not name.endswith("/")  # some programs mark folders by an empty object
        }

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of each object."""
        return {name: int(about["size"] or 0) for name, about in self.objects.items()}

    @cached_property
    def folders(self) -> frozenset[str]:
        """The names that objects lie below, "" among them when there is any."""
        return frozenset(
            "" if str(each) == "." else str(each) for name in self.sizes if name for each in PurePosixPath(name).parents
        )


class StorePath:
    """A place in an object store, with the names that pathlib has for what can be asked of it.

    What there is was listed when it was first asked for; `again` is the same place, listed anew.
    Raises CheckpointError, naming the URL, when the store cannot be reached or refuses.
    """

    __slots__ = ("_name", "tree")

    def __init__(self, tree: Tree, name: str = "") -> None:
        self.tree, self._name = tree, name

    def __str__(self) -> str:
        return f"{self.tree.url}/{self._name}" if self._name else self.tree.url

    def __repr__(self) -> str:
        return f"StorePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StorePath) and str(self) == str(other)

    def __lt__(self, other: StorePath) -> bool:
        return str(self) < str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __fspath__(self) -> NoReturn:
        raise CheckpointError(f"{self}: only a folder of a disk can be used here", "copy it to a disk first")

    def __truediv__(self, name: str) -> StorePath:
        return StorePath(self.tree, str(PurePosixPath(self._name) / name))

    def again(self) -> StorePath:
        """The same place, of which nothing is known yet."""
        return StorePath(Tree(str(self)))

    @property
    def key(self) -> str:
        """The place as its file system spells it: BUCKET/FOLDER/NAME."""
        return f"{self.tree.root}/{self._name}" if self._name else self.tree.root

    @property
    def name(self) -> str:
        """The last part."""
        return str(self).rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The end of the name, from its last dot on."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> StorePath:
        """The place that this one lies in."""
        if not self._name:
            return StorePath(Tree(str(self).rpartition("/")[0]))
        above = str(PurePosixPath(self._name).parent)
        return StorePath(self.tree, "" if above == "." else above)

    def relative_to(self, other: StorePath) -> PurePosixPath:
        """The rest of the path after `other`'s."""
        return PurePosixPath(str(self)).relative_to(str(other))

    def absolute(self) -> StorePath:
        """The place itself: a URL is never relative."""
        return self

    def as_posix(self) -> str:
        """The URL."""
        return str(self)

    def identity(self) -> object:
        """What tells the objects that are there from others that take their places; None when there is nothing."""
        return {name: str(about) for name, about in self.tree.objects.items()} or None

    def size(self) -> int | None:
        """Bytes of the object; None when there is none."""
        return self.tree.sizes.get(self._name)

    def stat(self) -> Size:
        """What is known of the object. Raises FileNotFoundError when there is none."""
        if (size := self.size()) is None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(self))
        return Size(size)

    def is_file(self) -> bool:
        """Whether it is an object."""
        return self._name in self.tree.sizes

    def is_dir(self) -> bool:
        """Whether objects lie below it."""
        return self._name in self.tree.folders

    def exists(self) -> bool:
        """Whether it is an object, or objects lie below it."""
        return self.is_file() or self.is_dir()

    def is_symlink(self) -> bool:
        """A store has no links."""
        return False

    def iterdir(self) -> Iterator[StorePath]:
        """What lies directly below."""
        start = f"{self._name}/" if self._name else ""
        names = {name[len(start) :].partition("/")[0] for name in self.tree.sizes if name.startswith(start)}
        yield from (self / name for name in sorted(names - {""}))

    def rglob(self, pattern: str) -> Iterator[StorePath]:
        """All objects below, and no folders: a store has none."""
        assert pattern == "*", pattern
        start = f"{self._name}/" if self._name else ""
        yield from (StorePath(self.tree, name) for name in self.tree.sizes if name and name.startswith(start))

    def read_bytes(self) -> bytes:
        """All bytes of a small object. Raises FileNotFoundError when there is none."""
        if self.size() == 0:
            return b""
        return self.fetch()

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The text of a small object."""
        return self.read_bytes().decode(encoding, errors)

    def fetch(self, first: int | None = None, last: int | None = None) -> bytes:
        """Bytes `first` to `last` of the object, in one request: fewer where it ends before.

        Raises FileNotFoundError when there is none.
        """
        fs = self.tree.fs
        with reaching(str(self)):
            data: bytes = fs.cat_file(self.key, start=first, end=last)
            return data


Place: TypeAlias = Path | StorePath


def place(given: str | Place) -> Place:
    """A path, or, for a URL of a store, its StorePath; file:// is a path. Raises CheckpointError for a web address."""
    if not isinstance(given, str):
        return given
    match = _URL.fullmatch(given)
    if match is None or match["scheme"] == _HUB:
        return Path(given)
    if match["scheme"] in _LOCAL:
        return Path(match["rest"])
    if match["scheme"] in _NO_STORES:
        raise CheckpointError(f"{given}: a web server does not list its files", "fetch the folder first")
    if not match["rest"].strip("/"):
        raise CheckpointError(f"{given}: it names no bucket", "write it as s3://BUCKET/FOLDER")
    return StorePath(Tree(given))


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turn what a store's library raises into CheckpointErrors that name the URL; FileNotFoundError is left."""
    try:
        yield
    except (NeoxkitError, FileExistsError, *_OURS):
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, _first_line(error), url) from error
    except PermissionError as error:
        raise CheckpointError(f"{url}: the store refuses: {_first_line(error)}", _CREDENTIALS) from error
    except Exception as error:
        raise CheckpointError(f"{url}: {_first_line(error)}", _CREDENTIALS) from error


_CREDENTIALS = "check the address, the credentials and the network"


def _first_line(error: BaseException) -> str:
    """What an error says, in short."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = said.strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _install(scheme: str) -> str:
    """How to get what fsspec needs for a scheme."""
    if scheme in _S3:
        return "pip install 'neoxkit[s3]'"
    from fsspec.registry import known_implementations

    said: str = known_implementations.get(scheme, {}).get("err", "install its file system for fsspec")
    return said[:1].lower() + said[1:]

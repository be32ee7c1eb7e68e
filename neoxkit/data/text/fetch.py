"""The files of a public corpus, fetched into a folder; what was fetched before is not fetched again."""

from __future__ import annotations

import hashlib
import http.client
import re
import shutil
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from neoxkit import log
from neoxkit.data.text.corpora import Corpus
from neoxkit.errors import DataError

PIECE = 1 << 20
PATIENCE = 30.0
"""Seconds that a server may be silent."""
ATTEMPTS = 5
PAUSE = 1.0
"""Seconds before a broken transfer is taken up again; twice as many each time."""

PARTIAL = ".partial"


@dataclass(frozen=True)
class Fetched:
    """Where a corpus lies now: its files, and how many bytes of them had to be fetched."""

    folder: Path
    files: tuple[Path, ...]
    bytes: int


def fetch(corpus: Corpus, folder: Path, max_bytes: int | None = None) -> Fetched:
    """Fetch a corpus into a folder, which is made; of many files, as many as `max_bytes` allow, and one at least.

    A transfer that breaks is taken up where it broke, now or by the same command later.

    Raises DataError when there is no network, the server has no such file, what comes is not what its
    makers publish, or a file is there that is none of it.
    """
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return _dataset(corpus, folder, max_bytes) if corpus.archive is None else _archive(corpus, folder)
    except BaseException:
        if new:
            with suppress(OSError):  # something is in it, which is kept
                folder.rmdir()
        raise


def _archive(corpus: Corpus, folder: Path) -> Fetched:
    """The one file of a zip archive."""
    assert corpus.archive is not None
    target = folder / corpus.member
    if target.exists():
        if target.stat().st_size == corpus.unpacked and _md5(target) == corpus.md5:
            return Fetched(folder, (target,), 0)
        raise DataError(f"{target} exists and is not {corpus.name}", "remove it, or name another folder with -o")
    archive = folder / corpus.archive.rsplit("/", 1)[1]
    size = download(corpus.archive, archive)
    aside = target.with_name(target.name + PARTIAL)
    try:
        with zipfile.ZipFile(archive) as packed:
            if packed.getinfo(corpus.member).file_size != corpus.unpacked:
                raise zipfile.BadZipFile(f"{corpus.member} has not {corpus.unpacked:,} bytes")
            with packed.open(corpus.member) as content, aside.open("wb") as file:
                shutil.copyfileobj(content, file, PIECE)
        if _md5(aside) != corpus.md5:
            raise zipfile.BadZipFile("its checksum is not the one that its maker publishes")
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        for path in (aside, archive):
            path.unlink(missing_ok=True)
        raise DataError(f"{corpus.archive} is not {corpus.name}: {error}", "try again; it was removed") from error
    aside.rename(target)
    archive.unlink()
    return Fetched(folder, (target,), size)


def download(url: str, target: Path) -> int:
    """Fetch a file by HTTP and return how many bytes were fetched. What broke off is at TARGET.partial, and taken up.

    Raises DataError when it cannot be reached, is not there, or breaks off again and again.
    """
    partial = target.with_name(target.name + PARTIAL)
    if target.exists():
        return 0
    fetched = 0
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            fetched += _transfer(url, partial)
        except urllib.error.HTTPError as error:
            error.close()
            raise DataError(f"{url}: the server answers {error.code} {error.reason}", "try again later") from error
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            said: object = getattr(error, "reason", None) or error
            if (
                isinstance(error, OSError)
                and error.filename is not None
                and not isinstance(error, urllib.error.URLError)
            ):
                raise  # of the disk
            broken = f"{url} cannot be reached: {said}" if not partial.exists() else f"{url} broke off: {said}"
            unreachable = isinstance(error, urllib.error.URLError)
            if unreachable or attempt == ATTEMPTS - 1:
                raise DataError(broken, "try again with a network; what is here is kept") from error
            continue
        partial.rename(target)
        return fetched
    raise AssertionError("nothing comes after this")


def _transfer(url: str, partial: Path) -> int:
    """Fetch what is missing of a partial file; return its bytes. Raises HTTPException when it ends too early."""
    there = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={there}-"} if there else {})
    try:
        answer = urllib.request.urlopen(request, timeout=PATIENCE)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        error.close()
        total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        if total and int(total[1]) == there:
            return 0  # it was all there
        partial.unlink()
        return _transfer(url, partial)
    with answer:
        begins = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
        if answer.status != 206 or begins is None or int(begins[1]) != there:
            there = 0  # the server gives the whole
        left = int(answer.headers.get("Content-Length") or 0)
        fetched = 0
        with partial.open("ab" if there else "wb") as file, log.progress(f"fetch {url}", left) as progress:
            while piece := answer.read(PIECE):
                file.write(piece)
                fetched += len(piece)
                progress.advance(len(piece))
        if fetched < left:
            raise http.client.IncompleteRead(b"", left - fetched)
    return fetched


def _dataset(corpus: Corpus, folder: Path, max_bytes: int | None) -> Fetched:
    """The files of a dataset on the Hub, by huggingface_hub, which checks them and takes up what broke off."""
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    assert corpus.hub is not None
    # requests' errors are OSErrors; those of httpx, which later releases use, have a base of their own
    unreachable: tuple[type[BaseException], ...] = (OSError, HfHubHTTPError.__mro__[1])
    where = f"https://huggingface.co/datasets/{corpus.hub}"
    try:
        about = huggingface_hub.HfApi().dataset_info(corpus.hub, files_metadata=True, timeout=PATIENCE)
        sizes = {each.rfilename: each.size or 0 for each in about.siblings or ()}
        wanted = _wanted(corpus, sizes, max_bytes)
        total = sum(sizes[name] for name in wanted)
        log.note(f"{corpus.name}: {log.counted(len(wanted), 'file')}, {log.sized(total)}, {corpus.licence}; {where}")
        disable_progress_bars()
        with log.progress(f"fetch {corpus.name}", total) as progress:
            paths = []
            for name in wanted:
                found = huggingface_hub.hf_hub_download(
                    corpus.hub, name, repo_type="dataset", revision=about.sha, local_dir=folder
                )
                paths.append(Path(found))
                progress.advance(sizes[name])
    except GatedRepoError as error:
        raise DataError(
            f"{corpus.name}: its makers give it only to people who accept their terms",
            f"accept them at {where}, then log in: hf auth login, or set HF_TOKEN",
        ) from error
    except RepositoryNotFoundError as error:
        raise DataError(f"{corpus.name}: the Hub has no dataset {corpus.hub} any more", "take another") from error
    except unreachable as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # of the disk
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{corpus.name}: the Hub cannot be reached, or broke off: {said[:200]}",
            "try again with a network; what is here is kept",
        ) from error
    finally:
        enable_progress_bars()
    return Fetched(folder, tuple(paths), total)


def _wanted(corpus: Corpus, sizes: Mapping[str, int], max_bytes: int | None) -> list[str]:
    """The names of a corpus's files in their order, as many as `max_bytes` allow. Raises DataError for none."""
    named = sorted(name for name in sizes if any(fnmatchcase(name, pattern) for pattern in corpus.files))
    if not named:
        raise DataError(
            f"{corpus.name}: the dataset {corpus.hub} has no files {' or '.join(corpus.files)} any more",
            f"see https://huggingface.co/datasets/{corpus.hub}",
        )
    if max_bytes is None:
        return named
    taken, room = named[:1], max_bytes - sizes[named[0]]
    for name in named[1:]:
        if sizes[name] > room:
            break
        taken.append(name)
        room -= sizes[name]
    return taken


def _md5(path: Path) -> str:
    found = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            found.update(piece)
    return found.hexdigest()

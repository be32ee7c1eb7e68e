"""Models by their name on the Hugging Face Hub: fetched into its own cache, and only what is needed of them.

The cache is huggingface_hub's: HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what they
mean everywhere, and what another program has fetched is not fetched again.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from neoxkit.checkpoint.format import MANIFEST, parse
from neoxkit.checkpoint.store import Place, StorePath
from neoxkit.convert.weight_names import PARAMS, SHARD, SINGLE, WHOLE
from neoxkit.data.tokenizer import NAMES
from neoxkit.errors import CheckpointError
from neoxkit.log import progress, warn

_NAME = re.compile(r"(?:hf:/+)?(?P<name>\w[\w.-]*/\w[\w.-]*?)(?:@(?P<revision>[^@]+))?")

PATIENCE = 10.0
"""Seconds to wait for the Hub's answer to a question."""


@dataclass(frozen=True)
class Named:
    """A model's name, ORG/NAME, and the branch, tag or commit that is wanted."""

    name: str
    revision: str | None

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


@dataclass(frozen=True)
class Fetched:
    """Where a model lies now, and where it is from: ORG/NAME@COMMIT; None for one that lay there before."""

    folder: Place
    origin: str | None


def named(source: Place) -> Named | None:
    """The name on the Hub that a source is: ORG/NAME, ORG/NAME@REVISION; None for a path.

    What exists is a path, and so is what lies in a folder that exists, unless `hf:` is written before it.
    """
    if isinstance(source, StorePath):
        return None
    found = spelled(source.as_posix())
    if found is None or source.exists():
        return None
    if not source.as_posix().startswith("hf:") and Path(source.parts[0]).exists():
        return None
    return found


def spelled(text: str) -> Named | None:
    """The name that a text is: ORG/NAME or ORG/NAME@REVISION, hf:// before it or not; None for another text."""
    match = _NAME.fullmatch(text)
    return Named(match["name"], match["revision"]) if match else None


def fetch(model: Named) -> Fetched:
    """Fetch what is needed of a model, unless the cache holds it.

    A connection that breaks is taken up where it broke. A download that was ended is taken up at the
    next file: huggingface_hub keeps no part of one.

    Without the network the cache is used, if it has the revision. Raises CheckpointError, saying
    what to do, when there is no such model, it is not open to everyone, it has no weights that can
    be read, and when the Hub cannot be reached; ModuleNotFoundError without huggingface_hub.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    # requests' errors are OSErrors; those of httpx and httpx2, which later releases use, have a base of their own
    unreachable: tuple[type[Exception], ...] = (OSError, cast(type[Exception], HfHubHTTPError.__mro__[1]))
    try:
        about = huggingface_hub.HfApi().model_info(
            model.name, revision=model.revision, files_metadata=True, timeout=PATIENCE
        )
    except HfHubHTTPError as error:
        raise _refused(model, error) from error
    except OfflineModeIsEnabled as error:
        return _cached(model, "HF_HUB_OFFLINE is set", error)
    except ValueError as error:
        raise CheckpointError(f"{model}: no name of a model on the Hub", "check the name") from error
    except unreachable as error:
        return _cached(model, "the Hub cannot be reached", error)
    sizes = {each.rfilename: each.size or 0 for each in about.siblings or ()}
    commit = str(about.sha)
    try:
        wanted = _wanted(model, sizes, commit)
        with shown(f"fetch {model}", sum(sizes[name] for name in wanted)):
            # by the branch's name and not its commit: the cache then knows it when there is no network
            folder = Path(huggingface_hub.snapshot_download(model.name, revision=model.revision, allow_patterns=wanted))
    except HfHubHTTPError as error:
        raise _refused(model, error) from error
    except unreachable as error:
        said = _first_line(error)
        raise CheckpointError(
            f"{model}: the download broke off: {said}", "try again; the files that are there are kept"
        ) from error
    return Fetched(folder, f"{model.name}@{folder.name}")


def _wanted(model: Named, sizes: Mapping[str, int], commit: str) -> list[str]:
    """The files to fetch: configuration, tokenizer, and weights once: safetensors before `.bin` before Meta's.

    Of a checkpoint of neoxkit's, all that its manifest lists.

    Raises CheckpointError when there are no weights.
    """
    small = [name for name in ("config.json", *NAMES) if name in sizes]
    for name in SINGLE:
        index = f"{name}.index.json"
        if index in sizes:
            return [*small, index, *_indexed(model, index, commit, sizes)]
        if name in sizes:
            return [*small, name]
    if MANIFEST in sizes:
        return [MANIFEST, *_listed(model, commit, sizes)]
    if PARAMS in sizes:
        if WHOLE in sizes:
            return [*small, PARAMS, WHOLE]
        if f"{WHOLE}.index.json" in sizes:
            index = f"{WHOLE}.index.json"
            return [*small, PARAMS, index, *_indexed(model, index, commit, sizes)]
        if shards := sorted(name for name in sizes if SHARD.fullmatch(name)):
            return [*small, PARAMS, *shards]
    raise CheckpointError(
        f"{model}: the Hub has no {', no '.join(SINGLE)} and no params.json with consolidated files of it",
        "choose a model with weights in one of these forms",
    )


def _listed(model: Named, commit: str, sizes: Mapping[str, int]) -> list[str]:
    """The files of a checkpoint of neoxkit's. Those which the Hub does not have are an error."""
    import huggingface_hub

    path = huggingface_hub.hf_hub_download(model.name, MANIFEST, revision=commit, etag_timeout=PATIENCE)
    files = [each.path for each in parse(Path(path).read_bytes(), f"{model}: {MANIFEST}").files]
    if missing := [name for name in files if name not in sizes]:
        raise CheckpointError(
            f"{model}: the Hub has no {missing[0]}, which its manifest names", "choose another revision"
        )
    return files


def _indexed(model: Named, index: str, commit: str, sizes: Mapping[str, int]) -> list[str]:
    """The weight files that an index names. Those which the Hub does not have are an error."""
    import huggingface_hub

    path = huggingface_hub.hf_hub_download(model.name, index, revision=commit, etag_timeout=PATIENCE)
    try:
        files = sorted({str(name) for name in json.loads(Path(path).read_bytes())["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{model}: {index} is not an index of weights ({error})", "choose another model"
        ) from None
    if missing := [name for name in files if name not in sizes]:
        raise CheckpointError(f"{model}: the Hub has no {missing[0]}, which {index} names", "choose another revision")
    return files


def _cached(model: Named, why: str, error: Exception) -> Fetched:
    """What the cache holds of a model."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                model.name, revision=model.revision, local_files_only=True, allow_patterns=[]
            )
        )
    except (LocalEntryNotFoundError, ValueError):
        raise CheckpointError(
            f"{model}: no such file or folder, {why}, and the Hub's cache has no such model",
            "check the path, or try again with a network",
        ) from error
    warn(f"{model}: {why}; the cached commit {folder.name[:12]} is used")
    return Fetched(folder, f"{model.name}@{folder.name}")


def _refused(model: Named, error: Any) -> CheckpointError:
    """What the Hub's answer means, and what to do."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return CheckpointError(
            f"{model}: its makers give it only to people who accept their terms",
            f"accept them at https://huggingface.co/{model.name}, then log in: hf auth login, or set HF_TOKEN",
        )
    if isinstance(error, RevisionNotFoundError):
        return CheckpointError(f"{model}: the model has no such revision", "choose a branch, a tag or a commit of it")
    if isinstance(error, RepositoryNotFoundError):
        return CheckpointError(
            f"{model}: no such file or folder, and no such model on the Hub, or a private one",
            "check the name, or log in: hf auth login, or set HF_TOKEN",
        )
    status = getattr(error.response, "status_code", "an error")
    return CheckpointError(f"{model}: the Hub answers {status}: {_first_line(error)}", "try again later")


def _first_line(error: BaseException) -> str:
    """What an error says, in short."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def shown(what: str | None, size: int) -> Iterator[None]:
    """huggingface_hub's own bars on a terminal; elsewhere one line at the end, as for all long work.

    Without a `what`, nothing is shown at all: for work that is over at once.

    Its log is held back: five lines for each attempt to go on, before an error that says the same.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    level, bars = logging.get_verbosity(), not are_progress_bars_disabled()
    logging.set_verbosity_error()
    try:
        if sys.stderr.isatty() and what is not None:
            yield
            return
        disable_progress_bars()
        if what is None:
            yield
            return
        with progress(what, size):
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            enable_progress_bars()

"""A repository of the Hub: what a revision of it holds, and how files get there. No torch.

Weights are sent first, each by itself, and nobody sees them: they are objects without a name. One
commit then names them all, with the configuration, the index and the card, and takes away what they
replace. So a reader of the branch sees the old model or the new one, and never a part of either.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neoxkit.convert.hf_sink import ORIGIN
from neoxkit.convert.hub import PATIENCE, Named, shown
from neoxkit.convert.push.asking import LATER, asked, telling
from neoxkit.errors import CheckpointError, NeoxkitError
from neoxkit.log import warn

MAIN = "main"
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Held:
    """What a revision holds: nothing, when there is no such revision (`head` is None).

    `private` is None when there is no such repository either. `sums` are the sha256 of files in large
    storage, and git's blob ids of the others. `origin` is what its neoxkit.json says, if it has one.
    """

    private: bool | None = None
    head: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    sums: Mapping[str, str] = field(default_factory=dict)
    origin: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Sent:
    """What names a file in a commit (an operation of huggingface_hub), and the sum that the Hub will tell of it."""

    operation: Any
    sum: str

    @property
    def name(self) -> str:
        """The file's path in the repository."""
        return str(self.operation.path_in_repo)


class Repository:
    """A repository's revision, asked and written to with the token of the environment or of the login store."""

    def __init__(self, target: Named) -> None:
        from huggingface_hub import HfApi

        from neoxkit import __version__

        self.name, self.revision = target.name, target.revision or MAIN
        self._api = HfApi(library_name="neoxkit", library_version=__version__)
        self.url = f"{self._api.endpoint}/{self.name}"

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}"

    def look(self) -> Held:
        """What is there now. Raises CheckpointError when the Hub cannot be asked."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        def info(revision: str | None) -> Any:
            return self._api.model_info(self.name, revision=revision, files_metadata=True, timeout=PATIENCE)

        missing = RepositoryNotFoundError, RevisionNotFoundError
        try:
            about = asked(str(self), lambda: info(self.revision), missing)
        except RevisionNotFoundError:
            return Held(private=bool(asked(str(self), lambda: info(None)).private))
        except RepositoryNotFoundError:
            return Held()
        sizes, sums = {}, {}
        for each in about.siblings or ():
            sizes[each.rfilename] = each.size or 0
            sums[each.rfilename] = str(each.lfs.sha256 if each.lfs is not None else each.blob_id)
        head = str(about.sha)
        return Held(bool(about.private), head, sizes, sums, self._origin(head) if ORIGIN in sizes else None)

    def _origin(self, commit: str) -> Mapping[str, Any] | None:
        try:
            found = json.loads(self.read(ORIGIN, commit))
        except (ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def read(self, name: str, commit: str) -> bytes:
        """A small file of a commit."""
        return Path(asked(str(self), lambda: self._api.hf_hub_download(self.name, name, revision=commit))).read_bytes()

    def make(self, held: Held, private: bool) -> Held:
        """Make the repository and the branch, unless they are there; returns what the branch then holds.

        A new branch begins at the first commit of the repository, which holds no model: what is at
        another branch must not be taken for it. Raises CheckpointError when the repository is public
        and is wanted private, and when the revision is no branch.
        """
        if held.private is None:
            # given only when asked for: else an organisation's own rule decides
            asked(str(self), lambda: self._api.create_repo(self.name, private=private or None, exist_ok=True))
            held = self.look()
            if held.private is None:
                raise CheckpointError(
                    f"{self.name}: there is such a repository, and the token may not see it",
                    "log in with one that may, or choose another name",
                )
        if private and not held.private:
            raise CheckpointError(
                f"{self.name} is there, and public", "make it private on its page, or leave --private out"
            )
        self._check_branch(held)
        if held.head is None:
            first = asked(str(self), lambda: self._api.list_repo_commits(self.name))[-1].commit_id
            asked(
                str(self),
                lambda: self._api.create_branch(self.name, branch=self.revision, revision=first, exist_ok=True),
            )
            held = self.look()
        return held

    def _check_branch(self, held: Held) -> None:
        """Raise CheckpointError for a revision that nothing can be added to."""
        if self.revision == MAIN or self.revision.startswith("refs/pr/"):
            return
        if held.head is not None:
            refs = asked(str(self), lambda: self._api.list_repo_refs(self.name))
            if self.revision not in {each.name for each in refs.branches}:
                raise CheckpointError(f"{self}: a tag or a commit, which cannot be added to", "name a branch")
        elif _COMMIT.fullmatch(self.revision) or self.revision.startswith("refs/"):
            raise CheckpointError(f"{self}: no such commit, and no name for a branch", "name a branch")

    def validate(self, card: bytes) -> None:
        """Let the Hub look at a card's metadata. Raises CheckpointError with what it has against it."""
        from huggingface_hub import ModelCard

        try:
            asked(str(self), lambda: ModelCard(card.decode()).validate(), (ValueError,))
        except NeoxkitError:
            raise
        except ValueError as error:
            said = "; ".join(re.findall(r'"message":\s*"((?:[^"\\]|\\.)*)"', str(error))) or str(error)
            said = said.replace('\\"', '"')
            raise CheckpointError(f"{self}: the Hub refuses the card: {said}", "correct what it names") from error

    def send(self, files: Mapping[str, Path | bytes], told: str | None = None) -> list[Sent]:
        """Send the bytes of files, if the Hub has them not yet; returns what names each in a commit.

        They may be removed then. `told` is what progress is shown as. Raises CheckpointError as `asked`
        does, and when the repository's .gitignore would keep a file out.
        """
        from huggingface_hub import CommitOperationAdd

        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        where = f"{self}: {operations[0].path_in_repo}" if len(operations) == 1 else str(self)
        with shown(told, sum(each.upload_info.size for each in operations)), telling(where):
            asked(
                where,
                lambda: self._api.preupload_lfs_files(self.name, operations, revision=self.revision, free_memory=False),
            )
        return [self._sent(each, files[each.path_in_repo]) for each in operations]

    def _sent(self, operation: Any, content: Path | bytes) -> Sent:
        from huggingface_hub import CommitOperationAdd

        name = operation.path_in_repo
        if operation._should_ignore:
            raise CheckpointError(f"{self}: its .gitignore keeps {name} out", "remove the line from it")
        if operation._is_uploaded:
            found = Sent(operation, operation.upload_info.sha256.hex())
            operation.path_or_fileobj = b""  # it is sent, and may be removed
            return found
        data = content if isinstance(content, bytes) else content.read_bytes()  # the Hub wants it in the commit itself
        return Sent(operation if isinstance(content, bytes) else CommitOperationAdd(name, data), blob_id(data))

    def copied(self, name: str, revision: str, held: Held) -> Sent:
        """A file that another revision, which holds `held`, has already."""
        from huggingface_hub import CommitOperationCopy

        return Sent(CommitOperationCopy(name, name, src_revision=revision), held.sums[name])

    def publish(self, head: str, files: Sequence[Sent], gone: Iterable[str], message: str) -> str:
        """Name what was sent, and take `gone` away, in one commit on top of `head`; returns the new head.

        A commit whose answer was lost is looked for before it is made again. Raises CheckpointError
        when the branch is no longer at `head`.
        """
        from huggingface_hub import CommitOperationDelete

        operations = [*(each.operation for each in files), *(CommitOperationDelete(name) for name in gone)]
        doubtful = False

        def commit() -> str:
            nonlocal doubtful
            if doubtful and (now := self.look()).head != head:
                if any(name in now.sizes for name in gone) or any(now.sums.get(e.name) != e.sum for e in files):
                    raise CheckpointError(f"{self}: somebody else has changed it meanwhile", LATER)
                return str(now.head)
            doubtful = True
            made = self._api.create_commit(
                self.name, operations, commit_message=message, revision=self.revision, parent_commit=head
            )
            return str(made.oid)

        with warnings.catch_warnings(record=True) as said, shown(None, 0), telling(str(self)):
            warnings.simplefilter("always")
            oid = asked(str(self), commit)
        for each in said:
            warn(f"{self}: {' '.join(str(each.message).split())}")
        return oid


def blob_id(data: bytes) -> str:
    """Git's id of a file, by which the Hub tells of small ones."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

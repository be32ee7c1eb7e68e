"""Publishing: a checkpoint as a revision of a repository on the Hub, or every checkpoint of a run as one each."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from neoxkit import __version__
from neoxkit.checkpoint.folder import list_checkpoints
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.checkpoint.store import Place
from neoxkit.convert.hub import Named
from neoxkit.convert.model_card import CARD
from neoxkit.convert.push.card import Said, is_model, no_token, written
from neoxkit.convert.push.content import NATIVE, AsItIs, Content, Exported
from neoxkit.convert.push.repository import Held, Repository, Sent, blob_id
from neoxkit.convert.push.results import check
from neoxkit.convert.transfer import MOST_SHARD, choose_family
from neoxkit.data.tokenizer import NAMES
from neoxkit.errors import CheckpointError
from neoxkit.log import counted, note, warn

_WEIGHTS = re.compile(
    r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?|tf_model\.h5|flax_model\.msgpack"
)
"""Files that a reader would take for the model, were they left beside another's."""


@dataclass(frozen=True)
class Order:
    """How a checkpoint is to be published.

    `form` is a family's name, "auto" for the one that fits, or "neoxkit" for the checkpoint as it is;
    `dtype` and `most` (bytes of a weight file) are for families.
    """

    form: str = "auto"
    dtype: str | None = None
    most: int = MOST_SHARD
    private: bool = False
    force: bool = False
    said: Said = field(default_factory=Said)


@dataclass(frozen=True)
class Published:
    """What came of a push, or, where `commit` is None, would come of it."""

    target: Named
    content: Content
    held: Held
    url: str
    commit: str | None = None

    def json(self) -> dict[str, Any]:
        """What a push came to, ready for JSON.

        repo, revision    ORG/NAME, and the branch
        model             the fingerprint of the weights
        form              the family that they were exported as, or "neoxkit" for the checkpoint as it is
        step              the step of the checkpoint
        commit, url       the branch's commit, and its address; commit is null when nothing was done (--dry-run)
        before            what the branch held: null for nothing, else a fingerprint, or "unknown"
        files             {path: bytes} of the weight files
        """
        origin = self.content.origin
        return {
            "repo": self.target.name,
            "revision": self.target.revision or "main",
            "model": origin["model"],
            "form": origin["form"],
            "step": origin["step"],
            "commit": self.commit,
            "url": self.url,
            "before": (self.held.origin or {}).get("model", "unknown") if is_model(self.held) else None,
            "files": dict(self.content.sizes),
        }


def contents(checkpoint: Checkpoint, target: Named, order: Order) -> Content:
    """The files that would be published. Raises ConversionError when the model does not fit the family."""
    if order.form == NATIVE:
        return AsItIs(checkpoint, target)
    return Exported(checkpoint, choose_family(checkpoint, order.form), order.dtype, order.most, target)


def look(checkpoint: Checkpoint, target: Named, order: Order, known: Collection[str] = ()) -> Published:
    """What `publish` would do: the same checks, and nothing is written. Raises as it does."""
    content, repository = contents(checkpoint, target, order), Repository(target)
    check(order.said.results, checkpoint.fingerprint)
    held = repository.look()
    _check(repository, held, content, order, known)
    return Published(target, content, held, repository.url)


def publish(
    checkpoint: Checkpoint,
    target: Named,
    order: Order,
    known: Collection[str] = (),
    beside: tuple[str, Held] | None = None,
) -> Published:
    """Publish a checkpoint as a revision of a repository; both are made when they are not there.

    `known` are fingerprints of models that may be replaced without force; `beside` is another revision
    which has the same weight files, and what it holds. What was sent by an attempt that was interrupted
    is not sent again. Raises CheckpointError when the Hub refuses or cannot be reached, the token is
    missing, or the revision holds another model; ConversionError when the model does not fit the family.
    """
    found = look_first(checkpoint, target, order, known)
    content, repository = found.content, Repository(target)
    for said in content.cautions():
        warn(said)
    held = repository.make(found.held, order.private)
    assert held.head is not None
    theirs = repository.read(CARD, held.head) if CARD in held.sizes else None
    card = written(content, theirs, held, order.said, target.name)
    repository.validate(card)
    changed = _changed(content.small, held)
    small = repository.send(changed) if changed else []  # before the weights: who may not write is told at once
    weights: list[Sent] = []
    if beside is not None:
        weights = [repository.copied(name, *beside) for name in content.sizes]
    elif _is_there(held, content):
        note(f"{repository}: its weights are there already")
    else:
        with closing(content.weights()) as made:
            for name, path in made:
                told = f"push {repository}: {name} ({len(weights) + 1} of {len(content.sizes)})"
                weights += repository.send({name: path}, told)
    message = f"Model {content.origin['model']} of step {content.origin['step']:,}, by neoxkit {__version__}"
    files = [*weights, *small, *repository.send({CARD: card})]
    commit = repository.publish(held.head, files, _gone(held, content), message)
    return Published(target, content, found.held, f"{repository.url}/tree/{repository.revision}", commit)


def look_first(checkpoint: Checkpoint, target: Named, order: Order, known: Collection[str]) -> Published:
    """As `look`, for one who is logged in. Raises CheckpointError for one who is not, before all else."""
    from huggingface_hub.utils import get_token

    if get_token() is None:
        raise no_token(target)
    return look(checkpoint, target, order, known)


def _check(repository: Repository, held: Held, content: Content, order: Order, known: Collection[str]) -> None:
    """Raise CheckpointError when a revision holds a model that may not be replaced."""
    if order.force or not is_model(held):
        return
    model = (held.origin or {}).get("model")
    if model is not None and model in (content.origin["model"], *known):
        return
    what = f"the model {model}" if model else "a model that neoxkit did not publish"
    raise CheckpointError(
        f"{repository} holds {what}, and this is {content.origin['model']}",
        "choose another --revision, or give --force: what is replaced stays in the repository's history",
    )


def _is_there(held: Held, content: Content) -> bool:
    """Whether a revision has these weights, in these files, already."""
    if held.origin is None or any(held.origin.get(key) != content.origin[key] for key in ("model", "form", "files")):
        return False
    return all(held.sizes.get(name) == size for name, size in content.sizes.items())


def _changed(files: Mapping[str, bytes], held: Held) -> dict[str, bytes]:
    """The files that a revision has not, or with other contents."""
    return {
        name: data
        for name, data in files.items()
        if held.sums.get(name) not in (blob_id(data), hashlib.sha256(data).hexdigest())
    }


def _gone(held: Held, content: Content) -> list[str]:
    """The files of a revision that would be taken for a part of the new model, and are not."""
    old = held.origin or {}
    listed: Mapping[str, Any] = old["files"] if isinstance(old.get("files"), dict) else {}
    another = old.get("model") != content.origin["model"] or old.get("form") != content.origin["form"]

    def stale(name: str) -> bool:
        beside = name in NAMES or (old.get("form") == NATIVE and name.startswith(("tokenizer/", "trainer/")))
        if old.get("form") == NATIVE and name in ("manifest.json", "run.yaml"):
            beside = True
        return name in listed or _WEIGHTS.fullmatch(name) is not None or (another and is_model(held) and beside)

    return sorted(name for name in held.sizes if stale(name) and name not in {*content.sizes, *content.small})


def publish_run(run: Place, name: str, order: Order, dry_run: bool = False) -> Iterator[Published]:
    """Publish every checkpoint of a run as the revision stepN, oldest first, and the newest as main too.

    A revision that has its checkpoint already is passed over. Main may hold another checkpoint of the
    run: it moves on. A checkpoint that is damaged is warned of, and passed over. Raises CheckpointError
    when the run has none, and as `publish` does; what was published before stays.
    """
    checkpoints = list(_valid(run))
    if not checkpoints:
        raise CheckpointError(f"{run}: not a run's folder with checkpoints", "leave --every-step out, or name a run")
    note(f"{run}: {counted(len(checkpoints), 'checkpoint')}, the last of step {checkpoints[-1].manifest.step:,}")
    known = {each.fingerprint for each in checkpoints}
    act = look if dry_run else publish
    for each in checkpoints:
        last = f"step{each.manifest.step}"
        with each:
            yield act(each, Named(name, last), order)
    newest, main = checkpoints[-1], Named(name, None)
    if dry_run:
        yield look(newest, main, order, known)
        return
    before = Repository(main).look()
    if before.origin is not None:
        known |= _published(name, before.origin)
    yield publish(newest, main, order, known, (last, Repository(Named(name, last)).look()))


def _published(name: str, origin: Mapping[str, Any]) -> set[str]:
    """The model that main holds, if it is also that of its own step: then nothing is lost when main moves on."""
    step = Repository(Named(name, f"step{origin.get('step')}")).look()
    return (
        {str(origin["model"])} if step.origin is not None and step.origin.get("model") == origin.get("model") else set()
    )


def _valid(run: Place) -> Iterator[Checkpoint]:
    for path in list_checkpoints(run) if run.is_dir() else []:
        try:
            yield Checkpoint.open(path)
        except CheckpointError as error:
            warn(f"{path} is passed over: {error.cause}")

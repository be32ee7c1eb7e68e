"""The card of a published model: what neoxkit knows, what people have added, results of evaluations. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neoxkit.checkpoint.format import CONFIG, MANIFEST
from neoxkit.convert.hub import Named, shown
from neoxkit.convert.model_card import CARD
from neoxkit.convert.push.content import Content
from neoxkit.convert.push.repository import MAIN, Held, Repository
from neoxkit.convert.push.results import Results, check, include, measured
from neoxkit.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard


@dataclass(frozen=True)
class Said:
    """What only people know of a model: the Hub's name of its licence, names of data sets there, evaluations."""

    licence: str | None = None
    data: tuple[str, ...] = ()
    results: tuple[Results, ...] = ()


def written(content: Content, theirs: bytes | None, held: Held, said: Said, name: str) -> bytes:
    """The card to publish: of the content's own, and of `theirs`, which is there already.

    Where the revision holds the same model in the same form, their text stays, and so does what they
    say of it. Where it holds another, ours takes its place, and of theirs only the licence, languages
    and the like stay; results too, if only the form is another. Where it holds none, ours comes after
    their text. Raises CheckpointError when theirs cannot be read.
    """
    card, known, model = _parsed(content.card, name), held.origin or {}, name.rpartition("/")[2]
    if theirs is not None and theirs.strip():
        old = _parsed(theirs, name)
        alike = known.get("model") == content.origin["model"]
        if alike and known.get("form") == content.origin["form"]:
            if said == Said():
                return theirs  # to the last comment
            card = old
        else:
            _keep(card.data, old.data)
            include(card, _results(old) if alike else (), model)
            if old.text.strip() and not is_model(held):
                card.text = f"{old.text.rstrip()}\n{card.text}"
    data: Any = card.data
    data.license = said.licence or data.license
    data.datasets = list(said.data) or data.datasets
    include(card, measured(said.results), model)
    return str(card).encode()


def _keep(data: Any, old: Any) -> None:
    """Keep what people said, but for results, which may be of another model."""
    for key, value in old.to_dict().items():
        if key not in ("model-index", "base_model", "tags") and data.get(key) is None:
            data[key] = value
    data.tags = [*data.tags, *(tag for tag in old.tags or () if tag not in data.tags)]


def _results(card: Any) -> Sequence[EvalResult]:
    """The evaluations that a card's metadata tells of."""
    return card.data.eval_results or ()


def is_model(held: Held) -> bool:
    """Whether a revision holds a model, whoever put it there."""
    return any(name in (CONFIG, MANIFEST) or name.endswith((".safetensors", ".bin")) for name in held.sizes)


def _parsed(text: bytes, name: str) -> ModelCard:
    from huggingface_hub import ModelCard
    from yaml import YAMLError

    try:
        with shown(None, 0):
            return ModelCard(text.decode())
    except (ValueError, YAMLError) as error:
        said = " ".join(str(error).split())
        raise CheckpointError(
            f"{name}: the metadata of its {CARD} cannot be read: {said}", "mend it on the Hub, or remove it there"
        ) from error


def check_results_can_be_added(repo: str, fingerprint: str, revision: str | None = None) -> None:
    """Raise as `add_results` would for results of the model with this fingerprint, before they are there."""
    repository = Repository(Named(repo, None if revision == MAIN else revision))
    if (model := _model(_held(repository)[0])) not in (None, fingerprint):
        raise DataError(f"{repository}: it holds the model {model}, not {fingerprint}", "name that of this model")


def _held(repository: Repository) -> tuple[Held, str]:
    """What a repository holds that results can be added to, and its newest commit."""
    from huggingface_hub.utils import get_token

    if get_token() is None:
        raise no_token(repository)
    held = repository.look()
    if held.head is None:
        raise CheckpointError(f"{repository}: no such repository or revision, or a private one", "check the name")
    return held, held.head


def _model(held: Held) -> str | None:
    """The fingerprint of the model that is held, where it is known."""
    return str(held.origin["model"]) if held.origin and "model" in held.origin else None


def add_results(repo: str, results: Sequence[Results], revision: str | None = None) -> str:
    """Add results of lm-evaluation-harness to the card of a repository; returns the address of the commit.

    `repo` is ORG/NAME, `revision` a branch (main when left out); each of `results` is a results file of
    the harness, read as JSON. A number that was measured before in the same way is replaced. Raises
    CheckpointError when there is no such repository, or it cannot be written to; DataError for what is
    no results file, and for results of another model, by `config.model_sha`, than neoxkit.json names.
    """
    new = measured(results)
    repository = Repository(Named(repo, None if revision == MAIN else revision))
    for last in (False, False, True):
        held, head = _held(repository)
        check(results, _model(held))
        before = repository.read(CARD, head) if CARD in held.sizes else b"---\nlibrary_name: transformers\n---\n"
        card = _parsed(before, str(repository))
        include(card, new, repo.rpartition("/")[2])
        text = str(card).encode()
        repository.validate(text)
        try:
            commit = repository.publish(head, repository.send({CARD: text}), (), "Add results of evaluations")
        except CheckpointError:
            if last or repository.look().head == head:
                raise
            continue  # somebody else was first: their card is read anew
        return f"{repository.url}/commit/{commit}"
    raise AssertionError("the last attempt returns or raises")


def no_token(where: object) -> CheckpointError:
    """That nobody is logged in."""
    return CheckpointError(f"{where}: there is no token for the Hub", "log in: hf auth login, or set HF_TOKEN")

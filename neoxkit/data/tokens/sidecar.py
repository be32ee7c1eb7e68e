"""PREFIX.json beside PREFIX.bin and PREFIX.idx: which tokenizer made the tokens, and of how much text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from neoxkit.data.tokens.indexed import IndexedFile, pair
from neoxkit.errors import DataError
from neoxkit.log import counted

FORMAT = {"name": "neoxkit-tokens", "version": 1}


@dataclass(frozen=True)
class Sidecar:
    """What a token file does not say about itself.

    `tokens` counts the one that ends each document; `bytes` is the UTF-8 text alone, so a loss
    summed over all tokens (in nats) divided by (bytes x ln 2) is bits per byte. 0 bytes: not known.
    """

    tokenizer: str
    """The fingerprint of the tokenizer: "sha256:...", of its tokenizer.json."""
    vocab: int
    eod: int
    documents: int
    tokens: int
    bytes: int
    part: str = "all"
    """all, train or heldout."""
    holdout: float = 0.0
    sources: str = ""
    """A hash of the documents, in order."""
    skipped: dict[str, int] = field(default_factory=dict)
    """How many documents of the whole input could not be used, by kind of fault."""
    writer: str = ""
    columns: tuple[str, ...] = ()
    """What lies beside the tokens: of each NAME, the pair PREFIX-NAME."""
    options: dict[str, Any] = field(default_factory=dict)
    """What was asked for beside the tokenizer, as `tokenize` spells it: {"key": "text", "append_eod": true, ...}."""
    learned: int | None = None
    """Of how many tokens the label is a token; None without labels."""
    template: str = ""
    """A hash of the chat template that wrote the conversations, if any: "sha256:..."."""

    def check(self, vocab: int, where: str | Path) -> None:
        """Raise DataError unless a model of `vocab` entries can read the tokens at `where`."""
        if self.vocab > vocab:
            raise DataError(
                f"{where} has a vocabulary of {self.vocab}, and the model one of {vocab}", f"set vocab to {self.vocab}"
            )


def path_of(prefix: str | Path) -> Path:
    """PREFIX.json of a prefix."""
    return pair(prefix)[0].with_suffix(".json")


def write_sidecar(path: Path, content: Sidecar) -> None:
    """Write a sidecar."""
    path.write_text(json.dumps({"format": FORMAT, **asdict(content)}, indent=2) + "\n", encoding="utf-8")


def read_sidecar(prefix: str | Path) -> Sidecar | None:
    """The sidecar of a prefix; None when there is none, as with tokens that gpt-neox wrote.

    Raises DataError when it is damaged, or of a newer version.
    """
    path = path_of(prefix)
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}", "tokenize the text again") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path} does not describe tokens of {FORMAT['name']}, version 1", "tokenize the text again")
    known = {f.name: content[f.name] for f in fields(Sidecar) if f.name in content}
    integers = all(type(known.get(name)) is int for name in ("vocab", "eod", "documents", "tokens", "bytes"))
    if not integers or not isinstance(known.get("tokenizer"), str):
        raise DataError(f"{path} lacks vocab, eod, documents, tokens, bytes or tokenizer", "tokenize the text again")
    columns = known.get("columns", [])
    if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
        raise DataError(f"{path}: columns is not a list of names", "tokenize the text again")
    return Sidecar(**{**known, "columns": tuple(columns)})


def sidecar_of(file: IndexedFile) -> Sidecar | None:
    """The sidecar of opened tokens; None when there is none.

    Raises DataError as read_sidecar does, and when it speaks of other tokens.
    """
    found, held = read_sidecar(file.bin), (file.document_count, file.tokens)
    if found and (found.documents, found.tokens) != held:
        raise DataError(
            f"{path_of(file.bin)} speaks of {counted(found.documents, 'document')} and "
            f"{counted(found.tokens, 'token')}, and {file.idx.name} holds {held[0]:,} and {held[1]:,}",
            "they do not belong together; tokenize the text again",
        )
    return found


def check_prefixes(prefixes: Sequence[str], where: object, fingerprint: str | None) -> None:
    """Raise DataError unless all tokens were made by one tokenizer: that of `fingerprint`, which is at `where`.

    None, None: by that of the first. Of tokens without a sidecar nothing is known.
    """
    for prefix in prefixes:
        if (sidecar := read_sidecar(prefix)) is None:
            continue
        if fingerprint is None:
            where, fingerprint = prefix, sidecar.tokenizer
        if sidecar.tokenizer != fingerprint:
            raise DataError(
                f"{prefix} was made with tokenizer {sidecar.tokenizer}, not {fingerprint}, that of {where}",
                "name the tokenizer that made it, or tokenize the text again",
            )

"""The tokenizer's and the generation settings' files, carried across byte for byte."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from neoxkit.checkpoint.json_text import parse_object
from neoxkit.checkpoint.store import Place
from neoxkit.config.model import ModelConfig
from neoxkit.data.tokenizer import CONFIG, FILE, GENERATION, TEMPLATE, Tokenizer, tokenizer_contents
from neoxkit.data.tokenizer.kinds import TEKKEN, open_tokenizer
from neoxkit.errors import CheckpointError, ConversionError, DataError
from neoxkit.families.huggingface import read_ids
from neoxkit.families.schema import Family

RECENT_CLASSES = frozenset({"TokenizersBackend", "PythonBackend", "SentencePieceBackend"})
"""Tokenizer classes that transformers 5 writes and transformers 4 does not know."""

_SAY_NOTHING = {GENERATION, TEMPLATE, "chat_template.json"}
"""Files beside a tokenizer that are none themselves."""


@dataclass(frozen=True)
class Carried:
    """A tokenizer as a checkpoint gets it: its files by name, and the tokenizer that they make, if any.

    `why` says why they make none, though they are of one.
    """

    files: dict[str, bytes]
    tokenizer: Tokenizer | None
    why: str | None = None


def carry(path: Place) -> Carried:
    """The tokenizer at `path`, of any kind (see `open_tokenizer`): a tokenizer.json, and the files beside it.

    A folder may have none, or one that no tokenizer.json can be made of: then its files come along as they are.
    Raises DataError when there is nothing, a file is no tokenizer, or a tokenizer.json is damaged.
    """
    if not path.is_dir() or (path / FILE).is_file():
        made = open_tokenizer(path)
        return Carried(made.contents(), made)
    files = tokenizer_contents(path)
    if files.keys() <= _SAY_NOTHING and not (path / TEKKEN).is_file():
        return Carried(files, None)
    try:
        made = open_tokenizer(path)
    except (DataError, ModuleNotFoundError) as error:
        return Carried(files, None, error.cause if isinstance(error, DataError) else str(error))
    return Carried({**made.contents(), **files}, made)


def check_vocabulary(path: Place, config: ModelConfig) -> Tokenizer | None:
    """The tokenizer at `path`; None of a folder that has none. See `carry`.

    Raises ConversionError when it makes ids that the embedding has no row for.
    """
    tokenizer = carry(path).tokenizer
    if tokenizer is not None:
        check_ids(tokenizer, config)
    return tokenizer


def check_ids(tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Raise ConversionError when a tokenizer makes ids that the embedding has no row for."""
    if tokenizer.vocab > config.vocab:
        raise ConversionError(
            f"{tokenizer.path}: the tokenizer has ids up to {tokenizer.vocab - 1}, the model {config.vocab} rows",
            "use the tokenizer that the model was trained with",
        )


def stop_ids(folder: Place | None, config: ModelConfig) -> set[int]:
    """The ids that end a text: those of the configuration and of generation_config.json."""
    ids = set(config.tokens.eos)
    path = folder / GENERATION if folder is not None else None
    if path is not None and path.is_file():
        try:
            ids.update(read_ids(_json(path).get("eos_token_id")))
        except ValueError as error:
            raise CheckpointError(f"{path}: eos_token_id: {error}", "correct the file") from None
    return ids


def generation_differences(folder: Place | None, config: ModelConfig) -> list[str]:
    """Where generation_config.json names other tokens than the configuration, or none of the model's, in words.

    Both are kept as they came: an instruction-tuned model may well end a text with other tokens.
    """
    path = folder / GENERATION if folder is not None else None
    if path is None or not path.is_file():
        return []
    found, tokens = [], config.tokens
    ours = {"bos": read_ids(tokens.bos), "eos": tokens.eos, "pad": read_ids(tokens.pad)}
    for kind, known in ours.items():
        try:
            ids = read_ids(_json(path).get(f"{kind}_token_id"))
        except (CheckpointError, ValueError) as error:
            return [f"{path}: {error}"]
        if beyond := [token for token in ids if token >= config.vocab]:
            found.append(f"{path}: {kind}_token_id {beyond[0]} is no token of the model")
        elif ids and known and not set(ids) & set(known):
            said, stated = (", ".join(map(str, each)) for each in (ids, known))
            found.append(f"{path}: {kind}_token_id is {said}, the model's own is {stated}; both are kept")
    return found


def exported_files(folder: Place | None, config: ModelConfig, family: Family) -> dict[str, bytes]:
    """The files of an exported model's tokenizer and generation settings, by name.

    Everything is as it came, but for a tokenizer_config.json that only transformers 5 can read: its
    class becomes the family's classic one, which loads in every release, its list of extra special
    tokens gets its old name (transformers 4.57 stops at the new one), and a chat template from a file
    of its own, which 4.46 does not look at, is put in beside the file.
    """
    files = tokenizer_contents(folder) if folder is not None else {}
    if FILE in files:
        about = _json(folder / CONFIG) if folder is not None and CONFIG in files else {}
        if str(about.get("tokenizer_class")) in RECENT_CLASSES or CONFIG not in files:
            about["tokenizer_class"] = family.tokenizer_class
            if isinstance(about.get("extra_special_tokens"), list):
                about["additional_special_tokens"] = about.pop("extra_special_tokens")
            if TEMPLATE in files:
                about.setdefault("chat_template", files[TEMPLATE].decode("utf-8"))
            files[CONFIG] = pretty(about)
    if GENERATION not in files:
        eos = list(config.tokens.eos)
        tokens = {
            "bos_token_id": config.tokens.bos,
            "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
            "pad_token_id": config.tokens.pad,
        }
        files[GENERATION] = pretty({"_from_model_config": True, **tokens})
    return files


def pretty(tree: object) -> bytes:
    """JSON as Hugging Face's tools lay it out."""
    return json.dumps(tree, indent=2, ensure_ascii=False).encode() + b"\n"


def _json(path: Place) -> dict[str, Any]:
    return parse_object(path.read_bytes(), str(path))

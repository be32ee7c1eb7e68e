"""The tokenizer's and the generation settings' files, carried across byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from neoxkit.config.model import ModelConfig
from neoxkit.data.tokenizer import CONFIG, FILE, GENERATION, TEMPLATE, Tokenizer, tokenizer_contents
from neoxkit.errors import CheckpointError, ConversionError
from neoxkit.families.huggingface import read_ids
from neoxkit.families.schema import Family

RECENT_CLASSES = frozenset({"TokenizersBackend", "PythonBackend", "SentencePieceBackend"})
"""Tokenizer classes that transformers 5 writes and transformers 4 does not know."""


def check_vocabulary(folder: Path, config: ModelConfig) -> None:
    """Raise ConversionError when the tokenizer makes ids that the embedding has no row for."""
    if not (folder / FILE).is_file():
        return
    tokenizer = Tokenizer(folder)
    if tokenizer.vocab > config.vocab:
        raise ConversionError(
            f"{tokenizer.path}: the tokenizer has ids up to {tokenizer.vocab - 1}, the model {config.vocab} rows",
            "use the tokenizer that the model was trained with",
        )


def stop_ids(folder: Path | None, config: ModelConfig) -> set[int]:
    """The ids that end a text: those of the configuration and of generation_config.json."""
    ids = set(config.tokens.eos)
    path = folder / GENERATION if folder is not None else None
    if path is not None and path.is_file():
        try:
            ids.update(read_ids(_json(path).get("eos_token_id")))
        except ValueError as error:
            raise CheckpointError(f"{path}: eos_token_id: {error}", "correct the file") from None
    return ids


def exported_files(folder: Path | None, config: ModelConfig, family: Family) -> dict[str, bytes]:
    """The files of an exported model's tokenizer and generation settings, by name.

    Everything is as it came, but for a tokenizer_config.json that only transformers 5 can read: its
    class becomes the family's classic one, which loads in every release, its list of extra special
    tokens gets its old name (transformers 4.57 stops at the new one), and a chat template from a file
    of its own, which 4.46 does not look at, is put in beside the file.
    """
    files = tokenizer_contents(folder) if folder is not None else {}
    if FILE in files:
        about = _json(folder / CONFIG) if folder is not None and CONFIG in files else {}
        if about.get("tokenizer_class") in RECENT_CLASSES or CONFIG not in files:
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


def _json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})", "fetch it again") from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: not a JSON object", "fetch it again")
    return tree

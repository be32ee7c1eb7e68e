"""params.json of Meta and Mistral as our configuration; what it leaves out is taken from the tensors.

What neither says is assumed by evidence, and told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neoxkit.config.model import ModelConfig
from neoxkit.convert.meta_files import MetaFiles
from neoxkit.convert.weight_names import PARAMS
from neoxkit.errors import CheckpointError, ConversionError
from neoxkit.families.huggingface import read_number
from neoxkit.families.meta import META_LLAMA, META_MISTRAL, OTHER_MATHEMATICS
from neoxkit.families.schema import Family
from neoxkit.families.spelling import read_config, unknown_keys
from neoxkit.log import warn

ASSUMPTIONS = ("context", "rope-factor")
"""What `--assume KEY=VALUE` may say of these files."""

LLAMA_3_VOCAB = 128_256

FACTORS = {(4096, 32): 8.0, (8192, 80): 8.0, (16384, 126): 8.0, (2048, 16): 32.0, (3072, 28): 32.0}
"""The rotary factor of the published sizes, by width and depth: 8B, 70B and 405B of Llama 3.1; 1B and 3B of 3.2.

huggingface.co/meta-llama, `rope_scaling` of each config.json. Their params.json are silent.
"""


@dataclass(frozen=True)
class Params:
    """A model's family and configuration, and what had to be assumed, one line each."""

    family: Family
    config: ModelConfig
    assumed: tuple[str, ...]


def read_params(folder: Path, files: MetaFiles, assume: Mapping[str, str]) -> Params:
    """The configuration of the model in a folder.

    Raises CheckpointError when params.json cannot be read, ConversionError when it contradicts the
    tensors, when it asks for what neoxkit does not compute, and when what it leaves out cannot be known.
    """
    where = str(folder / PARAMS)
    theirs = _json(folder / PARAMS)
    for key in assume:
        if key not in ASSUMPTIONS:
            raise ConversionError(f"{where}: nothing to assume for {key!r}", f"choose from {', '.join(ASSUMPTIONS)}")
    for key in OTHER_MATHEMATICS:
        if theirs.get(key):
            raise ConversionError(f"{where}: {key} is {theirs[key]!r}", "neoxkit does not compute this model")
    mistral = any(key in theirs for key in ("sliding_window", "hidden_dim", "head_dim"))
    family = META_MISTRAL if mistral else META_LLAMA
    if unknown := unknown_keys(family, theirs):
        warn(f"{where}: keys that neoxkit does not know are passed over: {', '.join(unknown)}")
    filled, assumed = dict(theirs), []
    _from_tensors(filled, files, where)
    vocab = filled["vocab_size"]
    if vocab == LLAMA_3_VOCAB and not mistral:
        filled.setdefault("bos_id", 128_000)
        filled.setdefault("eos_ids", [128_001])
        assumed.append("tokens 128000 and 128001 begin and end a text, as in Llama 3's base models")
    if filled.get("use_scaled_rope"):
        filled["rope_scaling"], said = _scaling(filled, assume, where)
        assumed += said
    elif "rope-factor" in assume:
        raise ConversionError(f"{where}: it does not scale rotary positions", "leave --assume rope-factor out")
    if "context" in assume:
        filled["max_seq_len"] = int(_number(assume, "context"))
    elif filled.get("max_seq_len") is None:
        filled["max_seq_len"], why = _context(filled, files, mistral)
        assumed.append(f"context {filled['max_seq_len']} ({why}; or --assume context=N)")
    return Params(family, read_config(family, filled, where), tuple(assumed))


def _json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}", "fetch it again") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})", "fetch it again") from error
    if isinstance(tree, dict) and isinstance(tree.get("model"), dict):
        tree = tree["model"]
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: not a JSON object", "fetch it again")
    return tree


def _number(assume: Mapping[str, str], key: str) -> float:
    """The positive number that was assumed."""
    try:
        number = read_number(float(assume[key]))
        if number <= 0 or (key == "context" and not number.is_integer()):
            raise ValueError
    except ValueError:
        raise ConversionError(f"--assume {key}={assume[key]}: not a number of this kind", f"write {key}=8192") from None
    return number


def _from_tensors(filled: dict[str, Any], files: MetaFiles, where: str) -> None:
    """Vocabulary, FFN width and whether the head is tied, which the tensors know best."""
    tied = "output.weight" not in files.dims or files.same("output.weight", "tok_embeddings.weight")
    filled["tied_embeddings"] = tied
    rows = files.shape("tok_embeddings.weight" if tied else "output.weight")[0]
    if filled.get("vocab_size") in (None, -1):
        filled["vocab_size"] = rows
    _agree(where, "vocab_size", filled["vocab_size"], rows, "the embedding has {} rows")
    hidden = files.shape("layers.0.feed_forward.w1.weight")[0]
    if filled.get("hidden_dim") is not None:
        _agree(where, "hidden_dim", filled["hidden_dim"], hidden, "the tensors have {} rows")
    elif type(filled.get("multiple_of")) is int and type(filled.get("dim")) is int and filled["multiple_of"] > 0:
        given = _hidden(filled["dim"], filled["multiple_of"], filled.get("ffn_dim_multiplier"))
        said = f"the FFN width that dim {filled['dim']} and multiple_of {filled['multiple_of']} make"
        _agree(where, said, given, hidden, "the tensors have {} rows")
    filled["hidden_dim"] = hidden


def _agree(where: str, what: str, stated: object, held: int, tensors: str) -> None:
    if stated != held:
        raise ConversionError(
            f"{where}: {what} is {stated}, but {tensors.format(held)}",
            "is params.json the one that belongs to these weights, and are all shards there?",
        )


def _hidden(dim: int, multiple_of: int, multiplier: object) -> int:
    """FFN width as Meta's reference model computes it."""
    hidden = int(2 * (4 * dim) / 3)
    if isinstance(multiplier, float | int):
        hidden = int(multiplier * hidden)
    return multiple_of * ((hidden + multiple_of - 1) // multiple_of)


def _scaling(filled: Mapping[str, Any], assume: Mapping[str, str], where: str) -> tuple[dict[str, Any], list[str]]:
    """Llama 3.1's rotary scaling, and what of it was assumed: the files do not hold its constants."""
    assumed = []
    stated = filled.get("rope_scaling_factor")
    if "rope-factor" in assume:
        factor = _number(assume, "rope-factor")
    elif stated is not None:
        factor = _stated(stated, "rope_scaling_factor", where)
    else:
        size = (filled.get("dim"), filled.get("n_layers"))
        if filled["vocab_size"] != LLAMA_3_VOCAB or size not in FACTORS:
            raise ConversionError(
                f"{where}: it scales rotary positions, does not say by how much, and is of no published size",
                "add --assume rope-factor=8 (Llama 3.1), or rope-factor=32 (Llama 3.2)",
            )
        factor = FACTORS[size]
        assumed.append(f"rotary factor {factor:g}, as in the published model of this size (or --assume rope-factor=N)")
    high = filled.get("rope_high_freq_factor")
    return {
        "kind": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0 if high is None else _stated(high, "rope_high_freq_factor", where),
        "original_context": 8192,
    }, assumed


def _stated(value: object, key: str, where: str) -> float:
    try:
        return read_number(value)
    except ValueError as error:
        raise ConversionError(f"{where}: {key} = {value!r}: {error}", "this value is not supported") from None


def _context(filled: Mapping[str, Any], files: MetaFiles, mistral: bool) -> tuple[int, str]:
    """The longest sequence that a model was trained for, and by which evidence. It changes no logit."""
    if mistral:
        return 32_768, "as Mistral 7B has"
    if filled.get("use_scaled_rope"):
        return 131_072, "as Llama 3.1 and 3.2 have"
    if filled["vocab_size"] == LLAMA_3_VOCAB:
        return 8192, "as Llama 3 has, by its vocabulary"
    if filled.get("rope_theta") not in (None, 10_000, 10_000.0):
        return 16_384, "as CodeLlama has, by its rope_theta"
    if filled.get("n_kv_heads") is not None or files.dtype("norm.weight") == "BF16":
        return 4096, "as Llama 2 has, by its n_kv_heads or bf16"
    return 2048, "as Llama 1 has; Llama 2 has 4096"

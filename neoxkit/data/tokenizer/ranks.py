"""Byte-pair ranks, as tiktoken and Mistral's tekken.json have them, as a `tokenizers` tokenizer with the same ids.

A rank file lists the bytes of each token; the rank says which two neighbours are joined first. In a
tokenizer.json the ways to divide each token into two are its merges, in the order of the ranks, and a piece that is
a token as a whole is taken as it is. tiktoken itself then reads some texts, and what it reads otherwise is refused.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from neoxkit.data.tokenizer.probes import PROBES, differing
from neoxkit.errors import DataError

LLAMA3_RANKS = 128_000
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_NAMED = {0: "begin_of_text", 1: "end_of_text", 4: "finetune_right_pad_id", 6: "start_header_id",
                7: "end_header_id", 8: "eom_id", 9: "eot_id", 10: "python_tag"}  # fmt: skip
"""Special tokens of Llama 3.1, counted from the end of the ranks; the others of the 256 are reserved."""

KNOWN = ("r50k_base", "p50k_base", "cl100k_base", "o200k_base", "o200k_harmony", "p50k_edit", "gpt2")
"""The encodings that tiktoken knows by name."""

EOD = "<|endoftext|>"
R50K_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
CL100K_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
O200K_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
OPENAI: dict[int, tuple[str, str, dict[str, int]]] = {
    50_256: ("r50k_base", R50K_PATTERN, {EOD: 50_256}),
    50_280: ("p50k_base", R50K_PATTERN, {EOD: 50_256}),
    100_256: (
        "cl100k_base",
        CL100K_PATTERN,
        {EOD: 100_257, "<|fim_prefix|>": 100_258, "<|fim_middle|>": 100_259, "<|fim_suffix|>": 100_260,
         "<|endofprompt|>": 100_276},
    ),
    199_998: ("o200k_base", O200K_PATTERN, {EOD: 199_999, "<|endofprompt|>": 200_018}),
}  # fmt: skip
"""By the number of ranks: the name, how text is cut, and the special tokens, as tiktoken has them in its code."""


@dataclass(frozen=True)
class Encoding:
    """What defines a tokenizer of ranks: how text is cut, the id of each string of bytes, and special tokens."""

    name: str
    pattern: str
    ranks: Mapping[bytes, int]
    special: Mapping[str, int]
    bos: str | None = None
    eos: str | None = None
    pad: str | None = None
    first: int = 0
    """The id of rank 0."""


def named(name: str) -> Encoding:
    """One of tiktoken's encodings by its name, from its cache or, with a network, from its makers.

    Raises DataError when it cannot be had, ModuleNotFoundError without tiktoken.
    """
    import tiktoken

    try:
        found = tiktoken.get_encoding(name)
    except (OSError, ValueError) as error:  # the errors of requests are OSErrors
        raise DataError(
            f"tiktoken has no {name} in its cache and cannot fetch it ({type(error).__name__})",
            f"set TIKTOKEN_CACHE_DIR to a folder that has it, give the file {name}.tiktoken, or try with a network",
        ) from None
    return Encoding(name, found._pat_str, found._mergeable_ranks, found._special_tokens, eos=EOD)


def of_tiktoken_file(content: bytes, where: str) -> Encoding:
    """The encoding of a .tiktoken file, which does not say how text is cut: known by how many ranks it has.

    Those are OpenAI's, and the tokenizer.model of Llama 3. Raises DataError for another.
    """
    ranks = _read_ranks(content, where)
    if len(ranks) == LLAMA3_RANKS:
        first = "<|begin_of_text|>"
        special = dict(_llama3_special())
        return Encoding("llama3", LLAMA3_PATTERN, ranks, special, first, "<|end_of_text|>", "<|finetune_right_pad_id|>")
    if len(ranks) not in OPENAI:
        raise DataError(
            f"{where} has {len(ranks):,} ranks, and of no tokenizer of that size is it known how it cuts text",
            "use a tokenizer.json that its makers publish",
        )
    name, pattern, special = OPENAI[len(ranks)]
    return Encoding(name, pattern, ranks, special, eos=EOD)


def of_tekken(content: bytes, where: str) -> Encoding:
    """The encoding of Mistral's tekken.json. Raises DataError when it is none."""
    try:
        tree = json.loads(content)
        config = tree["config"]
        reserved = int(config["default_num_special_tokens"])
        size = int(config["default_vocab_size"]) - reserved
        ranks = {base64.b64decode(each["token_bytes"]): int(each["rank"]) for each in tree["vocab"][:size]}
        listed = {int(each["rank"]): str(each["token_str"]) for each in tree.get("special_tokens") or ()}
        pattern = str(config["pattern"])
    except (ValueError, TypeError, KeyError, RecursionError, binascii.Error) as error:
        raise DataError(f"{where} is no tekken.json: {error!r:.80}", "give the file that Mistral publishes") from None
    listed = listed or dict(enumerate(TEKKEN))
    special = {listed.get(number, f"<SPECIAL_{number}>"): number for number in range(reserved)}
    pad = "<pad>" if "<pad>" in special else None
    return Encoding("tekken", pattern, ranks, special, "<s>", "</s>", pad, reserved)


TEKKEN = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
           "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]",
           "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]")  # fmt: skip
"""Special tokens of a tekken.json that lists none; mistral-common has them in its code."""


def convert(encoding: Encoding, where: str) -> tokenizers.Tokenizer:
    """The `tokenizers` tokenizer with the ids of an encoding. `where` names it in an error.

    Names of special tokens in a text are text to `encode_ordinary`; `tokenizers` takes them for the tokens
    unless `encode_special_tokens` is set.

    Raises DataError when some text would get other ids, ModuleNotFoundError without tiktoken.
    """
    import tiktoken

    judge = tiktoken.Encoding(
        encoding.name, pat_str=encoding.pattern, mergeable_ranks=dict(encoding.ranks), special_tokens={}
    )
    made = _assemble(encoding)
    made.encode_special_tokens = True

    def ids(text: str) -> list[int]:
        return [encoding.first + rank for rank in judge.encode_ordinary(text)]

    if text := differing(made, ids, [*PROBES, *(f"x{name} {name}y" for name in list(encoding.special)[:40])]):
        raise DataError(
            f"{where}: as a tokenizer.json it would not give tiktoken's ids, of {text[:40]!r} for example",
            "use a tokenizer.json that its makers publish",
        )
    made.encode_special_tokens = False
    return made


def _assemble(encoding: Encoding) -> tokenizers.Tokenizer:
    table = letters()
    spelled = {token: "".join([table[byte] for byte in token]) for token in encoding.ranks}
    vocab = {spelled[token]: encoding.first + rank for token, rank in encoding.ranks.items()}
    merges = [(spelled[left], spelled[right]) for left, right in _merges(encoding.ranks)]
    # A special token needs a row of the model's own, or its id would be the next free one.
    model: Any = models.BPE({**vocab, **encoding.special}, merges, ignore_merges=True)
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(portable(encoding.pattern)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in encoding.special])
    return made


def _merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Every way to divide a token into two, the lowest rank first."""
    for token in sorted(ranks, key=ranks.__getitem__):
        for cut in range(1, len(token)):
            if token[:cut] in ranks and token[cut:] in ranks:
                yield token[:cut], token[cut:]


def portable(pattern: str) -> str:
    """A pattern in the words that all builds of `tokenizers` read alike.

    To Oniguruma {1,3}+ is a repetition of repetitions and $ the end of a line; what follows in these patterns
    never makes the engine give back digits, so that possessive or not is the same.
    """
    return re.sub(r"(\{\d+(?:,\d*)?\})\+", r"\1", pattern).replace("$", r"\z")


def letters() -> dict[int, str]:
    """The letter that stands for each byte in a byte-level vocabulary: GPT-2's bytes_to_unicode."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = (byte for byte in range(256) if byte not in shown)
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + number) for number, byte in enumerate(hidden)}


def _read_ranks(content: bytes, where: str) -> dict[bytes, int]:
    try:
        rows = (line.split() for line in content.splitlines() if line)
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in rows}
    except (ValueError, binascii.Error) as error:
        raise DataError(
            f"{where} is no .tiktoken file: {error}", "each line is a token in base64 and its rank"
        ) from None
    if len(set(ranks.values())) != len(ranks) or any(bytes([byte]) not in ranks for byte in range(256)):
        raise DataError(f"{where}: a rank is there twice, or a byte has none", "give a whole .tiktoken file")
    return ranks


def _llama3_special() -> Iterator[tuple[str, int]]:
    reserved = 0
    for number in range(256):
        if number in LLAMA3_NAMED:
            name = LLAMA3_NAMED[number]
        else:
            name, reserved = f"reserved_special_token_{reserved}", reserved + 1
        yield f"<|{name}|>", LLAMA3_RANKS + number

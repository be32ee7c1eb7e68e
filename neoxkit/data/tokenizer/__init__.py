"""A tokenizer from its files.

Everything is done by the `tokenizers` library; here is which file is read, which tokens are
special, and the fingerprint by which data and model know that they mean the same tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import tokenizers

from neoxkit.checkpoint.store import Place, place
from neoxkit.errors import DataError

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"
GENERATION = "generation_config.json"
SPECIAL = "special_tokens_map.json"
TEMPLATE = "chat_template.jinja"

NAMES = (
    FILE,
    CONFIG,
    GENERATION,
    SPECIAL,
    "added_tokens.json",
    TEMPLATE,
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
)
"""What a Hugging Face folder may hold beside its weights that says how text is made of its tokens."""

EOD, PADDING = "<|endoftext|>", "<|padding|>"
"""GPT-NeoX's special tokens, ids 0 and 1."""

Spans = list[tuple[int, int]]
"""From where to where in a text, in characters."""


class Tokenizer:
    """Text to ids and back, by the files of a Hugging Face tokenizer.

    `vocab` is one more than the greatest id; `bos`, `eos`, `pad` are ids or None; `fingerprint` is
    "sha256:" and the hash of tokenizer.json. `literal` says that the name of a special token in a text
    is text, as SentencePiece and tiktoken have it, and not that token.

    `path` is a tokenizer.json, or a folder with one; bos, eos and pad are what its
    tokenizer_config.json, or else special_tokens_map.json, names. A file without either is taken
    to end documents with <|endoftext|>, if it has that token. Other kinds: see `kinds.open_tokenizer`.

    Raises DataError when there is no such file, it is not a tokenizer, or a token that is named is unknown.
    """

    def __init__(self, path: str | Place) -> None:
        given = place(path)
        file = given / FILE if given.is_dir() else given
        if not file.is_file():
            raise DataError(f"{given}: no tokenizer.json", "give a tokenizer.json, or a folder with one")
        self._open(file, {**tokenizer_contents(file.parent), FILE: file.read_bytes()}, literal=False)

    @classmethod
    def of(cls, path: Place, contents: Mapping[str, bytes], literal: bool = False) -> Tokenizer:
        """The tokenizer of files that are in memory, by name; `path` is what they were made from."""
        made = cls.__new__(cls)
        made._open(path, contents, literal)
        return made

    def _open(self, path: Place, contents: Mapping[str, bytes], literal: bool) -> None:
        self.path = path
        self.literal = literal
        self._contents = dict(contents)
        self.fingerprint = fingerprint_of(contents[FILE])
        self._inner = _load(self.path, contents[FILE])
        # Some files carry the truncation and padding of the run that saved them, which would cut text silently.
        self._inner.no_truncation()
        self._inner.no_padding()
        self._inner.encode_special_tokens = literal
        ids = self._inner.get_vocab(with_added_tokens=True).values()
        if not ids:
            raise DataError(f"{self.path}: its vocabulary is empty", "give another tokenizer")
        self.vocab = max(ids) + 1
        named = _special(contents, self.path.parent)
        self.bos, self.eos, self.pad = (self._named(named.get(f"{kind}_token")) for kind in ("bos", "eos", "pad"))
        if self.eos is None:
            self.eos = self._inner.token_to_id(EOD)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by its files: the library forgets `encode_special_tokens`."""
        return Tokenizer.of, (self.path, self._contents, self.literal), {"eos": self.eos, "pad": self.pad}

    def parsing(self) -> Tokenizer:
        """The same, but the name of a special token in a text is that token: what chat templates are written for."""
        if not self.literal:
            return self
        made = Tokenizer.of(self.path, self._contents)
        made.eos, made.pad = self.eos, self.pad
        return made

    def __repr__(self) -> str:
        return f"Tokenizer({str(self.path)!r}, vocab={self.vocab})"

    def id(self, token: str) -> int:
        """The id of a token. Raises DataError when there is none."""
        number: int | None = self._inner.token_to_id(token)
        if number is None:
            raise DataError(f'{self.path}: no token "{token}"', "name one that the tokenizer has")
        return number

    def eod(self, token: str | None = None) -> int:
        """The id that ends a document: of `token`, or eos. Raises DataError when there is neither."""
        if token is not None:
            return self.id(token)
        if self.eos is None:
            raise DataError(f"{self.path}: no token that ends a document", "name it with --eod")
        return self.eos

    def encode(self, text: str, special: bool = False) -> list[int]:
        """The ids of a text; with `special`, and whatever the tokenizer puts around it, such as bos."""
        ids: list[int] = self._inner.encode(text, add_special_tokens=special).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, by all cores unless TOKENIZERS_PARALLELISM is false."""
        return [found.ids for found in self._inner.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_spans(
        self, texts: Sequence[str], special: bool = False
    ) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """The ids of each text, and from where to where in it, in characters, each id stands for.

        Tokens that share a character's bytes have that character each. One that is put around the text,
        with `special`, is at (0, 0).
        """
        found = self._inner.encode_batch(list(texts), add_special_tokens=special)
        return [(each.ids, each.offsets) for each in found]

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """The text of ids; special tokens are left out unless `special`."""
        text: str = self._inner.decode(list(ids), skip_special_tokens=not special)
        return text

    def shows(self, token: int, special: bool = False) -> bool:
        """Whether `decode` looks at an id: one that it knows, and that is not special unless `special`."""
        return (special or token not in self._special_ids) and self._inner.id_to_token(token) is not None

    @cached_property
    def single_bytes(self) -> frozenset[int]:
        """The ids that stand for a byte each, "<0x0A>", and are text only with those before and after them.

        Where a row of them is not UTF-8 as a whole, each becomes U+FFFD. Of a byte-level tokenizer, none.
        """
        spelled = (f"<0x{number:{form}}>" for number in range(256) for form in ("02X", "02x"))
        found = {each: number for each in spelled if (number := self._inner.token_to_id(each)) is not None}
        letter = found.get("<0x41>")
        return frozenset(found.values()) if letter is not None and self.decode([letter]) == "A" else frozenset()

    @cached_property
    def special(self) -> tuple[str, ...]:
        """The special tokens as they are written, such as <|im_end|>."""
        return tuple(token.content for token in self._inner.get_added_tokens_decoder().values() if token.special)

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(number for number, token in self._inner.get_added_tokens_decoder().items() if token.special)

    def contents(self) -> dict[str, bytes]:
        """The tokenizer's own files and those beside it, by name, to be carried along byte for byte.

        It becomes tokenizer.json, whatever its file is called here.
        """
        return dict(self._contents)

    def _named(self, token: str | None) -> int | None:
        return None if token is None else self.id(token)


def tokenizer_contents(folder: Place) -> dict[str, bytes]:
    """The contents of the files of a folder that belong to the tokenizer, by name."""
    return {name: (folder / name).read_bytes() for name in NAMES if (folder / name).is_file()}


def fingerprint_of(content: bytes) -> str:
    """The fingerprint of a tokenizer, from its tokenizer.json."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def _load(path: Place, content: bytes) -> tokenizers.Tokenizer:
    wrong = f"{path} is not a tokenizer"
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{wrong}: {error}", "give a tokenizer.json as Hugging Face writes it") from None
    if not isinstance(parsed, dict) or "model" not in parsed:
        raise DataError(f'{wrong}: it has no "model"', "give a tokenizer.json as Hugging Face writes it")
    try:
        return tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"{wrong}: {error}", "give a tokenizer.json as Hugging Face writes it") from error


def _special(contents: Mapping[str, bytes], folder: Place) -> dict[str, str]:
    """The special tokens that the files of a folder name: {"eos_token": "</s>", ...}."""
    found: dict[str, str] = {}
    for name in (SPECIAL, CONFIG):
        if name not in contents:
            continue
        path = folder / name
        try:
            content: Any = json.loads(contents[name])
            json.dumps(content, ensure_ascii=False).encode()  # half a character could not be looked up
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is not JSON: {error}", "mend or remove it") from None
        if not isinstance(content, dict):
            raise DataError(f"{path} is not a JSON object", "mend or remove it")
        for key, value in content.items():
            token = value.get("content") if isinstance(value, dict) else value
            if key in ("bos_token", "eos_token", "pad_token") and isinstance(token, str):
                found[key] = token
    return found

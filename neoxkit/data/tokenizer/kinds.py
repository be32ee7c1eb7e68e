"""Tokenizers of every kind, each opened as a `tokenizers` tokenizer with the ids that its own library gives.

open_tokenizer("models/pythia-70m")               a folder with tokenizer.json
open_tokenizer("gpt2-vocab.json,gpt2-merges.txt") GPT-2's two files
open_tokenizer("tokenizer.model")                 SentencePiece, or the ranks of Llama 3
open_tokenizer("cl100k_base")                     a name that tiktoken knows
open_tokenizer("tekken.json")                     Mistral's
open_tokenizer("bytes")                           no vocabulary: the bytes of UTF-8
open_tokenizer("EleutherAI/pythia-70m")           a name on the Hugging Face Hub
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from neoxkit.checkpoint.store import Place, place
from neoxkit.data.tokenizer import CONFIG, EOD, FILE, NAMES, Tokenizer, ranks, sentencepiece_model, tokenizer_contents
from neoxkit.data.tokenizer.files import files_of
from neoxkit.errors import DataError

BYTES = "bytes"
BYTES_ENTRIES = 512
"""Entries of gpt-neox's CharLevelTokenizer: 256 bytes and as many that never occur."""

PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
"""GPT-2's files: the id of each token, and the merges in their order."""

TEKKEN = "tekken.json"
_HUB = re.compile(r"(?:hf:/*)?(?P<name>\w[\w.-]*/\w[\w.-]*?)(?:@(?P<revision>[^@]+))?")


def open_tokenizer(name: str | Place) -> Tokenizer:
    """The tokenizer of a file, a folder, or a name; see the module for the forms. What exists is taken for a path.

    A tokenizer.json, and what a folder of transformers holds, take the name of a special token in a text for that
    token; the other kinds read it as text, as their own libraries do (`Tokenizer.literal`).

    Raises DataError when there is none, it is damaged, or its ids could not be given exactly;
    ModuleNotFoundError when its kind needs a library that is not installed.
    """
    spelled = str(name)
    if spelled.count(",") == 1 and not place(name).exists():
        vocab, merges = map(place, spelled.split(","))
        return _pair(vocab, merges)
    given = place(name)
    if given.is_dir():
        return _folder(given)
    if given.is_file():
        return _file(given)
    if spelled == BYTES:
        return _bytes()
    if spelled in ranks.KNOWN:
        return _ranked(ranks.named(spelled), Path(spelled))
    if isinstance(given, Path) and (match := _HUB.fullmatch(spelled)):
        return _folder(_fetch(match["name"], match["revision"]))
    raise DataError(
        f"{name}: no such tokenizer",
        f"give a tokenizer.json, a folder with one, vocab.json,merges.txt, a .model or .tiktoken file, {BYTES}, "
        f"ORG/NAME of the Hub, or one of {', '.join(ranks.KNOWN[:4])}",
    )


def _folder(folder: Place) -> Tokenizer:
    """The tokenizer of a folder: tokenizer.json, or what transformers makes of the others, or the one that is there."""
    if (folder / FILE).is_file():
        return Tokenizer(folder)
    if (folder / TEKKEN).is_file():
        return _file(folder / TEKKEN)
    if isinstance(folder, Path) and (folder / CONFIG).is_file():
        return _by_transformers(folder)
    for vocab, merges in PAIRS:
        if (folder / vocab).is_file() and (folder / merges).is_file():
            return _pair(folder / vocab, folder / merges)
    for name in ("tokenizer.model", "spiece.model"):
        if (folder / name).is_file():
            return _file(folder / name)
    if (folder / "vocab.txt").is_file():
        raise DataError(
            f"{folder / 'vocab.txt'} alone does not say how text is cut", f"put its {CONFIG} beside it, or {FILE}"
        )
    return Tokenizer(folder)  # which says that there is none


def _file(path: Place) -> Tokenizer:
    """The tokenizer of one file, by what is in it."""
    content = path.read_bytes()
    if sentencepiece_model.is_sentencepiece(content):
        made, special = sentencepiece_model.convert(content, str(path))
        roles = {f"{role}_token": token for role, token in special._asdict().items()}
        return Tokenizer.of(path, files_of(made, roles), literal=True)
    if content.lstrip()[:1] == b"{":
        tree = _json(path, content)
        if isinstance(tree.get("config"), dict) and isinstance(tree.get("vocab"), list):
            return _ranked(ranks.of_tekken(content, str(path)), path)
        if tree and all(type(number) is int for number in tree.values()):
            return _pair(path, _merges_beside(path))
        return Tokenizer(path)
    if re.match(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n", content[:400]):
        return _ranked(ranks.of_tiktoken_file(content, str(path)), path)
    return Tokenizer(path)  # which says what is wrong with it


def _ranked(encoding: ranks.Encoding, path: Place) -> Tokenizer:
    made = ranks.convert(encoding, str(path))
    roles = {"bos_token": encoding.bos, "eos_token": encoding.eos, "pad_token": encoding.pad}
    return Tokenizer.of(path, files_of(made, roles), literal=True)


def _pair(vocab: Place, merges: Place) -> Tokenizer:
    """GPT-2's byte-level BPE. Raises DataError when a file is missing, damaged, or not of the other."""
    for path in (vocab, merges):
        if not path.is_file():
            raise DataError(f"{path}: no such file", "name both files: vocab.json,merges.txt")
    ids = _json(vocab, vocab.read_bytes())
    try:
        lines = merges.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{merges} is not UTF-8: {error.reason}", "give GPT-2's merges.txt") from None
    body = [line.rstrip("\r") for line in lines[1 if lines[0].startswith("#version") else 0 :]]
    pairs: list[Any] = [tuple(line.split(" ")) for line in body if line]
    if wrong := next((pair for pair in pairs if len(pair) != 2), None):
        raise DataError(f"{merges}: {' '.join(wrong)[:60]!r} is no merge of two tokens", "give GPT-2's merges.txt")
    try:
        made = tokenizers.Tokenizer(models.BPE(ids, pairs))
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"{vocab} and {merges} do not belong together: {error}", "give two of one tokenizer") from error
    _byte_level(made)
    special = {}
    if EOD in ids:
        made.add_special_tokens([AddedToken(EOD, normalized=False, special=True)])
        special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), EOD)
    both = Path(f"{vocab},{merges}") if isinstance(vocab, Path) else vocab  # by which it can be opened again
    return Tokenizer.of(both, files_of(made, special), literal=True)


def _merges_beside(vocab: Place) -> Place:
    """The merges that go with a vocabulary: encoder.json and vocab.bpe, gpt2-vocab.json and gpt2-merges.txt."""
    names = [vocab.name.replace(first, second) for first, second in PAIRS if first in vocab.name]
    for name in [*names, *(merges for _, merges in PAIRS)]:
        if (vocab.parent / name).is_file():
            return vocab.parent / name
    raise DataError(f"{vocab} is a vocabulary, and no merges lie beside it", "name both files: vocab.json,merges.txt")


def _bytes() -> Tokenizer:
    """The bytes of UTF-8, as gpt-neox's CharLevelTokenizer: 0 ends a document, 1 fills a row.

    The tokenizer.json names neither: the letter of such a byte would be taken for it in every text.
    """
    letters = ranks.letters()
    entries = {letters[byte]: byte for byte in range(256)}
    entries.update({f"<unused {number}>": number for number in range(256, BYTES_ENTRIES)})
    made = tokenizers.Tokenizer(models.BPE(entries, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    found = Tokenizer.of(Path(BYTES), files_of(made, {}), literal=True)
    found.eos, found.pad = 0, 1
    return found


def _byte_level(made: tokenizers.Tokenizer) -> None:
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()


def _by_transformers(folder: Path) -> Tokenizer:
    """What transformers makes of a folder without tokenizer.json. Raises DataError when it can make nothing of it."""
    import transformers

    try:
        theirs: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        inner = getattr(theirs, "backend_tokenizer", None)
        if not isinstance(inner, tokenizers.Tokenizer):
            raise ValueError(f"a {type(theirs).__name__} has no tokenizer.json")
        content = inner.to_str().encode()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError) as error:
        line = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"{folder}: transformers can make no tokenizer.json of it: {line[0][:200]}",
            "save it once with save_pretrained where it does load",
        ) from error
    contents: Mapping[str, bytes] = {**tokenizer_contents(folder), FILE: content}
    return Tokenizer.of(folder / FILE, contents)


def _fetch(name: str, revision: str | None) -> Path:
    """The folder of a model's tokenizer in the Hub's cache. Raises DataError when it cannot be had."""
    nothing = f"{name}: no such file or folder"
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError
    except ModuleNotFoundError:
        raise DataError(nothing, "check the path; for a name on the Hub, pip install 'neoxkit[hf]'") from None
    # requests' errors are OSErrors; those of httpx, which later releases use, have a base of their own
    unreachable: tuple[type[BaseException], ...] = (OSError, ValueError, HfHubHTTPError.__mro__[1])
    try:
        wanted = [*NAMES, TEKKEN]
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=wanted, etag_timeout=10))
    except unreachable as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{nothing}, and the Hub gives no tokenizer of that name: {said[:160]}",
            "check the path or the name, or fetch it where there is a network",
        ) from error


def _json(path: Place, content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}", "mend it, or give another file") from None

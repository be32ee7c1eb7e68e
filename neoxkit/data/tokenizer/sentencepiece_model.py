"""A SentencePiece model as a `tokenizers` tokenizer that gives the same ids.

What SentencePiece does, and by what it is done here:

- Normalisation. The character map of the model is not carried over: see `_refuse`. Runs of spaces are reduced where
  the model says so, one space is put in front of a text that is not empty, and spaces become U+2581.
- BPE merges the pair of symbols whose piece has the best score, the leftmost first. A merge of ours is a way to divide
  a piece into two, in the order of the pieces' scores; where scores are equal, in the order of the pieces.
- Unigram takes the division with the greatest sum of scores. Control tokens and bytes are never found in a text, so
  theirs is put below all others.
- A character that is in no piece becomes its bytes, where the model has a piece for each of the 256, or else unknown.
- User-defined symbols are found before anything else.

SentencePiece itself then reads some texts, and a model for which it gives other ids is refused.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers

from neoxkit.config.neox.protobuf import fields
from neoxkit.data.tokenizer.probes import PROBES, differing
from neoxkit.errors import DataError

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
"""Kinds of pieces: ModelProto.SentencePiece.Type of sentencepiece_model.proto."""

UNIGRAM, BPE = 1, 2
"""Kinds of models: TrainerSpec.ModelType."""

NEVER = -10_000.0
"""The score of a piece that no text has: below that of every way to write it with others, if its characters are known.

Unknown ones cost more than the lowest score; a model that does not know those of "<s>" is refused by the probes."""

SPACE = "\u2581"


class Piece(NamedTuple):
    """A token, the score by which it is chosen, and its kind."""

    piece: str
    score: float
    type: int


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a file says. The ids of special tokens are -1 where there is none; `map` changes characters."""

    pieces: tuple[Piece, ...]
    kind: int
    byte_fallback: bool
    unk: int
    bos: int
    eos: int
    pad: int
    map_name: str
    map: bytes
    dummy_prefix: bool
    remove_spaces: bool
    own_spaces: bool


class Special(NamedTuple):
    """The tokens that a model names, or None: what begins and ends a text, fills a row, and is unknown."""

    bos: str | None
    eos: str | None
    pad: str | None
    unk: str | None


def is_sentencepiece(content: bytes) -> bool:
    """Whether a file begins as a SentencePiece model does: with its first piece, field 1 of a protocol buffer."""
    return content[:1] == b"\x0a" and content[2:3] == b"\x0a" and content[3:4] != b"\x0a"


def convert(content: bytes, where: str) -> tuple[tokenizers.Tokenizer, Special]:
    """The tokenizer that a SentencePiece model is, and its special tokens.

    Names of control tokens in a text are text to SentencePiece; `tokenizers` takes them for the tokens
    unless `encode_special_tokens` is set.

    One difference is known: of a model with user-defined symbols that puts a space in front of a text, a text
    that is one such symbol and nothing else gets no space.

    Raises DataError when it is no such model or cannot be carried over exactly, ModuleNotFoundError without
    sentencepiece.
    """
    import sentencepiece

    try:
        proto = _read(content)
        judge = sentencepiece.SentencePieceProcessor(model_proto=content)
    except (ValueError, IndexError, KeyError, RuntimeError) as error:
        raise DataError(f"{where} is no SentencePiece model: {error}", "give the file that spm_train wrote") from None
    _refuse(proto, where)
    made = _assemble(proto)
    made.encode_special_tokens = True
    if text := differing(made, judge.encode, [*PROBES, *_probes(proto)]):
        raise DataError(
            f"{where}: as a tokenizer.json it would not give SentencePiece's ids, of {text[:40]!r} for example",
            "use a tokenizer.json that its makers publish",
        )
    made.encode_special_tokens = False
    named = (proto.bos, proto.eos, proto.pad, proto.unk)
    return made, Special(*(proto.pieces[n].piece if 0 <= n < len(proto.pieces) else None for n in named))


def _read(content: bytes) -> Model:
    """A model from its file, with the defaults of sentencepiece_model.proto. Raises ValueError or IndexError."""
    parts = [(number, dict(fields(part))) for number, part in fields(content) if isinstance(part, bytes) and number < 4]
    pieces = tuple(
        Piece(part[1].decode("utf-8"), struct.unpack("<f", part.get(2, bytes(4)))[0], part.get(3, NORMAL))  # type: ignore
        for number, part in parts
        if number == 1
    )
    trainer: dict[int, Any] = next((part for number, part in parts if number == 2), {})
    normalizer: dict[int, Any] = next((part for number, part in parts if number == 3), {})

    def signed(number: int, default: int) -> int:
        value: int = trainer.get(number, default)
        return value - 2**64 if value >= 2**63 else value

    return Model(
        pieces=pieces,
        kind=trainer.get(3, UNIGRAM),
        byte_fallback=bool(trainer.get(35, 0)),
        unk=signed(40, 0),
        bos=signed(41, 1),
        eos=signed(42, 2),
        pad=signed(43, -1),
        map_name=normalizer.get(1, b"").decode("utf-8"),
        map=normalizer.get(2, b""),
        dummy_prefix=bool(normalizer.get(3, 1)),
        remove_spaces=bool(normalizer.get(4, 1)),
        own_spaces=bool(trainer.get(24, 0)) or not normalizer.get(5, 1),
    )


def _refuse(proto: Model, where: str) -> None:
    """Raise DataError for what `tokenizers` cannot do exactly."""
    kinds = {piece.type for piece in proto.pieces}
    singles = {piece.piece for piece in proto.pieces if len(piece.piece) == 1}
    why = None
    if proto.kind not in (UNIGRAM, BPE):
        why = "it is neither BPE nor unigram"
    elif proto.map:
        # tokenizers' own Precompiled looks at whole graphemes, SentencePiece at the longest run of characters.
        why = f"it changes characters by its own map ({proto.map_name or 'unnamed'})"
    elif proto.own_spaces:
        why = "it writes spaces in its own way"
    elif UNUSED in kinds:
        why = "it has pieces that are marked as unused"
    elif any(not singles.issuperset(piece.piece) for piece in proto.pieces if piece.type == NORMAL):
        why = "it has pieces with characters that are no pieces"
    if why:
        raise DataError(
            f"{where}: {why}, which no tokenizer.json does exactly as SentencePiece",
            "train one with --normalization_rule_name=identity, or use a tokenizer.json that its makers publish",
        )


def _assemble(proto: Model) -> tokenizers.Tokenizer:
    pieces = proto.pieces
    if proto.kind == BPE:
        model: Any = models.BPE(
            {piece.piece: number for number, piece in enumerate(pieces)},
            list(_merges(pieces)),
            unk_token=pieces[proto.unk].piece,
            fuse_unk=True,
            byte_fallback=proto.byte_fallback,
        )
    else:
        scores = [(each.piece, each.score if each.type in (NORMAL, USER) else NEVER) for each in pieces]
        model = models.Unigram(scores, unk_id=proto.unk, byte_fallback=proto.byte_fallback)
    made = tokenizers.Tokenizer(model)
    symbols = [piece.piece for piece in pieces if piece.type == USER]
    made.normalizer = normalizers.Sequence(list(_normalization(proto, symbols)))
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if proto.dummy_prefix:
        steps.append(decoders.Strip(content=" ", left=1))
    made.decoder = decoders.Sequence(steps)
    # Found in the text as normalised: found before, what stands between two would get a space of its own.
    made.add_tokens([AddedToken(symbol, normalized=True, special=False) for symbol in symbols])
    made.add_special_tokens(
        [
            AddedToken(piece.piece, normalized=False, special=True)
            for piece in pieces
            if piece.type in (UNKNOWN, CONTROL)
        ]
    )
    return made


def _merges(pieces: Sequence[Piece]) -> Iterator[tuple[str, str]]:
    """Every way to divide a piece into two, the best piece first."""
    numbers = {each.piece: number for number, each in enumerate(pieces) if each.type == NORMAL}
    for whole in sorted(numbers, key=lambda piece: (-pieces[numbers[piece]].score, numbers[piece])):
        for cut in range(1, len(whole)):
            if whole[:cut] in numbers and whole[cut:] in numbers:
                yield whole[:cut], whole[cut:]


def _normalization(proto: Model, symbols: Sequence[str]) -> Iterator[Any]:
    if proto.remove_spaces:
        yield normalizers.Replace(Regex(r"\A +"), "")
        yield normalizers.Replace(Regex(r" {2,}"), " ")
        yield normalizers.Replace(Regex(rf"[ {SPACE}]+\z"), "")
    if proto.dummy_prefix and symbols:
        # The symbols themselves are normalised too, and must stay as they are.
        spelled = "|".join(re.escape(symbol) for symbol in symbols)
        yield normalizers.Replace(Regex(rf"\A(?!(?:{spelled})\z)(?=[\s\S])"), SPACE)
    elif proto.dummy_prefix:
        yield normalizers.Prepend(SPACE)
    yield normalizers.Replace(" ", SPACE)


def _probes(proto: Model) -> Iterator[str]:
    """Texts with the model's own symbols in them."""
    for piece in proto.pieces:
        if piece.type == USER:
            yield f"{piece.piece}x {piece.piece}{piece.piece} y{piece.piece}"
    for piece in [each for each in proto.pieces if each.type in (UNKNOWN, CONTROL, BYTE)][:300]:
        yield f"x{piece.piece} {piece.piece}y"

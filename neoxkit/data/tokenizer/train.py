"""The training of a new tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from neoxkit.data.tokenizer import EOD, PADDING
from neoxkit.data.tokenizer.files import files_of
from neoxkit.data.tokenizer.ranks import CL100K_PATTERN, LLAMA3_PATTERN, O200K_PATTERN, R50K_PATTERN, portable
from neoxkit.errors import DataError

SMALLEST = 2 + 256
"""The smallest vocabulary that is trained by `train_bpe`: the special tokens and every byte."""

MODELS = ("bpe", "unigram")

SPLITS = {
    "gpt2": R50K_PATTERN,
    "digits": r"\p{N}|" + R50K_PATTERN.replace(r" ?\p{N}++|", ""),
    "cl100k": CL100K_PATTERN,
    "llama3": LLAMA3_PATTERN,
    "o200k": O200K_PATTERN,
}
"""Patterns of what a token is within, by name: `digits` is GPT-2's with each digit on its own."""

NORMALIZATIONS = {"nfc": normalizers.NFC, "nfkc": normalizers.NFKC}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to train: up to `vocab` entries, with `special` first, and after GPT-NeoX's own two.

    `split` is a name of SPLITS, or a regular expression: a text is cut into its matches and what lies between, and no
    token goes over a cut. `normalize` is a name of NORMALIZATIONS, or None, which loses nothing. `min_frequency` is
    how often a pair must occur to be joined, of BPE alone.

    Every byte is an entry, so that no text is unknown, whichever the model.
    """

    vocab: int
    model: str = "bpe"
    special: tuple[str, ...] = ()
    split: str = "gpt2"
    normalize: str | None = None
    min_frequency: int = 2

    @property
    def first(self) -> list[str]:
        """The special tokens, in the order of their ids."""
        return list(dict.fromkeys((EOD, PADDING, *self.special)))

    def check(self) -> None:
        """Raise DataError for what cannot be trained."""
        least = len(self.first) + 256
        if self.vocab < least:
            raise DataError(
                f"a vocabulary of {self.vocab} entries is too small",
                f"give at least {least}: {len(self.first)} special tokens and the 256 bytes",
            )
        if "" in self.first:
            raise DataError("a special token is empty", 'give it a name, such as --special "<|user|>"')
        if self.model not in MODELS:
            raise DataError(f"no such model: {self.model}", f"one of {', '.join(MODELS)}")
        if self.min_frequency < 1:
            raise DataError(f"min-frequency is {self.min_frequency}", "give at least 1")
        if self.model != "bpe" and self.min_frequency != Recipe.min_frequency:
            raise DataError("min-frequency is of BPE; a unigram model drops what it needs least", "leave it out")
        if self.normalize is not None and self.normalize not in NORMALIZATIONS:
            raise DataError(f"no such normalisation: {self.normalize}", f"one of {', '.join(NORMALIZATIONS)}")
        self._cut()

    def _cut(self) -> Any:
        """What cuts a text. Raises DataError when `split` is neither a name nor a regular expression."""
        if self.split == "gpt2":
            return pre_tokenizers.ByteLevel(add_prefix_space=False)  # the same, in its usual spelling
        pattern = portable(SPLITS[self.split]) if self.split in SPLITS else self.split
        known = f"one of {', '.join(SPLITS)}, or a regular expression"
        if pattern.isalnum() or not pattern:
            raise DataError(f'no such split: "{pattern}"', known)
        try:
            found = Regex(pattern)
        except Exception as error:  # the library raises plain Exception
            raise DataError(f'split "{pattern}": {error}', known) from error
        pieces = [pre_tokenizers.Split(found, "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        return pre_tokenizers.Sequence(pieces)

    def blank(self) -> tokenizers.Tokenizer:
        """The tokenizer without its entries."""
        made = tokenizers.Tokenizer(models.BPE() if self.model == "bpe" else models.Unigram())
        if self.normalize is not None:
            made.normalizer = NORMALIZATIONS[self.normalize]()
        made.pre_tokenizer = self._cut()
        made.decoder = decoders.ByteLevel()
        return made

    def trainer(self) -> Any:
        """What trains it."""
        shared: dict[str, Any] = {
            "vocab_size": self.vocab,
            "special_tokens": self.first,
            "initial_alphabet": sorted(pre_tokenizers.ByteLevel.alphabet()),
            "show_progress": False,
        }
        if self.model == "bpe":
            return trainers.BpeTrainer(min_frequency=self.min_frequency, **shared)
        return trainers.UnigramTrainer(**shared)


def train(texts: Iterable[str], recipe: Recipe, folder: Path) -> None:
    """Train a byte-level tokenizer and write it to `folder`, which must be new.

    The same texts give the same bytes, of BPE; for unigram the library adds up in an order that it draws.
    BPE stops short of `vocab` where no pair of tokens occurs often enough, unigram where there are no more pieces.

    Raises DataError for a recipe that cannot be trained.
    """
    recipe.check()
    made = recipe.blank()
    try:
        made.train_from_iterator(texts, recipe.trainer())
    except DataError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"no tokenizer can be trained on this text: {error}", "give more text") from error
    special = {"bos_token": EOD, "eos_token": EOD, "unk_token": EOD, "pad_token": PADDING}
    folder.mkdir()
    for name, content in files_of(made, special).items():
        (folder / name).write_bytes(content)


def train_bpe(texts: Iterable[str], vocab: int, folder: Path) -> None:
    """Train a byte-level BPE of up to `vocab` entries and write it to `folder`, which must be new.

    It is lossless: unlike GPT-NeoX's own, it does not normalise text to NFC. The same texts give the
    same bytes, in any order. It stops short of `vocab` where no pair of tokens occurs twice.

    Raises DataError when `vocab` is below 258, the special tokens and every byte.
    """
    train(texts, Recipe(vocab=vocab), folder)

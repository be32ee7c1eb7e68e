"""The training of a new tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from neoxkit.data.tokenizer import CONFIG, EOD, FILE, PADDING, SPECIAL
from neoxkit.errors import DataError

SMALLEST = 2 + 256
"""The smallest vocabulary that is trained: the special tokens and every byte."""


def train_bpe(texts: Iterable[str], vocab: int, folder: Path) -> None:
    """Train a byte-level BPE of up to `vocab` entries and write it to `folder`, which must be new.

    It is lossless: unlike GPT-NeoX's own, it does not normalise text to NFC. The same texts give the
    same bytes, in any order. It stops short of `vocab` where no pair of tokens occurs twice.

    Raises DataError when `vocab` is below 258, the special tokens and every byte.
    """
    if vocab < SMALLEST:
        raise DataError(f"a vocabulary of {vocab} entries is too small", f"give at least {SMALLEST}: {_WHY}")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=2,
        special_tokens=[EOD, PADDING],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    special = {"bos_token": EOD, "eos_token": EOD, "unk_token": EOD, "pad_token": PADDING}
    # GPTNeoXTokenizerFast would load too, but transformers 5 then rebuilds the tokenizer with NFC, whatever
    # the file says. This class takes the file as it is, in versions 4 and 5.
    config = {
        **special,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(1e30),  # what transformers writes for "no limit"
    }
    tree = json.loads(tokenizer.to_str())
    # "a b", not ["a", "b"]: every release of tokenizers reads it, 0.19 (transformers 4.40 to 4.44) nothing else.
    tree["model"]["merges"] = [" ".join(pair) for pair in tree["model"]["merges"]]
    folder.mkdir()
    (folder / FILE).write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / SPECIAL).write_text(json.dumps(special, indent=2) + "\n", encoding="utf-8")


_WHY = "two special tokens and the 256 bytes"

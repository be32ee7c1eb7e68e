"""Damaged models of other programs: Hugging Face folders, Meta's and Mistral's files, checkpoints of gpt-neox."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import pytest
import yaml
from fuzzing import WrongReadError, count, fuzz
from meta_reference import meta_tensors, write_meta
from mutations import as_json, changed_json, changed_pickle, changed_tree, damaged, repacked
from neox_checkpoints import STEP, unpack
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tiny import Tiny

from neoxkit.checkpoint import dtypes
from neoxkit.config.neox.network import USED
from neoxkit.convert.describe import describe, lines
from neoxkit.convert.open import open_foreign
from neoxkit.convert.tokenizer import check_vocabulary, exported_files, stop_ids
from neoxkit.families import by_name

SMALL = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOKENIZER = {
    "version": "1.0",
    "added_tokens": [
        {"id": 12, "content": "<end>", "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    ],
    "pre_tokenizer": {"type": "Whitespace"},
    "model": {"type": "BPE", "vocab": {**{chr(97 + i): i for i in range(11)}, "ab": 11}, "merges": [["a", "b"]]},
}
BESIDE = {
    "tokenizer.json": TOKENIZER,
    "tokenizer_config.json": {"eos_token": "<end>", "bos_token": {"content": "<end>"}, "tokenizer_class": "X"},
    "special_tokens_map.json": {"pad_token": "<end>"},
    "generation_config.json": {"eos_token_id": [2, 3], "do_sample": True},
}


class Foreign:
    """A folder, copied once; of each case one file is damaged, and mended before the next."""

    def __init__(self, tmp: Path) -> None:
        self.sound = tmp / "sound"
        self.fill(self.sound)
        self.files = {str(p.relative_to(self.sound)): p.read_bytes() for p in self.sound.rglob("*") if p.is_file()}
        self.touched: set[str] = set()
        self.number = 0

    def fill(self, folder: Path) -> None:
        """Write the sound model."""
        raise NotImplementedError

    def make(self, dice: Random, folder: Path) -> str:
        """Mend, then damage."""
        if not any(folder.iterdir()):
            shutil.copytree(self.sound, folder, dirs_exist_ok=True)
        for name in self.touched:
            (folder / name).write_bytes(self.files[name])
        self.number += 1
        name, data, said = self.damage(dice)
        self.touched = {name}
        (folder / name).write_bytes(data)
        return f"{name}: {said}"

    def damage(self, dice: Random) -> tuple[str, bytes, str]:
        """Which file, its damaged content, and what was done."""
        raise NotImplementedError

    def read(self, folder: Path) -> None:
        """Open the model, read every tensor, and all that is beside them."""
        source = open_foreign(folder)
        try:
            for name in source.names():
                value = source.read(name)
                spec = source.spec(name)
                if tuple(value.shape) != spec.shape or dtypes.name_of(value.dtype) != source.dtype(name):
                    raise WrongReadError(f"{name}: {value.dtype} {list(value.shape)}")
            self.compare(source, folder)
            if self.number % 3 == 0:
                list(lines(describe(folder), tensors=True))
            tokens = source.tokenizer
            if tokens is not None:
                check_vocabulary(tokens, source.config)
                stop_ids(tokens, source.config)
                exported_files(tokens, source.config, by_name(source.config.family))
        finally:
            source.close()

    def compare(self, source: Any, folder: Path) -> None:
        """Raise WrongReadError when what was read is not what the files hold."""


class HuggingFace(Foreign):
    """Two files and their index, a configuration, a tokenizer."""

    def fill(self, folder: Path) -> None:
        """A Llama."""
        folder.mkdir()
        model = Tiny("llama", "gqa", {**SMALL, "num_key_value_heads": 2}).model()
        model.save_pretrained(folder, max_shard_size="9KB")
        for name, tree in BESIDE.items():
            (folder / name).write_text(json.dumps(tree))
        assert (folder / "model.safetensors.index.json").is_file()

    def compare(self, source: Any, folder: Path) -> None:
        """The package reads the same bytes under the same names."""
        for key, place in source.files.places.items():
            try:
                with safe_open(place.file, "pt") as file:
                    theirs = file.get_tensor(key)
            except SafetensorError as error:
                if "recursion limit" in str(error):
                    continue  # in a field that it does not know, and we pass over
                raise WrongReadError(f"the package refuses it: {error}") from None
            if dtypes.octets(theirs).tobytes() != dtypes.octets(source.files.read(key)).tobytes():
                raise WrongReadError(f"{key} is read as other bytes")

    def damage(self, dice: Random) -> tuple[str, bytes, str]:
        """Texts: configuration, index, tokenizer and what is beside it."""
        name = dice.choice(["config.json", "config.json", "model.safetensors.index.json", *BESIDE])
        return name, *changed_json(self.files[name], dice)


class HuggingFaceHeaders(HuggingFace):
    """The headers of its weight files."""

    def damage(self, dice: Random) -> tuple[str, bytes, str]:
        """By structure, and by bytes."""
        name = dice.choice([name for name in self.files if name.endswith(".safetensors")])
        data = self.files[name]
        start = 8 + int.from_bytes(data[:8], "little")
        if dice.random() < 0.2:
            return name, *damaged(data, dice)
        new, said = changed_json(data[8:start], dice)
        return name, len(new).to_bytes(8, "little") + new + data[start:], said


class Meta(Foreign):
    """Two model-parallel shards and params.json."""

    params: ClassVar[dict[str, Any]] = {
        **{"dim": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 32, "multiple_of": 24},
        **{"norm_eps": 1e-5, "rope_theta": 500000.0, "max_seq_len": 64},
    }

    def fill(self, folder: Path) -> None:
        """A Llama."""
        sizes = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2}
        write_meta(folder, meta_tensors(Tiny("llama", "own", sizes).model()), self.params, 2)

    def damage(self, dice: Random) -> tuple[str, bytes, str]:
        """The parameters mostly, else a shard."""
        if dice.random() < 0.6:
            return "params.json", *changed_json(self.files["params.json"], dice)
        name = dice.choice([name for name in self.files if name.endswith(".pth")])
        return name, *damaged(self.files[name], dice)


class Mistral(Meta):
    """One file of safetensors and params.json."""

    params: ClassVar[dict[str, Any]] = {**Meta.params, "hidden_dim": 48, "head_dim": 4, "sliding_window": 5}
    del params["multiple_of"]

    def fill(self, folder: Path) -> None:
        """A Mistral."""
        sizes = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2}
        folder.mkdir()
        save_file(meta_tensors(Tiny("mistral", "own", sizes).model()), folder / "consolidated.safetensors")
        (folder / "params.json").write_text(json.dumps(self.params))

    def damage(self, dice: Random) -> tuple[str, bytes, str]:
        """The parameters mostly, else the header."""
        if dice.random() < 0.6:
            return "params.json", *changed_json(self.files["params.json"], dice)
        name = "consolidated.safetensors"
        start = 8 + int.from_bytes(self.files[name][:8], "little")
        new, said = changed_json(self.files[name][8:start], dice)
        return name, len(new).to_bytes(8, "little") + new + self.files[name][start:], said


class Neox(Foreign):
    """A checkpoint that gpt-neox wrote, in files of layers."""

    oracle = "neox_tp2pp1"

    def fill(self, folder: Path) -> None:
        """Take it from the archive."""
        unpack(folder.parent / "oracles")
        shutil.copytree(folder.parent / "oracles" / self.oracle / STEP, folder)
        (settings,) = folder.glob("configs/*.yml")
        kept = {key: value for key, value in yaml.safe_load(settings.read_text()).items() if key in USED}
        settings.write_text(yaml.safe_dump(kept))

    def damage(self, dice: Random) -> tuple[str, bytes, str]:
        """The settings mostly, else a file of tensors."""
        name = dice.choice([name for name in self.files if name.endswith(".pt")])
        if dice.random() < 0.65:
            name = next(name for name in self.files if name.endswith(".yml"))
            if dice.random() < 0.4:
                return name, *damaged(self.files[name], dice)
            tree, said = changed_tree(yaml.safe_load(self.files[name]), dice)
            return name, as_json(tree), said  # which is YAML too
        if dice.random() < 0.5:
            return name, *damaged(self.files[name], dice)
        said = []

        def change(member: str, data: bytes) -> bytes:
            if not member.endswith("data.pkl"):
                return data
            data, how = changed_pickle(data, dice)
            said.append(how)
            return data

        return name, repacked(self.files[name], change), ", ".join(said)


class NeoxRanks(Neox):
    """Another, in the files of ranks, with a trainer's state in them."""

    oracle = "neox_tp1pp0"


KINDS: dict[str, tuple[type[Foreign], int]] = {
    "texts": (HuggingFace, 300),
    "headers": (HuggingFaceHeaders, 400),
    "meta": (Meta, 200),
    "mistral": (Mistral, 150),
    "layers": (Neox, 80),
    "ranks": (NeoxRanks, 60),
}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged(kind: str, tmp_path: Path) -> None:
    """An error in words, or tensors of the shapes that the configuration asks for; both happen."""
    made, cases = KINDS[kind]
    tally = fuzz(made(tmp_path), count(cases))
    assert tally.findings == []
    assert tally.read > cases // 100
    assert tally.refused > cases // 10

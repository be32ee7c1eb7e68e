"""Law 10 for import, reshard and export: kill one at any moment; the destination is what it was, or new and whole."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from killing import Saver
from meta_reference import meta_tensors, write_meta
from neox_checkpoints import read_layers, settings, unpack, write
from safetensors.torch import load_file
from sound import damaged
from tiny import SIZES, Tiny

from neoxkit.checkpoint.attempt import dead_attempts
from neoxkit.checkpoint.reader import Checkpoint

SCRIPT = Path(__file__).with_name("crash_convert.py")


def _load() -> ModuleType:
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        spec = importlib.util.spec_from_file_location("crash_convert", SCRIPT)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(SCRIPT.parent))


crash_convert = _load()
KINDS = crash_convert.KINDS
STEPS = {"import-hf": 1, "export-whole": 3, "reshard-trained": 7}
"""Acts are killed before each call, each third, seventh, or eleventh: what writes is the same. All are odd."""


@pytest.fixture(scope="module")
def saver() -> Iterator[Saver]:
    """The process that runs the commands."""
    saver = Saver(SCRIPT)
    yield saver
    saver.close()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of each kind, of which one is to replace the other."""
    home = tmp_path_factory.mktemp("crash") / "sources"
    unpack(home / "oracles")
    oracle = home / "oracles" / "neox_tp2pp1"
    for seed in (1, 2):
        sizes = {**SIZES, "num_hidden_layers": 1, "intermediate_size": 128, "vocab_size": 96}
        model = Tiny("llama", "mha", {**sizes, "hidden_act": "silu"}).model()
        with torch.no_grad():
            model.model.norm.weight.add_(seed)
        model.save_pretrained(home / f"hf-{seed}")
        model.save_pretrained(home / f"sharded-{seed}", max_shard_size="60KB")
        about = {"dim": 48, "n_layers": 1, "n_heads": 6, "vocab_size": 96, "multiple_of": 64, "norm_eps": 1e-6}
        write_meta(home / f"meta-{seed}", meta_tensors(model), about, 2)
        layers = read_layers(oracle)
        for rank in range(2):
            layers[2, rank]["input_layernorm.weight"] += seed
        write(home / f"neox-{seed}", layers, settings(oracle))
        crash_convert.save_model(home / f"whole-{seed}", seed)
        crash_convert.save_trained(home / f"trained-{seed}", seed)
    return home


def content(folder: Path) -> str:
    """What a destination holds, all of it read and found sound: a checkpoint's fingerprint, a model's tensors."""
    if (folder / "manifest.json").exists():
        with Checkpoint.open(folder) as checkpoint:
            assert checkpoint.config
            for name in checkpoint.names():
                checkpoint.read(name)  # against its checksum
            crcs = {name: entry.crc for name, entry in checkpoint.manifest.tensors.items()}
            assert len(crcs) > 10
            return str(sorted(crcs.items()))
    config = json.loads((folder / "config.json").read_bytes())
    assert config["architectures"] == ["GPTNeoXForCausalLM"]
    index = json.loads((folder / "model.safetensors.index.json").read_bytes())["weight_map"]
    found = {key: value for path in folder.glob("*.safetensors") for key, value in load_file(path).items()}
    assert set(found) == set(index)
    assert (folder / "neoxkit.json").is_file()
    return str(sorted((key, value.sum().item()) for key, value in found.items()))


def done(saver: Saver, folder: Path, seed: int, act: str) -> str:
    """Run a command to its end."""
    saver.begin(folder, seed, act=act)
    assert saver.end()[0] == 0
    return content(folder)


@pytest.fixture
def here(sources: Path) -> Iterator[Path]:
    """A folder for destinations, in memory where that can be, with the sources in it."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        Path(folder, "sources").symlink_to(sources)
        yield Path(folder)


@pytest.mark.parametrize("act", KINDS)
def test_killed_before_each_call_that_changes_the_disk(act: str, here: Path, saver: Saver) -> None:
    """New destinations and replaced ones, in turn: what looks complete is complete."""
    wanted = {seed: done(saver, here / f"sound-{seed}", seed, act) for seed in (1, 2)}
    assert wanted[1] != wanted[2]
    old, held, number, killed, new = here / "old", 1, 0, set(), here / "new"
    done(saver, old, 1, act)
    while True:
        number += STEPS.get(act, 11)
        replaces = number % 2 == 0
        saver.begin(old if replaces else new, 3 - held, number, act)
        died, call = saver.end()
        assert died in (0, signal.SIGKILL)
        if not died:
            break
        killed.add(call)
        if os.path.lexists(new):
            assert content(new) == wanted[3 - held]
            os.rename(new, here / f"finished-{number}")
        if os.path.lexists(old):
            found = content(old)
            assert found in wanted.values() if replaces else found == wanted[held]
            held = next(seed for seed in wanted if wanted[seed] == found)
        else:  # set aside, between two renames, where names cannot be swapped: the next command puts it back
            assert replaces
            assert "exchange" not in killed
    assert number > 30
    assert len(killed) > 1
    if STEPS.get(act) == 1:
        assert {"mkdir", "open", "pwrite", "fsync", "replace"} <= killed
        assert killed & {"rename", "exchange"}
    assert content(old if replaces else new) == wanted[3 - held]
    assert dead_attempts(here) == []


@pytest.mark.parametrize("act", ["import-neox", "reshard-trained", "export-whole"])
def test_killed_at_random_moments(act: str, here: Path, saver: Saver) -> None:
    """Until 12 kills have hit a command at work; how long that takes is learned on the way."""
    dice, wanted = random.Random(0), {}
    begin = time.perf_counter()
    for seed in (1, 2):
        wanted[seed] = done(saver, here / "old", seed, act)
    limit = (time.perf_counter() - begin) / 2
    hit = tries = left = 0
    while hit < 12:
        tries += 1
        assert tries < 400, "commands end before they can be killed"
        new = here / ("old" if tries % 2 else f"new-{tries}")
        seed = 1 + tries // 2 % 2
        child = saver.begin(new, seed, act=act)
        time.sleep(dice.uniform(0, limit))
        os.kill(child, signal.SIGKILL)
        struck = saver.end()[0] == signal.SIGKILL
        hit += struck
        limit *= 1.02 if struck else 0.95
        left += bool(dead_attempts(here))
        if new.name != "old":
            assert not os.path.lexists(new) or content(new) == wanted[seed]
        elif os.path.lexists(new):
            assert content(new) in wanted.values()
    assert left > 3
    done(saver, here / "last", 1, act)
    assert dead_attempts(here) == []
    assert content(here / "old") in wanted.values()
    assert act.startswith("export") or damaged(here / "last") == []

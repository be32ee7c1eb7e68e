"""Models by their name: fetched from a stand-in for the Hub, in processes of their own, with caches of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hub_server import COMMIT, MODEL, Hub, serving
from meta_reference import meta_tensors, write_meta
from safetensors.torch import load_file
from tiny import Tiny

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.convert.hub import Named, named

Neoxkit = Callable[..., subprocess.CompletedProcess[str]]
FORKS = """
import json, os, shlex, sys, traceback
import torch
import neoxkit.convert.transfer
from neoxkit.cli import main
assert "huggingface_hub" not in sys.modules, "it looks at the environment when it is imported"
for line in sys.stdin:
    command, environment, folder = json.loads(line)
    if (fork := os.fork()) == 0:
        code = 1
        try:
            os.environ.clear()
            os.environ.update(environment)
            os.chdir(folder)
            for number, name in enumerate((os.devnull, "stdout", "stderr")):
                os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
            sys.argv = ["neoxkit", *shlex.split(command)]
            main(sys.argv[1:])
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]), flush=True)
"""
"""Runs each command in a fork of its own: torch is loaded once, the Hub's library by each."""

NOWHERE = "http://127.0.0.1:9"  # the port at which everything is discarded: nobody listens


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in several safetensors files, and beside it all that need not be fetched."""
    folder = tmp_path_factory.mktemp("original") / "model"
    Tiny("llama", "gqa", {"num_key_value_heads": 2}).model().save_pretrained(folder, max_shard_size="60KB")
    torch.save({"model.norm.weight": torch.zeros(1)}, folder / "pytorch_model.bin")
    (folder / "README.md").write_text("words")
    (folder / "tf_model.h5").write_bytes(bytes(1000))
    (folder / "original").mkdir()
    (folder / "original" / "params.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


@pytest.fixture
def hub(original: Path, tmp_path: Path) -> Iterator[Hub]:
    """The server, with a copy of the model that may be changed."""
    shutil.copytree(original, tmp_path / "served")
    with serving(tmp_path / "served") as found:
        yield found


@pytest.fixture(scope="module")
def forks() -> Iterator[subprocess.Popen[str]]:
    """What runs commands."""
    with subprocess.Popen(
        [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        assert process.stdin
        process.stdin.close()


@pytest.fixture
def neoxkit(hub: Hub, forks: subprocess.Popen[str], tmp_path: Path) -> Neoxkit:
    """Runs neoxkit against the server, with an empty cache of the Hub's."""

    def call(command: str, **settings: str) -> subprocess.CompletedProcess[str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        clean |= {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1"}
        assert forks.stdin
        assert forks.stdout
        print(json.dumps([command, clean | settings, str(tmp_path)]), file=forks.stdin, flush=True)
        code = int(forks.stdout.readline())
        said = [(tmp_path / name).read_text() for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess(command, code, *said)

    return call


def lineage(folder: Path) -> dict[str, str]:
    """The event that made a checkpoint."""
    found: dict[str, str] = json.loads((folder / "manifest.json").read_text())["lineage"][0]
    return found


def refused(done: subprocess.CompletedProcess[str], *said: str) -> None:
    """One line, and 2."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert "; " in lines[0]
    for each in said:
        assert each in lines[0]


def test_only_what_is_needed_is_fetched(hub: Hub, neoxkit: Neoxkit, original: Path, tmp_path: Path) -> None:
    done = neoxkit(f"import {MODEL} out --tp 2")
    assert done.returncode == 0, done.stderr
    assert f"fetch {MODEL}: " in done.stderr
    weights = {path.name for path in original.glob("*.safetensors")}
    assert len(weights) > 1
    assert hub.fetched() == weights | {
        "config.json", "generation_config.json", "tokenizer_config.json", "model.safetensors.index.json",
    }  # fmt: skip
    assert lineage(tmp_path / "out")["source"] == f"{MODEL}@{COMMIT}"
    neoxkit(f"import {original} beside --tp 2")
    ours, beside = (Checkpoint.open(tmp_path / name).fingerprint for name in ("out", "beside"))
    assert ours == beside
    asked = len([each for each in hub.asked if each[0] == "GET" and "/resolve/" in each[1]])
    assert neoxkit(f"import {MODEL} again").returncode == 0
    assert len([each for each in hub.asked if each[0] == "GET" and "/resolve/" in each[1]]) == asked


def test_a_revision(hub: Hub, neoxkit: Neoxkit, tmp_path: Path) -> None:
    assert neoxkit(f"import {MODEL}@step1000 out").returncode == 0
    assert lineage(tmp_path / "out")["source"] == f"{MODEL}@{COMMIT}"
    assert any(path.endswith("/revision/step1000") for _, path, _ in hub.asked)
    assert neoxkit(f"import hf://{MODEL}@{COMMIT} again").returncode == 0
    refused(neoxkit(f"import {MODEL}@nowhere no"), f"{MODEL}@nowhere", "no such revision")
    assert not (tmp_path / "no").exists()


def test_a_cut_connection_goes_on_where_it_was_cut(hub: Hub, neoxkit: Neoxkit, tmp_path: Path) -> None:
    """huggingface_hub counts in chunks of 10 MiB, so the file is larger."""
    shutil.rmtree(hub.folder)
    Tiny("llama", "large", {"vocab_size": 90_000, "num_hidden_layers": 1}).model().save_pretrained(hub.folder)
    hub.cut["model.safetensors"] = 11 << 20, 1
    done = neoxkit(f"import {MODEL} out")
    assert done.returncode == 0, done.stderr
    assert hub.downloads("model.safetensors") == [None, f"bytes={10 << 20}-"]
    assert "manifest.json" in {path.name for path in (tmp_path / "out").iterdir()}
    assert neoxkit("verify out").returncode == 0


def test_the_next_attempt_fetches_what_is_missing(hub: Hub, neoxkit: Neoxkit, tmp_path: Path) -> None:
    name = sorted(hub.folder.glob("*.safetensors"))[0].name
    hub.cut[name] = 3000, 1000
    refused(neoxkit(f"import {MODEL} out"), MODEL, "the download broke off", "try again")
    assert not (tmp_path / "out").exists()
    before = {each for each in hub.fetched() if each != name}
    hub.cut.clear()
    hub.asked.clear()
    assert neoxkit(f"import {MODEL} out").returncode == 0
    assert name in hub.fetched()
    assert not hub.fetched() & {each for each in before if each.endswith("json")}


def test_without_a_network_the_cache_is_used(hub: Hub, neoxkit: Neoxkit, tmp_path: Path) -> None:
    assert neoxkit(f"import {MODEL} first").returncode == 0
    count = len(hub.asked)
    for number, settings in enumerate(({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": NOWHERE})):
        done = neoxkit(f"import {MODEL} out{number}", **settings)
        assert done.returncode == 0, done.stderr
        assert "the cached commit c0ffeec0ffee is used" in done.stderr
        assert lineage(tmp_path / f"out{number}") == lineage(tmp_path / "first")
    assert len(hub.asked) == count


def test_without_network_and_cache(neoxkit: Neoxkit, tmp_path: Path) -> None:
    begun = time.monotonic()
    refused(neoxkit(f"import {MODEL} out", HF_ENDPOINT=NOWHERE), MODEL, "no such file or folder", "cannot be reached")
    assert time.monotonic() - begun < 30
    refused(neoxkit(f"import {MODEL} out", HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE is set", "with a network")
    assert not (tmp_path / "out").exists()


def test_what_the_hub_refuses(hub: Hub, neoxkit: Neoxkit) -> None:
    refused(neoxkit("import no/such out"), "no/such", "no such model on the Hub", "hf auth login")
    hub.gated = True
    refused(neoxkit(f"import {MODEL} out"), f"https://huggingface.co/{MODEL}", "hf auth login")
    hub.gated, hub.broken = False, True
    refused(neoxkit(f"import {MODEL} out"), "503")


def test_models_without_weights_that_can_be_read(hub: Hub, neoxkit: Neoxkit) -> None:
    for path in (*hub.folder.glob("*.safetensors"), hub.folder / "pytorch_model.bin"):
        path.unlink()
    refused(neoxkit(f"import {MODEL} out"), "the Hub has no model-0", "model.safetensors.index.json names")
    (hub.folder / "model.safetensors.index.json").write_text("[]")
    refused(neoxkit(f"import {MODEL} out", HF_HUB_CACHE="another"), "not an index of weights")
    (hub.folder / "model.safetensors.index.json").unlink()
    refused(neoxkit(f"import {MODEL} out"), "no model.safetensors")


def test_bin_files_where_there_is_nothing_better(hub: Hub, neoxkit: Neoxkit) -> None:
    tensors = {key: value for path in hub.folder.glob("*.safetensors") for key, value in load_file(path).items()}
    for path in (*hub.folder.glob("*.safetensors"), hub.folder / "model.safetensors.index.json"):
        path.unlink()
    torch.save(tensors, hub.folder / "pytorch_model.bin")
    assert neoxkit(f"import {MODEL} out").returncode == 0
    assert "pytorch_model.bin" in hub.fetched()


def test_meta_files(hub: Hub, neoxkit: Neoxkit, tmp_path: Path) -> None:
    model = Tiny("llama", "mha", {"rms_norm_eps": 1e-5}).model()
    params = {"dim": 48, "n_layers": 3, "n_heads": 6, "norm_eps": 1e-5, "vocab_size": -1}
    shutil.rmtree(hub.folder)
    write_meta(hub.folder, {**meta_tensors(model)}, params)
    done = neoxkit(f"import {MODEL} out")
    assert done.returncode == 0, done.stderr
    assert hub.fetched() == {"params.json", "consolidated.00.pth"}
    assert lineage(tmp_path / "out")["format"] == "Meta Llama, 1 shards"


def test_what_exists_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert named(Path("org/name")) == Named("org/name", None)
    assert named(Path("org/name.v1-x@refs/pr/1")) == Named("org/name.v1-x", "refs/pr/1")
    (tmp_path / "org").mkdir()
    assert named(Path("org/name")) is None  # a path with a mistake in it
    assert named(Path("hf://org/name@v1")) == Named("org/name", "v1")
    (tmp_path / "org" / "name").mkdir()
    assert named(Path("org/name")) is None
    for path in ("name", "../org/name", "a/b/c", "/a/b", "./x", "a/b@"):
        assert named(Path(path)) is None

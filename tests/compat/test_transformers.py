"""What `export` writes is right in every transformers that it is meant for, and what they save is imported right.

Old releases are installed aside, without their dependencies, and run in a process of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from packages import TRANSFORMERS, installed
from safetensors.torch import save_file
from tiny import TINY, Tiny, save

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.convert.load import load_decoder
from neoxkit.convert.open import open_foreign
from neoxkit.convert.transfer import export_model, import_model
from neoxkit.data.tokenizer import EOD, Tokenizer
from neoxkit.data.tokenizer.train import train_bpe
from neoxkit.families import by_name
from neoxkit.mesh import Mesh

VERSIONS: dict[str, tuple[str, ...]] = {**TRANSFORMERS, "installed": ()}

OTHERWISE = {
    "4.40.2": {
        "llama-biased": "before 4.41 there are no biases in a Llama's MLP; that some are left over is said",
        "mistral-window": "before 4.42 a Mistral's window is not looked at",
        "falcon-one-norm": "before Falcon 2 two norms went with grouped heads; that weights are missing is said",
        "qwen2-linear": "before 4.45 rotary scaling is Llama's and GPT-NeoX's alone",
    },
    "4.46.3": {
        "mistral-linear": "before 4.48 a Mistral's rotary scaling is not looked at, however it is spelled",
        "phi3-tied": "before 4.50 a Phi-3 rotates whole heads",
    },
}
"""What an old release computes otherwise."""

REFUSED = {
    "4.40.2": {
        "gpt_neox-llama3": "rope_scaling",  # before 4.45
        "llama-llama3": "rope_scaling",  # before 4.43
        "llama-mqa": "size mismatch",  # before 4.45 there is no head_dim
        "mistral-linear": "size mismatch",
    }
}
"""What an old release does not load, and says so."""

YOUNGER = {"4.40.2": {"phi3", "qwen3", "olmo2"}, "4.46.3": {"qwen3", "olmo2"}}
"""Families that an old release does not have: it says so, and loads nothing."""

TEXTS = ["def f(x):\n    return  x", f"one{EOD}two", "  caf\u00e9 cafe\u0301 \u4f60\u597d\t", "<|more|>", ""]
"""An e with a combining accent among them, which a tokenizer that normalises would change."""

CHAT = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every tiny model, imported and exported, with our logits beside it; three more with tokenizers."""
    here = tmp_path_factory.mktemp("compat")
    for tiny in TINY:
        save(tiny.model(), here / "hf" / str(tiny))
    save(Tiny("llama", "bf16").model().to(torch.bfloat16), here / "hf" / "llama-bf16")
    train_bpe([f"def f{n}(x): return x + {n}\n" for n in range(50)], 300, here / "tokenizer")
    for family in ("gpt_neox", "llama", "mistral"):
        folder = here / "hf" / f"{family}-text"
        options = {"vocab_size": 304, "num_hidden_layers": 1, "bos_token_id": 0}
        options |= {"num_key_value_heads": 2} if family != "gpt_neox" else {}
        save(Tiny(family, "text", options).model(), folder)
        if family == "llama":
            save_as_transformers_5_does(here / "tokenizer", folder)
        else:
            for path in (here / "tokenizer").iterdir():
                (folder / path.name).write_bytes(path.read_bytes())
    for folder in (here / "hf").iterdir():
        source = open_foreign(folder)
        import_model(source, here / "checkpoints" / folder.name, Mesh(pp=source.config.depth))
        out = here / "exported" / folder.name
        checkpoint = Checkpoint.open(here / "checkpoints" / folder.name)
        export_model(checkpoint, out, by_name(source.config.family), most=60_000)
        ids = torch.randint(0, 97, (2, 33), generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            logits = load_decoder(checkpoint, torch.float32)(ids)
        save_file({"ids": ids, "logits": logits}, out / "expected.safetensors")
        if (out / "tokenizer.json").exists():
            (out / "text.json").write_text(json.dumps(TEXTS))
    return here


def save_as_transformers_5_does(tokenizer: Path, folder: Path) -> None:
    """With a class and with keys that transformers 4 does not know."""
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(tokenizer)
    found.add_special_tokens({"additional_special_tokens": ["<|more|>"]})
    found.chat_template = CHAT
    found.save_pretrained(folder)
    about = json.loads((folder / "tokenizer_config.json").read_text())
    assert about["tokenizer_class"] == "TokenizersBackend", "what this test is about"
    assert (folder / "chat_template.jinja").is_file()


@pytest.fixture(scope="module", params=VERSIONS)
def found(request: pytest.FixtureRequest, exported: Path) -> dict[str, Any]:
    """What a transformers says of each exported model."""
    version = request.param
    path = str(installed(f"transformers-{version}", VERSIONS[version])) if VERSIONS[version] else ""
    check = [sys.executable, str(Path(__file__).with_name("check.py")), str(exported / "exported")]
    saved = exported / f"saved-{version}"
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "USE_TF": "0"}
    done = subprocess.run([*check, str(saved)], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert said["version"] == version or not path
    models = {name: about for name, about in said["models"].items() if about}
    refused = {name: models.pop(name)["refused"] for name in list(models) if "refused" in models[name]}
    wanted = REFUSED.get(version, {})
    assert refused.keys() == wanted.keys()
    assert all(part in refused[name] for name, part in wanted.items())
    assert {name.partition("-")[0] for name, about in said["models"].items() if not about} == YOUNGER.get(
        version, set()
    )
    return {"version": version, "models": models, "saved": saved}


def test_logits(found: dict[str, Any]) -> None:
    version, models = found["version"], found["models"]
    absent = len([tiny for tiny in TINY if tiny.family in YOUNGER.get(version, ())]) + len(REFUSED.get(version, ()))
    assert len(models) == len(TINY) - absent + 4
    for name, about in models.items():
        assert about["class"] == by_name(name.partition("-")[0]).architecture
        otherwise = name in OTHERWISE.get(version, {})
        assert about["problems"] == [] or otherwise, name
        assert (about["difference"] < 1e-5) == (not otherwise), name


def test_dtype(found: dict[str, Any]) -> None:
    for name, about in found["models"].items():
        assert about["dtype"] == ("torch.bfloat16" if name == "llama-bf16" else "torch.float32")


def test_tokenizer(found: dict[str, Any], exported: Path) -> None:
    for family in ("gpt_neox", "llama", "mistral"):
        about = found["models"][f"{family}-text"]
        if family == "llama" and found["version"] == "4.40.2":
            assert "ModelWrapper" in about["unread"], "tokenizers before 0.20 reads no file that a later one wrote"
            continue
        tokenizer = Tokenizer(exported / "exported" / f"{family}-text")
        assert about["ids"] == [tokenizer.encode(text) for text in TEXTS]
        assert about["texts"] == TEXTS
        assert about["special"] == [0, 0, 1]
        assert tokenizer.encode(f"a{EOD}")[-1] == 0
    if "unread" not in found["models"]["llama-text"]:
        assert found["models"]["llama-text"]["more"]
        assert found["models"]["llama-text"]["chat"] == "[user] Hi"


def test_what_it_saves_is_imported_right(found: dict[str, Any], exported: Path) -> None:
    """Configuration and weights, from safetensors and from .bin, in several files and in one."""
    for name, about in found["models"].items():
        if about["problems"]:
            continue  # it saves less than it was given
        wanted = open_foreign(exported / "exported" / name)
        for kind in (found["saved"] / name).iterdir():
            source = open_foreign(kind)
            tokens = {"tokens": wanted.config.tokens}
            assert source.config.model_copy(update=tokens) == wanted.config, f"{name} {kind.name}"
            assert list(source.names()) == list(wanted.names())
            for tensor in source.names():
                assert torch.equal(source.read(tensor), wanted.read(tensor).float()), f"{name} {kind.name} {tensor}"
            source.close()
        wanted.close()

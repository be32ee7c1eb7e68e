"""Meta's files become the same model here as in transformers' own converter (which transformers 5 no longer has)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from meta_reference import meta_tensors, write_meta
from packages import TRANSFORMERS, installed
from tiny import Tiny

from neoxkit.convert.hf_source import HuggingFaceSource
from neoxkit.convert.open import open_foreign

VOCAB = 96
PARAMS = {"dim": 64, "n_layers": 3, "n_heads": 8, "norm_eps": 1e-5, "multiple_of": 32, "vocab_size": VOCAB}
CASES: dict[str, dict[str, Any]] = {
    "1": {"shards": 1, "params": {}},
    "2": {"shards": 4, "params": {"n_kv_heads": 4}},
    "3": {"shards": 2, "params": {"n_kv_heads": 4, "rope_theta": 500000.0}},
    "3.1": {"shards": 2, "params": {"n_kv_heads": 2, "rope_theta": 500000.0, "use_scaled_rope": True}},
}
"""By the converter's version of Llama."""

CONVERT = """
import gc, json, sys
from transformers.models.llama.convert_llama_weights_to_hf import write_model
gc.collect = lambda *_: 0  # half a second after each file of weights
for source, result, version, vocab, shards in json.loads(sys.argv[1]):
    write_model(result, source, llama_version=version, vocab_size=vocab, num_shards=shards)
"""


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each version a folder with `meta`, its files as Meta has them, and `theirs`, which transformers converted."""
    here = tmp_path_factory.mktemp("converted")
    for version, case in CASES.items():
        params = {**PARAMS, **case["params"]}
        sizes = {"vocab_size": VOCAB, "hidden_size": 64, "num_attention_heads": 8, "intermediate_size": 192}
        model = Tiny("llama", "meta", {**sizes, "num_key_value_heads": params.get("n_kv_heads", 8)}).model()
        embedding = 0 if version.startswith("3") else 1
        write_meta(here / version / "meta", meta_tensors(model), params, case["shards"], embedding)
    folders = (
        installed("transformers-4.46.3", TRANSFORMERS["4.46.3"]),
        installed("accelerate-1.1.1", ("accelerate==1.1.1", "psutil==7.2.2")),  # without which it loads nothing
    )
    asked = [
        [*(str(here / version / name) for name in ("meta", "theirs")), version, VOCAB, case["shards"]]
        for version, case in CASES.items()
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders)), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", CONVERT, json.dumps(asked)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return here


@pytest.mark.parametrize("version", CASES)
def test_as_transformers_converts(version: str, converted: Path) -> None:
    folder = converted / version
    config = folder / "theirs" / "config.json"
    tokens = {"bos_token_id": 1, "eos_token_id": 2}  # the converter writes those of Llama 3, beyond this vocabulary
    config.write_text(json.dumps({**json.loads(config.read_text()), **tokens}))
    theirs = HuggingFaceSource(folder / "theirs")
    ours = open_foreign(folder / "meta", {"rope-factor": "8"} if version == "3.1" else None)
    told = {"position", "mixer", "mlp", "norm", "residual", "width", "depth", "vocab", "tied"}
    assert ours.config.model_dump(include=told) == theirs.config.model_dump(include=told)
    assert sorted(ours.names()) == sorted(theirs.names())
    for name in ours.names():
        value = ours.read(name).to(torch.bfloat16)  # which the converter loads all models in
        assert torch.equal(value, theirs.read(name)), name

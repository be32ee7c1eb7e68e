"""neoxkit inspect."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from refusal import run


@pytest.mark.parametrize("source", ["checkpoint", "run", "run/step-00000002", "hf", "neox"])
def test_people_and_programs_see_the_same(here: Path, source: str) -> None:
    result = run(f"inspect {source}")
    assert (result.exit_code, result.stderr) == (0, "")
    about = json.loads(run(f"inspect {source} --json").stdout)
    assert f"{about['parameters']['total']:,}" in result.stdout
    assert "tensors" not in about
    more = json.loads(run(f"inspect {source} --json --tensors").stdout)
    assert more["tensors"]
    assert more["files"]
    assert "layers.{0.." in run(f"inspect {source} --tensors").stdout
    assert "layers.{0.." not in result.stdout
    if source in ("checkpoint", "hf", "neox"):
        assert about["tokenizer"]["vocab"] == 300
    if source.startswith("run"):
        assert about["step"] == 2
        assert about["trainer"]


def test_no_torch_numpy_or_pydantic_for_a_checkpoint(world: Path) -> None:
    probe = (
        "import sys; from neoxkit.cli import main\n"
        "try: main(['inspect', 'run', '--tensors'])\n"
        "finally:\n"
        "    slow = {'torch', 'numpy', 'pydantic', 'rich', 'tokenizers'}\n"
        "    print(sorted(slow & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=world, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "optimizer/exp_avg/layers.{0..1}.attn.q.weight" in done.stdout

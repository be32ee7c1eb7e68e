"""As crash_writer.py, for the commands import, reshard and export: each line on stdin runs one in a fork.

An act is a command and the kind of its source: "import-neox". The sources of FOLDER lie beside it, in
sources/KIND-SEED.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import crash_writer
import torch
from crash_writer import CONFIG, save_model

from neoxkit.checkpoint.plan import Part, cut
from neoxkit.checkpoint.writer import Writer
from neoxkit.cli import main as neoxkit
from neoxkit.mesh import Mesh
from neoxkit.nn.decoder import specs
from neoxkit.spec import whole

KINDS = {
    "import-hf": ["import", "--tp", "2"],
    "import-sharded": ["import", "--tp", "2"],
    "import-meta": ["import", "--tp", "2"],
    "import-neox": ["import", "--tp", "2"],
    "reshard-whole": ["reshard", "--pp", "2"],
    "reshard-trained": ["reshard", "--tp", "2", "--pp", "2"],
    "export-whole": ["export", "--to", "gpt_neox", "--max-shard-size", "90KB"],
}
"""Each act, the command that it is and its options."""


def source(folder: Path, act: str, seed: int) -> Path:
    """Where the source of an act lies."""
    return folder.parent / "sources" / f"{act.partition('-')[2]}-{seed}"


def save_trained(path: Path, seed: int) -> None:
    """A checkpoint with the state of an optimizer, in runs, and of a trainer."""
    known = {f"{part}/{name}": spec for part in ("model", "optimizer/master") for name, spec in specs(CONFIG).items()}
    parts = cut(known, dict.fromkeys(known, "F32"), Mesh(tp=2))
    file = "optimizer/r00001.safetensors"
    spec = known["model/norm.weight"]
    runs = ((0, 10), (10, spec.shape[0]))
    parts += [Part("optimizer/exp_avg/norm.weight", spec, "F32", whole(spec.shape), file, run) for run in runs]
    about: dict[str, Any] = {"step": seed, "trainer": {"step": seed}, "rng": {"cpu": b"abc"}}
    with Writer(path, parts, config=CONFIG, mesh={"tp": 2}, **about) as writer:
        for part in parts:
            shape = (part.elements,) if part.run else tuple(stop - start for start, stop in part.box)
            writer.write(part.name, part.box, torch.full(shape, float(seed)), part.run)
        writer.commit()


def act_of(kind: str) -> Any:
    """What runs a command, replacing what is there."""
    command, *options = KINDS[kind]

    def act(folder: Path, seed: int) -> None:
        given = [command, str(source(folder, kind, seed)), str(folder), "--force", *options]
        try:
            neoxkit(given)
        except SystemExit as end:
            if end.code:
                raise AssertionError(f"{json.dumps(given)} ends with {end.code}") from None

    return act


crash_writer.ACTS.update({kind: act_of(kind) for kind in KINDS})

if __name__ == "__main__":
    crash_writer.main()

__all__ = ["KINDS", "save_model", "save_trained", "source"]

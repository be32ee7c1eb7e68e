"""A process that saves checkpoints and exports models, each in a fork of its own, so that it can be killed.

For each line on stdin, "ACT FOLDER SEED KILL_AT", it forks; the fork saves the tensors of that seed and
publishes them, or exports the model of that seed. It prints the fork's process id at once, and, asked
by an empty line, the signal that ended it (so that the id belongs to the fork for as long as it may be
killed).
With KILL_AT above 0 the fork kills itself just before its call of that number that changes the disk,
and prints the call's name.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from killing import Steps

from neoxkit.checkpoint import attempt as attempts
from neoxkit.checkpoint.folder import publish
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.checkpoint.writer import Writer, cut
from neoxkit.config.model import ModelConfig
from neoxkit.convert.transfer import export_model
from neoxkit.families import by_name
from neoxkit.mesh import Mesh
from neoxkit.nn.decoder import specs
from neoxkit.spec import Axis, Split, TensorSpec, whole

CONFIG = ModelConfig.model_validate(
    {"family": "llama", "depth": 2, "width": 64, "vocab": 64, "context": 8, "mixer": {"heads": 4}}
)
SHAPE = (512, 256)
NAMES = [f"layers.{layer}.attn.{part}.weight" for layer in range(2) for part in "qo"]
SPECS = {f"model/{name}": TensorSpec(name, SHAPE, (Split(int("attn.o" in name), Axis.TP),)) for name in NAMES}
CHANGES = ("open", "mkdir", "pwrite", "posix_fallocate", "ftruncate", "fsync", "rename", "replace", "unlink", "rmdir")


def values(seed: int) -> dict[str, torch.Tensor]:
    """The tensors of a seed."""
    return {
        name: torch.arange(SHAPE[0] * SHAPE[1], dtype=torch.int32).reshape(SHAPE) * 7 + seed * 1000 + index
        for index, name in enumerate(SPECS)
    }


def save(folder: Path, seed: int) -> None:
    """Save, in small blocks, replacing what is there; then publish."""
    parts = cut(SPECS, dict.fromkeys(SPECS, "I32"), Mesh(tp=2, pp=2))
    with Writer(folder, parts, config=CONFIG, mesh={"tp": 2}, step=seed, force=True, trainer={"seed": seed}) as writer:
        for name, value in values(seed).items():
            for first in range(0, SHAPE[0], 128):
                writer.write(name, ((first, first + 128), (0, SHAPE[1])), value[first : first + 128])
        writer.commit()
    publish(folder.parent, folder)


def source(folder: Path, seed: int) -> Path:
    """The checkpoint of a whole model, which an export to `folder` is made of."""
    return folder.parent / "sources" / f"seed-{seed}"


def save_model(path: Path, seed: int) -> None:
    """Save a whole model whose weights are all the seed."""
    known = {f"model/{name}": spec for name, spec in specs(CONFIG).items()}
    with Writer(path, cut(known, dict.fromkeys(known, "F32"), Mesh()), config=CONFIG, mesh={}) as writer:
        for name, spec in known.items():
            writer.write(name, whole(spec.shape), torch.full(spec.shape, float(seed)))
        writer.commit()


def export(folder: Path, seed: int) -> None:
    """Export the model of a seed in several files, replacing what is there."""
    checkpoint = Checkpoint.open(source(folder, seed))
    export_model(checkpoint, folder, by_name("gpt_neox"), most=100_000, force=True)


ACTS = {"save": save, "export": export}


def main() -> None:
    """Serve until stdin ends."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        act, folder, seed, kill_at = line.split()
        announced, announce = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(announce)
            os.read(announced, 1)  # returns when the other end is closed
            steps = Steps(int(kill_at))
            steps.watch(os, *CHANGES)
            steps.watch(attempts, "_exchange")
            ACTS[act](Path(folder), int(seed))
            os._exit(0)
        print(child, flush=True)
        os.close(announce)
        os.close(announced)
        sys.stdin.readline()
        status = os.waitpid(child, 0)[1]
        print("ended", os.WTERMSIG(status) if os.WIFSIGNALED(status) else -status, flush=True)


if __name__ == "__main__":
    main()

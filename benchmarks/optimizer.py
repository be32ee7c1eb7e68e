"""Reshard of a checkpoint with optimizer state, against DeepSpeed's ds_to_universal on an equal ZeRO checkpoint.

Both hold bf16 weights, fp32 masters and two moments of a model of the same tensors: neoxkit's cut for
tensor parallel 1, DeepSpeed's written by itself in two processes with ZeRO stage 1. In turn, in
several rounds, each in a process of its own, from a cold cache to stable storage: `neoxkit reshard`
to tensor parallel 2, `ds_to_universal`, and `cp` of each. What each leaves on the disk is
told as a multiple of its source. DeepSpeed is not one of neoxkit's packages for tests:

    pip install deepspeed && python benchmarks/optimizer.py --millions 136 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from measuring import Taken, files, machine, measure
from models import model_config, theirs

from neoxkit.checkpoint.dtypes import TORCH
from neoxkit.checkpoint.format import MODEL
from neoxkit.checkpoint.writer import Writer, cut
from neoxkit.families import FAMILIES
from neoxkit.families.spelling import read_config
from neoxkit.mesh import ONE
from neoxkit.nn.decoder import specs
from neoxkit.spec import rows, whole

DEEPSPEED = """
import json, os, sys
import torch, deepspeed

class Model(torch.nn.Module):
    def __init__(self, shapes):
        super().__init__()
        names = [name.replace(".", "_") for name in shapes]
        for name, shape in zip(names, shapes.values()):
            self.register_parameter(name, torch.nn.Parameter(torch.randn(shape) * 0.02))

    def forward(self):
        return sum(parameter.square().mean() for parameter in self.parameters())

model = Model(json.load(open(sys.argv[1])))
engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config={
    "train_batch_size": 2, "train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True},
    "zero_optimization": {"stage": 1}, "zero_allow_untested_optimizer": True,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
})
engine.backward(engine())
engine.step()
engine.save_checkpoint(sys.argv[2], tag="step")
torch.distributed.barrier()
sys.stdout.flush()
os._exit(0)
"""


def write_ours(folder: Path, config: dict[str, object]) -> None:
    """A checkpoint with masters and moments, of random numbers."""
    model = read_config(FAMILIES["gpt_neox"], config)
    tensors = specs(model)
    components = {
        MODEL: "BF16",
        "optimizer/master/": "F32",
        "optimizer/exp_avg/": "F32",
        "optimizer/exp_avg_sq/": "F32",
    }
    named = {part + name: (spec, dtype) for part, dtype in components.items() for name, spec in tensors.items()}
    parts = cut({name: spec for name, (spec, _) in named.items()}, {name: d for name, (_, d) in named.items()}, ONE)
    with Writer(folder, parts, config=model, mesh={"pp": 1, "tp": 1}, trainer={"step": 1}) as writer:
        for name, (spec, dtype) in named.items():
            for box in rows(whole(spec.shape), 4 << 20):
                shape = tuple(stop - start for start, stop in box)
                writer.write(name, box, torch.rand(shape).to(TORCH[dtype]))
        writer.commit()


def write_theirs(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """The same tensors as DeepSpeed saves them with ZeRO stage 1 in two processes."""
    about, script = folder.with_suffix(".json"), folder.with_suffix(".py")
    about.write_text(json.dumps(shapes))
    script.write_text(DEEPSPEED)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, str(script), str(about), str(folder)], env=environment, capture_output=True)
    if not list((folder / "step").glob("*optim_states.pt")):
        raise SystemExit(f"DeepSpeed wrote no checkpoint:\n{done.stderr.decode()[-2000:]}")


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in files(folder))


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, default=136, help="parameters of the model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write, with room for 5 checkpoints (default: temporary)")
    given = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="optimizer-", dir=given.folder))
    os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        config = model_config("gpt_neox", given.millions / 1e3).to_dict()
        shapes = theirs("gpt_neox", config)
        write_ours(base / "ours", config)
        write_theirs(base / "theirs", shapes)
        result = base / "result"
        universal = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
        universal += ["--input_folder", str(base / "theirs" / "step"), "--output_folder", str(result)]
        reshard = [sys.executable, "-m", "neoxkit", "reshard", str(base / "ours"), str(result), "--tp", "2"]
        acts = {
            "neoxkit reshard": (reshard, base / "ours", True),
            "ds_to_universal": (universal, base / "theirs", False),
        }
        taken: dict[str, list[Taken]] = {}
        disk: dict[str, float] = {}
        for number in range(given.rounds + 1):
            for name, (command, source, flushed) in acts.items():
                copy = measure(["cp", "-r", "--reflink=never", str(source), str(result)], source, result, False)
                one = measure(command, source, result, flushed)
                disk[name] = size(result) / size(source)
                print(f"round {number}: {name:16} {one} cp {copy}", file=sys.stderr)
                if number:
                    taken.setdefault(name, []).append(one)
                    taken.setdefault(f"cp for {name}", []).append(copy)
        sizes = {name: size(source) for name, (_, source, _) in acts.items()}
    finally:
        shutil.rmtree(base)
    for name, value in {"parameters": int(sum(np.prod(s) for s in shapes.values())), **sizes, **machine()}.items():
        print(f"{name:18}{value:,}" if isinstance(value, int) else f"{name:18}{value}")
    print(f"\n{'':18}{'wall s':>9}{'CPU s':>9}{'peak MB':>9}{'/ cp':>9}{'disk':>9}")
    for name in acts:
        each, copies = taken[name], taken[f"cp for {name}"]
        ratio = statistics.median(a.wall / b.wall for a, b in zip(each, copies, strict=True))
        wall, cpu = (statistics.median(getattr(one, what) for one in each) for what in ("wall", "cpu"))
        print(f"{name:18}{wall:9.2f}{cpu:9.2f}{max(o.memory for o in each):9.0f}{ratio:9.2f}{disk[name]:9.2f}")


if __name__ == "__main__":
    main()

"""Training on a GPU: what a CPU learns, in every precision and by both engines; saves and what goes on from them."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tiny_runs as runs
import torch
import yaml

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.nn.decoder import form_groups
from neoxkit.spec import Box, Run
from neoxkit.train.begin import build_engine
from neoxkit.train.engine import Engine
from neoxkit.train.loop import train
from neoxkit.train.memory import of_run
from neoxkit.train.metrics import read
from neoxkit.train.saving.background import Background
from neoxkit.train.saving.order import Value

pytestmark = pytest.mark.gpu

CLOSE = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 2e-2}
"""How far a loss of about 4 nats may lie from the CPU's in fp32."""


def losses_of(device: str, precision: str, folder: Path, steps: int = 6, **changes: Any) -> list[float]:
    """The losses of a tiny Llama on the same batch again and again."""
    options: dict[str, Any] = {"precision": precision, "device": device, **changes}
    run = runs.config("llama", folder, **options).on(1)
    engine: Engine = build_engine(run, torch.device(device), form_groups(run.model, run.placed, device))
    engine.initialise()
    return [engine.step([runs.batch(2, 0), runs.batch(2, 1)], 1e-2).loss for _ in range(steps)]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_learns_what_a_cpu_does(precision: str, tmp_path: Path) -> None:
    wanted = losses_of("cpu", "fp32", tmp_path)
    found = losses_of("cuda", precision, tmp_path)
    assert found == pytest.approx(wanted, abs=CLOSE[precision])
    assert found[-1] < found[0]


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_neox"])
@pytest.mark.parametrize(("precision", "compile_"), [("fp32", False), ("bf16", False), ("bf16", True)])
def test_documents_in_a_row_learn_what_they_do_alone(
    family: str, precision: str, compile_: bool, tmp_path: Path
) -> None:
    """By whichever kernel a GPU takes for it: flash attention by the ends of documents, flex, or a mask."""
    options: dict[str, Any] = {"precision": precision, "device": "cuda", "kernels": {"compile": compile_}}
    run = runs.config(family, tmp_path, **options).on(1)
    packed, alone = (build_engine(run, torch.device("cuda"), form_groups(run.model, run.placed, "cuda")) for _ in "ab")
    for engine in (packed, alone):
        engine.initialise()
    for step in range(3):
        rows = runs.packed(3, step)
        ours, theirs = packed.step([rows], 1e-2), alone.step(runs.alone(rows), 1e-2)
        assert ours.tokens == theirs.tokens
        assert ours.loss == pytest.approx(theirs.loss, abs=CLOSE[precision])
        assert ours.norm == pytest.approx(theirs.norm, rel=1e-3 if precision == "fp32" else 5e-2)


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed")
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_deepspeed_learns_what_the_plain_engine_does(precision: str, stage: int, tmp_path: Path) -> None:
    if stage == 0 and precision != "fp32":
        pytest.skip("DeepSpeed keeps no masters without ZeRO, and the configuration says so")
    wanted = losses_of("cuda", precision, tmp_path)
    found = losses_of("cuda", precision, tmp_path, engine="deepspeed", zero={"stage": stage})
    assert found == pytest.approx(wanted, abs=CLOSE[precision] / 10)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_that_stops_goes_on_as_if_it_had_not(precision: str, tmp_path: Path) -> None:
    """Bit for bit, the random numbers of the device among what is kept."""
    runs.write_tokens(tmp_path)
    ends = {}
    for name, stops in (("whole", [6]), ("twice", [3, 6])):
        for steps in stops:
            options: dict[str, Any] = {
                "precision": precision,
                "device": "cuda",
                "save": {"folder": f"{tmp_path}/{name}"},
            }
            options["schedule"] = {"decay": "constant"}
            run = runs.config("llama", tmp_path, steps=steps, **options)
            path = train(run, {"steps": steps}).checkpoint
            assert isinstance(path, Path)
        ends[name] = path
        assert any(record.get("memory") for record in read(tmp_path / name))
    with Checkpoint.open(ends["whole"]) as whole, Checkpoint.open(ends["twice"]) as twice:
        for tensor in whole.names():
            assert torch.equal(whole.read(tensor), twice.read(tensor)), tensor


class Kept:
    """An order that only compares what it is given."""

    def __init__(self, wanted: list[torch.Tensor]) -> None:
        self.wanted = wanted

    def fulfil(self, values: Any) -> None:
        """Raise OSError where a value is not what it was when the order was given."""
        for value, wanted in zip(values, self.wanted, strict=True):
            if not torch.equal(value.numbers, wanted):
                raise OSError(1, "other numbers", value.name)


def test_a_save_holds_what_the_gpu_held_at_that_moment() -> None:
    """The copy is done when `submit` returns: what training changes afterwards is not in it."""
    numbers = [torch.randn(1 << 20, device="cuda"), torch.randn(33, 7, device="cuda").to(torch.bfloat16)]
    box: Box = ((0, 1),)
    run: Run | None = None
    background = Background()
    try:
        for _ in range(2):  # the second finds the memory made and pinned
            values = [Value(str(index), box, run, each) for index, each in enumerate(numbers)]
            order: Any = Kept([each.cpu().clone() for each in numbers])
            background.submit(order, values)
            for each in numbers:
                each.zero_().add_(1)
            assert background.wait() is None
            assert background.pinned
    finally:
        background.close()


def test_what_is_predicted_of_memory_is_what_a_step_takes(tmp_path: Path) -> None:
    """Within a fifth of what torch allocated at most, for a model whose numbers are not all rounding."""
    model = {"family": "llama", "depth": 4, "width": 512, "vocab": 8192, "context": 512, "tied": False}
    run = runs.config("llama", tmp_path, model={**runs.tree("llama", tmp_path)["model"], **model}, device="cuda",
                      precision="bf16", batch={"size": 4}).on(1)  # fmt: skip
    engine = build_engine(run, torch.device("cuda"), form_groups(run.model, run.placed, "cuda"))
    engine.initialise()
    torch.cuda.reset_peak_memory_stats()
    for seed in range(2):
        engine.step([runs.batch(4, seed, length=512)], 1e-3)
    assert torch.cuda.max_memory_allocated() == pytest.approx(of_run(run)[0].total, rel=0.2)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs, for NCCL")
def test_two_gpus_learn_what_one_does(tmp_path: Path) -> None:
    """Data, tensor and context parallel, and both kinds of pipeline and ZeRO, over NCCL, from the command line."""
    runs.write_tokens(tmp_path)
    found = {}
    meshes = {"one": {}, "dp": {"dp": 2}, "tp": {"tp": 2}, "cp": {"cp": 2}, "pp": {"pp": 2}}
    for name, mesh in meshes.items():
        options: dict[str, Any] = {"mesh": mesh, "device": "cuda", "save": {"folder": f"{tmp_path}/{name}"}}
        given = runs.tree("llama", tmp_path, precision="bf16", zero={"stage": int(name == "pp")}, **options)
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(given))
        command = [sys.executable, "-m", "neoxkit", "train", str(tmp_path / f"{name}.yaml")]
        subprocess.run([*command, "--nproc", "1" if name == "one" else "2"], check=True)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        found[name] = [record["loss"] for record in map(json.loads, lines) if "loss" in record]
    for name, losses in found.items():
        assert losses == pytest.approx(found["one"], abs=CLOSE["bf16"]), name

"""Laws 8 and 9: however a model is divided, by which engine and ZeRO stage, it learns what one process does.

Each engine goes on from the checkpoint of the one before it, which was divided otherwise.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import deepspeed_ranks
import pytest
from deepspeed_ranks import ROWS, Chain, Link, prepare
from packages import cached
from tiny_runs import VOCAB

from neoxkit.mesh import Mesh

pytestmark = [
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed"),
    pytest.mark.timeout(600),
]

DP, TP, BOTH = Mesh(dp=4), Mesh(tp=4), Mesh(tp=2, dp=2)
PIPE, PIPE_TP = Mesh(pp=2, dp=2), Mesh(pp=2, tp=2)
CONTEXT, CONTEXT_TP = Mesh(cp=2, dp=2), Mesh(cp=2, tp=2)


def link(at: Mesh, stage: int, **changes: Any) -> Link:
    """A link, named after what it is."""
    sizes = "".join(f"{axis}{getattr(at, axis)}" for axis in ("pp", "tp", "cp", "dp") if getattr(at, axis) > 1)
    return Link("-".join([sizes, f"zero{stage}", *changes]), at, stage, changes=changes)


FP32 = (
    link(DP, 1),
    link(TP, 3),
    link(BOTH, 0),
    Link("plain-tp2dp2", BOTH, engine="plain"),
    link(BOTH, 2, recompute={"layers": "full", "every": 1}),
    link(PIPE, 1),
    link(DP, 3),
    link(CONTEXT, 1),
    link(CONTEXT_TP, 3, recompute={"layers": "full", "every": 2}),
    link(PIPE_TP, 0, recompute={"layers": "selective", "every": 2}),
    link(TP, 1),
    link(BOTH, 3, recompute={"layers": "full", "every": 2}),
    link(PIPE_TP, 1, mesh={"tp": 2, "pp": 2, "dp": 1, "sequence_parallel": True}),
    link(DP, 2, deepspeed={"zero_optimization": {"reduce_bucket_size": 500, "overlap_comm": True}}),
    link(TP, 0),
    link(BOTH, 1, mesh={"tp": 2, "dp": 2, "sequence_parallel": True}),
)
BF16 = (link(BOTH, 3), link(PIPE, 1, deepspeed={"wall_clock_breakdown": True}), link(DP, 2), link(BOTH, 1))
FP16 = (link(DP, 1), link(BOTH, 3), link(BOTH, 2))
PACKED = (
    link(CONTEXT_TP, 3, recompute={"layers": "full", "every": 2}),
    link(PIPE, 1, recompute={"layers": "selective", "every": 1}),
    Link("plain-cp2dp2", CONTEXT, engine="plain"),
)
LEARNED = {
    "model": {"family": "gpt_neox", "depth": 2, "width": 16, "vocab": VOCAB, "context": 12}
    | {"position": {"kind": "learned"}, "mixer": {"heads": 4}},
    "batch": {"size": ROWS, "micro": 2},
}
LEARNED_LINKS = (
    link(PIPE_TP, 0, mesh={"tp": 2, "pp": 2, "dp": 1, "sequence_parallel": True}),
    link(CONTEXT_TP, 1, mesh={"tp": 2, "cp": 2, "dp": 1, "sequence_parallel": True}),
)
OTHERS = (link(PIPE, 1), link(BOTH, 3))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[deepspeed_ranks.Finding]:
    """What four processes found in all chains."""
    chains: list[Chain] = [
        prepare("llama", "llama", "fp32", FP32),
        prepare("gpt-neox", "gpt_neox", "bf16", BF16),
        # (without biases: that of the keys has no gradient but rounding, of which Lion would take the sign)
        prepare("lion", "llama", "fp32", OTHERS, optimizer={"kind": "lion", "lr": 1e-3}),
        prepare("packed", "mistral", "fp32", PACKED, packed=True, batch={"size": ROWS, "micro": 2}),
        prepare("packed-learned", "gpt_neox", "fp32", LEARNED_LINKS, packed=True, **LEARNED),
        prepare("fp16", "mistral", "fp16", FP16, loss_scale={"initial": 2.0**20, "window": 3, "hysteresis": 1}),
    ]
    return deepspeed_ranks.run(4, chains, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("chain", ["llama", "gpt-neox", "lion", "packed", "packed-learned", "fp16"])
def test_every_engine_learns_what_one_process_does(found: list[deepspeed_ranks.Finding], chain: str) -> None:
    """Losses, norms, weights, masters, moments; over ZeRO stages and meshes, through checkpoints of each other."""
    lines = [f"{each.topic}: {each.what}" for each in found if each.case == chain]
    assert not lines, "\n".join(lines[:40])


def test_twenty_steps_of_eight_processes(tmp_path: Path) -> None:
    """tp 2, pp 2 and dp 2 at once, ZeRO 1, against one process."""
    mesh = Mesh(pp=2, tp=2, dp=2)
    chain = prepare("llama", "llama", "fp32", [Link("2 x 2 x 2", mesh, 1)], steps=20)
    lines = [f"{each.topic}: {each.what}" for each in deepspeed_ranks.run(8, [chain], tmp_path)]
    assert not lines, "\n".join(lines[:40])


LEAN = """
#pragma once
#include <ATen/core/Tensor.h>
#include <torch/csrc/utils/pybind.h>
namespace torch { using at::Tensor; constexpr auto kFloat32 = at::kFloat; }
"""
"""In the place of torch's <torch/extension.h>, of which DeepSpeed's AdamW uses no more than this."""


def hasten_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that reads few headers and optimizes nothing takes a third of the time; the numbers are the same."""
    (folder / "lean" / "torch").mkdir(parents=True)
    (folder / "lean" / "torch" / "extension.h").write_text(LEAN)
    hasty = folder / "hasty"
    hasty.write_text(f'#!/bin/sh\nexec {os.environ.get("CXX", "c++")} -I{folder}/lean "$@" -O0 -g0\n')
    hasty.chmod(0o755)
    monkeypatch.setenv("CXX", str(hasty))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(cached("torch-extensions")))  # not where real runs find theirs


@pytest.mark.slow  # the first time DeepSpeed compiles its AdamW for CPUs
@pytest.mark.timeout(900)
def test_state_that_is_kept_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ZeRO 1 to 3 with offloading, from and to ranks without."""
    hasten_compiler(tmp_path, monkeypatch)
    dp, tp = Mesh(dp=2), Mesh(tp=2)
    links = [
        link(dp, 2, zero={"stage": 2, "offload": "optimizer"}),
        link(tp, 1),
        link(tp, 3, zero={"stage": 3, "offload": "all"}),
        link(dp, 1, zero={"stage": 1, "offload": "optimizer"}),
    ]
    chains = [prepare(precision, "llama", precision, links) for precision in ("fp32", "bf16")]
    lines = [f"{each.case} {each.topic}: {each.what}" for each in deepspeed_ranks.run(2, chains, tmp_path, 800)]
    assert not lines, "\n".join(lines[:40])

"""Layers that torch compiles compute what the layers do."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from unittest.mock import patch

import compiled_rank
import pytest
import tiny_runs as runs
import torch
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters

from neoxkit.config.kernels import Kernels
from neoxkit.config.model import ModelConfig
from neoxkit.config.parallel import Recompute
from neoxkit.errors import ConfigError
from neoxkit.nn import compiling, decoder, stages
from neoxkit.nn.compiling import check_compiler
from neoxkit.nn.decoder import Decoder, holdings
from neoxkit.nn.init import initialise
from neoxkit.nn.stages import Middle, layers
from neoxkit.parallel.division import UNDIVIDED
from neoxkit.parallel.groups import LOCAL
from neoxkit.train.begin import build_engine

pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor",  # torch's own doing, while it traces
    "ignore:.*tracer.*:DeprecationWarning",
)


@pytest.mark.timeout(600)  # the first time a compiler works for a minute or more
def test_loss_and_every_gradient_compiled() -> None:
    """By the compiler that runs use. Names, shapes and what parameters hold are the same."""
    config = runs.config("llama").model
    plain, compiled = (Decoder(config, kernels=Kernels(compile=wanted)) for wanted in (False, True))
    assert list(plain.state_dict()) == list(compiled.state_dict())
    ids = runs.batch(2, 0).ids
    said = []
    for model in (plain, compiled):
        initialise(model, config, runs.config().init, 3)
        assert [held.spec for p in model.parameters() for held in holdings(p)]
        logits = model(ids)
        logits.logsumexp(-1).square().sum().backward()
        said.append(logits.detach())
    torch.testing.assert_close(said[1], said[0], rtol=1e-5, atol=1e-6)
    for (name, ours), theirs in zip(compiled.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        largest = float(theirs.grad.abs().max())
        assert float((ours.grad - theirs.grad).abs().max()) <= 1e-5 * largest, name


@pytest.mark.timeout(600)
def test_compiled_layers_that_are_divided_or_recomputed() -> None:
    """Ten layers are compiled as one, nothing is compiled after the first step, and the same is learned."""
    done = subprocess.run([sys.executable, compiled_rank.__file__], capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == len(compiled_rank.CASES) + 1
    assert not any(found.values()), found


@pytest.mark.filterwarnings("ignore:flex_attention called")
@pytest.mark.parametrize("kernel", ["flex", "sdpa"])
def test_what_a_kernel_prepares_goes_into_compiled_layers(kernel: str) -> None:
    """Functions, blocks and sizes that attention is given are other ones in each pass; nothing is compiled anew."""
    position, mixer = {"kind": "alibi"}, {"heads": 4, "kv_heads": 2, "window": 5}
    given = {"family": "gpt_neox", "depth": 2, "width": 32, "vocab": 50, "context": 32}
    config = ModelConfig.model_validate({**given, "position": position, "mixer": mixer})
    torch._dynamo.reset()
    counters.clear()
    graphs = []
    with patch.object(decoder, "compile_layers", partial(compiling.compile_layers, backend="aot_eager")):
        plain, compiled = (Decoder(config, kernels=Kernels(attention=kernel, compile=c)) for c in (False, True))
    for model in (plain, compiled):
        initialise(model, config, runs.config().init, 3)
    for step in range(3):
        ids, segments = runs.batch(2, step).ids % 50, (torch.arange(12) // (3 + step)).expand(2, 12).contiguous()
        with torch.no_grad():
            torch.testing.assert_close(compiled(ids, segments=segments), plain(ids, segments=segments))
        graphs.append(counters["stats"]["unique_graphs"])
    assert 0 < graphs[0] == graphs[-1]


def test_layers_of_a_pipeline_are_compiled() -> None:
    config = runs.config().model
    asked: list[tuple[torch.nn.Module, bool]] = []
    with patch.object(stages, "compile_layers", lambda blocks, wanted: asked.extend((x, wanted) for x in blocks)):
        row = layers(config, UNDIVIDED, Recompute(), 12, Kernels(compile=True))
        built = [layer.kind(*layer.arguments) for layer in row if layer.kind is Middle]
    assert [each.block for each in built] == [block for block, _ in asked]
    assert all(wanted for _, wanted in asked)


def test_a_machine_without_a_compiler_is_told_before_the_run() -> None:
    with (
        patch.object(compiling.torch, "compile", lambda function: broken),
        pytest.raises(ConfigError, match=r"kernels.compile: torch cannot compile for cpu here \(no g\+\+\)"),
    ):
        build_engine(runs.config(kernels={"compile": True}), torch.device("cpu"), LOCAL)


def broken(_: torch.Tensor) -> torch.Tensor:
    raise TorchDynamoException("no g++\nand more")


def test_a_compiler_that_is_not_there() -> None:
    """torch's own way of failing is one that is known."""
    without = {"cpp.cxx": (None, "/nonexistent"), "force_disable_caches": True}
    with torch._inductor.config.patch(without), pytest.raises(ConfigError, match="torch cannot compile for cpu here"):
        check_compiler(torch.device("cpu"))


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"zero": {"stage": 3}}, "kernels.compile with zero.stage 3"),
        ({"deepspeed": {"flops_profiler": {"enabled": True}}, "engine": "deepspeed"}, "deepspeed.flops_profiler"),
    ],
)
def test_what_compiling_does_not_go_with(options: dict[str, object], cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        runs.config(kernels={"compile": True}, **options)
    runs.config(kernels={"compile": False}, **options)

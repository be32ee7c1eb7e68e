"""What a run would need: the arithmetic, and the command that prints it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_runs as runs
from click.testing import CliRunner, Result

from neoxkit.cli import main
from neoxkit.config.load import load_run
from neoxkit.errors import ConfigError
from neoxkit.log import counted, sized
from neoxkit.nn.decoder import Decoder
from neoxkit.train.estimate import estimate, machine_of
from neoxkit.train.feed import Feed
from neoxkit.train.flops import count
from neoxkit.train.schedule import samples_after, samples_by_length

MODELS = Path(__file__).parents[2] / "configs" / "models"
WARMUP = {"start": 1, "increment": 1, "samples": 10}
CURRICULUM = {"curriculum": {"start": 2, "steps": 5, "multiple": 2}}
RUN = ("batch.size=1024", "steps=143000", "data.train=x", "save.folder=x")


def plan(*args: str) -> Result:
    return CliRunner().invoke(main, ["plan", *args], catch_exceptions=False)


def planned(*args: str) -> dict[str, Any]:
    result = plan(*args, "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_parameters_are_those_of_the_model() -> None:
    """405,334,016 is what the Pythia paper's table has for 410M."""
    found = planned(str(MODELS / "pythia-410m.yaml"))["parameters"]
    assert found["total"] == sum(number for part, number in found.items() if part != "total") == 405_334_016
    config = load_run([MODELS / "pythia-410m.yaml"], RUN)
    model = Decoder(config.model, "meta")
    assert found["embedding"] == found["head"] == model.embed.weight.numel()
    assert found["attention"] == sum(p.numel() for layer in model.layers for p in layer.attn.parameters())
    assert found["mlp"] == sum(p.numel() for layer in model.layers for p in layer.mlp.parameters())


def test_time_and_cost_follow_from_operations_and_speed() -> None:
    config = load_run([MODELS / "pythia-410m.yaml"], RUN)
    found = estimate(config, machine_of(config, 8, "A100", None, 0.5, 2.0))
    tokens = 143_000 * 1024 * 2048
    run = count(config.model, 2048).training * 143_000 * 1024
    assert found.tokens == tokens
    assert found.flops_per_token * tokens == pytest.approx(run)
    assert found.seconds == pytest.approx(run / (8 * 312e12 * 0.5))
    assert found.cost == pytest.approx(run / (8 * 312e12 * 0.5) / 3600 * 8 * 2.0)


def test_batches_and_samples_that_grow_are_counted_as_they_are_made(tmp_path: Path) -> None:
    """As the feed makes them; and a plan says that they are."""
    runs.write_tokens(tmp_path)
    for data, warmup in (({}, WARMUP), (CURRICULUM, None), (CURRICULUM, WARMUP)):
        made = runs.config(
            "gpt_neox",
            tmp_path,
            data={"train": str(tmp_path / "tokens"), **data},
            batch={"size": 4, "micro": 1, **({"warmup": warmup} if warmup else {})},
            steps=9,
        )
        feed, samples, tokens, flops = Feed(made), 0, [], 0
        for step in range(made.steps):
            batches = list(feed.batches(samples, step))
            samples += sum(len(batch.ids) for batch in batches)
            tokens.append(sum(batch.labels.numel() for batch in batches))
            flops += sum(count(made.model, batch.ids.shape[1]).training for batch in batches)
        found = estimate(made, machine_of(made, 1, None, None, 0.4, None))
        assert found.tokens == sum(tokens) < 9 * 4 * made.sequence
        assert found.run_flops == flops
        assert "; fewer a step at first" in "\n".join(found.lines())
        for done in range(made.steps):
            lengths = samples_by_length(made, made.steps - done, done, samples_after(made, done))
            assert sum(length * number for length, number in lengths.items()) == sum(tokens[done:])


def test_sizes_are_told_in_the_unit_that_fits() -> None:
    tiny = estimate(runs.config(), machine_of(runs.config(), 1, None, None, 0.4, None))
    lines = {line[:14].strip(): line[14:].strip() for line in tiny.lines()}
    assert lines["memory, kB"].endswith("total")
    assert float(lines["a device"].split()[-1]) == pytest.approx(tiny.memory[0].total / 1e3, abs=0.01)
    assert lines["a step"] == "4 samples of 12 tokens, in 2 micro-batches of 2 on 1 rank"
    assert [sized(n) for n in (0, 999, 1e3, 1.25e6, 3e9, 5e12)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "1.2 MB",
        "3.0 GB",
        "5.0 TB",
    ]
    assert [counted(n, "batch") for n in (0, 1, 1200)] == ["0 batches", "1 batch", "1,200 batches"]


def test_a_machine_is_what_is_said_of_it() -> None:
    config = load_run([MODELS / "pythia-410m.yaml"], (*RUN, "logging.peak_tflops=100"))
    stated = machine_of(config, None, "my-own", 24.0, 0.4, None)
    assert (stated.devices, stated.peak, stated.memory) == (1, 100e12, 24e9)
    known = machine_of(load_run([MODELS / "pythia-410m.yaml"], RUN), 2, "H100", None, 0.4, None)
    assert (known.devices, known.peak, known.memory) == (2, 989.4e12, 80e9)
    with pytest.raises(ConfigError, match="the device my-own is not known"):
        machine_of(load_run([MODELS / "pythia-410m.yaml"], RUN), None, "my-own", None, 0.4, None)


def test_the_plan_is_printed() -> None:
    result = plan(
        str(MODELS / "pythia-410m.yaml"),
        *("--devices", "8", "--device", "H100", "--price", "2.5", "--set", "batch.size=1024"),
        *("--set", "batch.micro=16", "--set", "steps=143000", "--set", "precision=bf16"),
    )
    assert result.exit_code == 0
    assert result.stderr == ""
    lines = {line[:14].strip(): line[14:].strip() for line in result.stdout.splitlines()}
    assert lines["model"] == "gpt_neox, 405,334,016 parameters"
    assert lines["devices"] == "8 H100: tp 1 x pp 1 x dp 8"
    assert lines["a step"] == "1,024 samples of 2,048 tokens, in 8 micro-batches of 16 on each of 8 ranks"
    assert lines["operations"] == "2.42 GFLOP a token, 7.27e+20 FLOP in all"
    assert lines["micro-batch"] == "at most 32 samples fit in 80 GB, of which CUDA takes 1.5"
    assert lines["time"].startswith("2.7 days at an MFU of 40% of 989 TFLOP/s")
    weights, gradients, optimizer = map(float, lines["a device"].split()[:3])
    assert (weights, gradients, optimizer) == (0.81, 1.62, 4.86)  # 2, 4 and 12 bytes a parameter


def test_stages_of_a_pipeline_have_a_line_each() -> None:
    options = ("mesh.tp=4", "mesh.pp=2", "batch.size=256", "batch.micro=1", "zero.stage=1", "data.sequence=2048")
    result = plan(
        str(MODELS / "pythia-1b.yaml"), "--devices", "64", *(arg for each in options for arg in ("--set", each))
    )
    assert result.exit_code == 0, result.stderr
    assert [line.split()[:2] for line in result.stdout.splitlines() if "stage" in line] == [
        ["stage", "0"],
        ["stage", "1"],
    ]
    assert "tp 4 x pp 2 x dp 8, ZeRO 1" in result.stdout
    assert result.stderr == "steps is not given: it is one step that is planned\n"


def test_a_model_alone_can_be_planned() -> None:
    result = plan(str(MODELS / "pythia-14m.yaml"), "--devices", "2")
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        "batch is not given: a step of 2 samples is assumed",
        "steps is not given: it is one step that is planned",
    ]


def test_what_computes_again_is_told() -> None:
    found = planned(str(MODELS / "pythia-14m.yaml"), "--set", "recompute.layers=full")
    assert found["flops"]["executed_per_token"] > found["flops"]["per_token"]
    plain = planned(str(MODELS / "pythia-14m.yaml"))
    assert found["memory"][0]["activations"] < plain["memory"][0]["activations"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--device", "abacus"], "the device abacus is not known"),
        (["--devices", "3", "--set", "mesh.tp=2"], "does not divide 3 devices"),
        (["--mfu", "1.5"], "--mfu"),
        (["--memory", "0"], "--memory"),
    ],
)
def test_what_cannot_be_planned_is_refused(args: list[str], said: str) -> None:
    result = plan(str(MODELS / "pythia-14m.yaml"), *args)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1

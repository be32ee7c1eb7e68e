"""Measurements of a run on two processes are those of the same run on one; so is what is planned of its memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jobs
import pytest
import tiny_runs as runs
from watching import ROWS, measure

from neoxkit.config.run import RunConfig

MESHES: dict[str, dict[str, Any]] = {
    "dp": {"dp": 2},
    "tp": {"tp": 2},
    "tp, sequence": {"tp": 2, "sequence_parallel": True},
    "cp": {"cp": 2},
}
FAMILIES = ("gpt_neox", "llama")
LOGGING = {"every": 1, "noise_scale": 1, "parameter_norm": 1, "peak_tflops": 1e-6}


def run_of(family: str, mesh: dict[str, Any], devices: int) -> RunConfig:
    logging = LOGGING | ({"noise_scale": None} if "cp" in mesh else {})
    config = runs.config(
        family, Path("/nowhere"), batch={"size": 4 * ROWS, "micro": ROWS}, logging=logging, mesh=mesh, engine="plain"
    )
    return config.on(devices)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """By family and mesh what each process measured."""
    folder = tmp_path_factory.mktemp("watching")
    names = [(family, mesh) for family in FAMILIES for mesh in MESHES]
    found = jobs.run(2, measure, [(run_of(family, MESHES[mesh], 2), folder) for family, mesh in names], folder)
    return {name: [rank[index] for rank in found] for index, name in enumerate(names)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mesh", MESHES)
def test_two_processes_measure_what_one_does(measured: Any, family: str, mesh: str, tmp_path: Path) -> None:
    alone = measure(run_of(family, {}, 1), tmp_path)["told"]
    assert alone["noise_scale"] > 0
    for rank in measured[family, mesh]:
        told = rank["told"]
        for key in ("loss", "norm", "parameter_norm"):
            assert told[key] == pytest.approx(alone[key], rel=1e-5), key
        assert ("noise_scale" in told) == (mesh != "cp")
        if mesh != "cp":
            assert told["noise_scale"] == pytest.approx(alone["noise_scale"], rel=1e-3)
        assert told["tokens"] == alone["tokens"]
        assert 0 < told["wait_seconds"] < told["seconds"]
        operations = told["mfu"] * told["seconds"] * 2  # of two devices
        assert math.isclose(operations, alone["mfu"] * alone["seconds"], rel_tol=1e-3)
    assert "wait_seconds" not in alone


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mesh", MESHES)
def test_each_process_holds_what_was_planned(measured: Any, family: str, mesh: str) -> None:
    first, _ = measured[family, mesh]
    planned, real = first["planned"], first["real"]
    assert planned["weights"] == real["weights"]
    assert planned["optimizer"] == real["optimizer"]
    assert real["activations"] <= planned["activations"] <= 1.05 * real["activations"]

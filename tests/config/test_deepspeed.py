"""DeepSpeed's own options: which are passed on, which are refused and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_runs as runs

from neoxkit.config.deepspeed import DECIDED, REMOVED, ZERO_DECIDED
from neoxkit.config.load import dump, load_run
from neoxkit.errors import ConfigError
from neoxkit.train.deepspeed.settings import deepspeed_config

RUN: dict[str, Any] = {"engine": "deepspeed", "zero": {"stage": 1}, "mesh": {"dp": 2}}


def test_what_is_tuned_is_passed_on_and_the_rest_is_as_the_run_says() -> None:
    options = {
        "zero_optimization": {"reduce_bucket_size": 1000, "overlap_comm": False},
        "comms_logger": {"enabled": True},
        "wall_clock_breakdown": True,
    }
    run = runs.config(**RUN, deepspeed=options, precision="bf16", batch={"size": 16, "micro": 2})
    found = deepspeed_config(run)
    assert found["zero_optimization"] == {"stage": 1, "reduce_bucket_size": 1000, "overlap_comm": False}
    assert found["comms_logger"]["enabled"] is True
    assert found["wall_clock_breakdown"] is True
    assert "flops_profiler" not in found
    assert found["train_batch_size"] == 16
    assert found["gradient_accumulation_steps"] == 4
    assert found["bf16"] == {"enabled": True}
    assert found["data_types"] == {"grad_accum_dtype": "fp32"}
    assert found["gradient_clipping"] == 0.0  # ours
    whole = {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    offloaded = runs.config(**RUN | {"zero": {"stage": 3, "offload": "all"}})
    assert deepspeed_config(offloaded)["zero_optimization"] == whole


@pytest.mark.parametrize("key", [*DECIDED, *REMOVED])
def test_what_others_decide_is_refused_by_name(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        runs.config(**RUN, deepspeed={key: 1})
    assert key in caught.value.cause
    assert DECIDED.get(key, REMOVED.get(key, "")) in caught.value.cause


@pytest.mark.parametrize("key", list(ZERO_DECIDED))
def test_so_it_is_within_zero(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} is decided by {ZERO_DECIDED[key]}"):
        runs.config(**RUN, deepspeed={"zero_optimization": {key: 1}})


@pytest.mark.parametrize("options", [{"zero_optimisation": {}}, {"zero_optimization": {"reduce_bucket": 5}}])
def test_a_misspelled_key_is_refused(options: dict[str, Any]) -> None:
    """DeepSpeed would take it without a word."""
    with pytest.raises(ConfigError):
        runs.config(**RUN, deepspeed=options)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"deepspeed": {"wall_clock_breakdown": True}}, "deepspeed"),
        ({"engine": "deepspeed", "precision": "bf16", "zero": {"stage": 0}}, "zero.stage 0 with precision bf16"),
        ({"mesh": {"pp": 2}, "precision": "bf16", "zero": {"stage": 0}}, "zero.stage 0 with precision bf16"),
        ({"mesh": {"pp": 2}, "zero": {"stage": 1}, "precision": "fp16"}, "precision"),
        ({"mesh": {"pp": 2}, "zero": {"stage": 2}}, "zero.stage"),
        ({"mesh": {"pp": 2}, "zero": {"stage": 1, "offload": "optimizer"}}, "zero.offload"),
        ({"zero": {"stage": 1, "offload": "optimizer"}, "optimizer": {"kind": "sgd", "lr": 0.1}}, "zero.offload"),
        ({"zero": {"stage": 1}, "optimizer": {"kind": "muon", "lr": 0.1}}, "optimizer.kind"),
    ],
)
def test_what_deepspeed_cannot_do_is_refused(options: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        runs.config(**options)
    assert key in caught.value.cause


def test_recomputing_is_for_every_engine() -> None:
    assert runs.config(recompute={"layers": "full", "every": 2}).recompute.every == 2
    assert runs.config(**RUN, recompute={"layers": "selective"}).recompute.layers == "selective"


def tuned(**options: Any) -> dict[str, Any]:
    return {"deepspeed": {"zero_optimization": options}}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (tuned(stage3_max_live_parameters=5), "stage3_max_live_parameters is of ZeRO's stage 3, and zero.stage is 1"),
        (tuned(sub_group_size=5), "sub_group_size is of ZeRO's stage 3, and zero.stage is 1"),
        (
            tuned(round_robin_gradients=True) | {"zero": {"stage": 3}},
            "round_robin_gradients is of ZeRO's stages 1 to 2",
        ),
        (tuned(reduce_bucket_size=5) | {"zero": {"stage": 0}}, "reduce_bucket_size is of ZeRO's stages 1 to 3"),
        (tuned(overlap_comm=True) | {"mesh": {"pp": 2}}, "overlap_comm: a pipeline's gradients"),
        ({"deepspeed": {"gradient_predivide_factor": 2.0, "prescale_gradients": True}}, "beside prescale_gradients"),
        ({"deepspeed": {"prescale_gradients": True}, "zero": {"stage": 2}}, "prescale_gradients: ZeRO stage 2"),
        ({"deepspeed": {"gradient_predivide_factor": 2.0}, "zero": {"stage": 3}}, "predivide_factor: ZeRO stage 3"),
        ({"deepspeed": {"flops_profiler": {}}}, "flops_profiler.enabled is missing"),
        ({"deepspeed": {"comms_logger": {"verbose": True}}}, "comms_logger.enabled is missing"),
        ({"deepspeed": {"flops_profiler": {"enabled": True, "profile_step": 6}}}, "6 never comes in a run of 6 steps"),
        ({"deepspeed": {"flops_profiler": {"enabled": True}}, "mesh": {"pp": 2}}, "flops_profiler never ends"),
    ],
)
def test_what_would_do_nothing_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        runs.config(**RUN | options)
    assert said in caught.value.cause
    assert caught.value.remedy


def test_what_is_stated_to_be_off_is_accepted() -> None:
    off = {"comms_logger": {"enabled": False}, "flops_profiler": {"enabled": False, "profile_step": 1000}}
    assert runs.config(**RUN | {"mesh": {"pp": 2}}, deepspeed=off).deepspeed.flops_profiler is not None


HALVES: list[dict[str, Any]] = [{"mesh": {"pp": 2}}, {"engine": "deepspeed"}]


@pytest.mark.parametrize("options", HALVES)
def test_half_precision_in_deepspeed_has_zero_1_unless_a_stage_is_stated(options: dict[str, Any]) -> None:
    assert runs.config(**options, precision="bf16").zero.stage == 1
    assert runs.config(**options, precision="bf16", zero={"offload": "none"}).zero.stage == 1
    assert runs.config(**options, precision="fp32").zero.stage == 0
    undecided = runs.config(**options, precision="auto")
    assert undecided.zero.stage == 0
    assert undecided.computing_in("fp32").zero.stage == 0
    chosen = undecided.computing_in("bf16")
    chosen.check()
    assert (chosen.precision, chosen.zero.stage) == ("bf16", 1)
    stated = runs.config(**options, precision="auto", zero={"stage": 0}).computing_in("bf16")
    with pytest.raises(ConfigError, match=r"zero.stage 0 with precision bf16: .*; set zero.stage: 1"):
        stated.check()


def test_the_plain_engine_needs_no_zero_in_half_precision() -> None:
    assert runs.config(precision="bf16").zero.stage == 0
    assert runs.config(precision="auto").computing_in("bf16").zero.stage == 0


@pytest.mark.parametrize("stated", [True, False])
def test_a_shown_run_leaves_its_stage_open_as_the_run_does(tmp_path: Path, stated: bool) -> None:
    """Else `config show` would make a run that a GPU refuses."""
    run = runs.config(mesh={"pp": 2}, precision="auto", **({"zero": {"stage": 0}} if stated else {}))
    path = tmp_path / "run.yaml"
    path.write_text(dump(run))
    assert load_run([path]) == run
    assert load_run([path]).computing_in("bf16").zero.stage == (0 if stated else 1)

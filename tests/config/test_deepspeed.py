"""DeepSpeed's own options: which are passed on, which are refused and why."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_runs as runs

from neoxkit.config.deepspeed import DECIDED, REMOVED, ZERO_DECIDED
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
        ({"engine": "deepspeed", "precision": "bf16"}, "zero.stage"),
        ({"mesh": {"pp": 2}, "precision": "bf16"}, "zero.stage"),
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

"""Samples of a step, a micro-batch, accumulation and devices: any of them follows from the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from neoxkit.config.load import dump, load_run
from neoxkit.config.run import RunConfig
from neoxkit.errors import ConfigError

REST = "padded_vocab_size: 64\nnum_layers: 1\nhidden_size: 8\nnum_attention_heads: 2\nmax_position_embeddings: 8\n"
REST += "data_path: x\ntrain_iters: 5\nsave: x\n"


def run_of(folder: Path, **given: Any) -> RunConfig:
    """The run of gpt-neox's options."""
    path = folder / "a.yml"
    path.write_text(REST + "".join(f"{key}: {value}\n" for key, value in given.items()))
    return load_run([path])


T, M, G = "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"


@pytest.mark.parametrize(
    ("given", "devices", "solved"),
    [
        ({T: 64, M: 4, G: 2}, 8, (64, 4, 2)),
        ({T: 64, M: 4}, 8, (64, 4, 2)),
        ({T: 64, G: 2}, 8, (64, 4, 2)),
        ({M: 4, G: 2}, 8, (64, 4, 2)),
        ({T: 64}, 8, (64, 8, 1)),
        ({M: 4}, 8, (32, 4, 1)),
        ({"batch_size": 4, "gas": 3}, 2, (24, 4, 3)),
        ({M: 4, G: 2, "model_parallel_size": 2}, 8, (32, 4, 2)),
        ({M: 4, G: 2, "global_num_gpus": 8}, 8, (64, 4, 2)),
    ],
)
def test_two_are_enough(given: dict[str, Any], devices: int, solved: tuple[int, int, int], tmp_path: Path) -> None:
    run = run_of(tmp_path, **given).on(devices)
    assert (run.batch.size, run.micro, run.accumulation) == solved


def test_three_fix_the_devices(tmp_path: Path) -> None:
    """64 = 4 x 1 x 16, and on 8 devices gpt-neox stops too."""
    run = run_of(tmp_path, **{T: 64, M: 4, G: 1})
    assert run.mesh.dp == 16
    with pytest.raises(ConfigError, match="dp 16 does not make 8 devices"):
        run.on(8)
    with pytest.raises(ConfigError, match=r"a\.yml:9: train_batch_size: 64 is no multiple of .* 4 x .* 3"):
        run_of(tmp_path, **{T: 64, M: 4, G: 3})
    with pytest.raises(ConfigError, match=r"batch\.size 64 is not micro 4 x accumulation 2 x dp 4"):
        run_of(tmp_path, **{T: 64, M: 4, G: 2, "global_num_gpus": 4})


def test_a_batch_that_follows_the_devices_is_shown_as_one(tmp_path: Path) -> None:
    """What `config show` prints is for any number of devices, as the file was."""
    shown = tmp_path / "shown.yaml"
    shown.write_text(dump(run_of(tmp_path, **{M: 4, G: 2})))
    assert load_run([shown]).on(8).batch.size == 64
    assert load_run([shown]).on(2).batch.size == 16

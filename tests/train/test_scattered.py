"""ZeRO 3: a model that no device could hold whole is never built whole."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jobs
import pytest
import tiny_runs as runs
import torch
from torch import nn

from neoxkit.nn import decoder
from neoxkit.train.begin import build_engine


def whole_layers(stage: int) -> list[int]:
    """How many layers have their weights whole, each time that the next is about to be made."""
    run = runs.config("llama", engine="deepspeed", zero={"stage": stage}).on(1)
    build, made, found = decoder.build_block, list[nn.Module](), list[int]()

    def watched(*given: Any) -> nn.Module:
        found.append(sum(any(weight.numel() for weight in layer.parameters()) for layer in made))
        layer = build(*given)
        if next(layer.parameters()).device.type == "meta":  # only the declarations of a model are asked for
            found.pop()
        else:
            made.append(layer)
        return layer

    with patch.object(decoder, "build_block", watched):
        build_engine(run, torch.device("cpu"), decoder.form_groups(run.model, run.placed)).initialise()
    return found


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed")
def test_each_layer_is_divided_before_the_next_is_made(tmp_path: Path) -> None:
    assert jobs.run(1, whole_layers, [(1,), (3,)], tmp_path) == [[[0, 1], [0, 0]]]

"""Runs of epochs: how many steps they have, and that they learn from all there is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs as runs
import yaml

from neoxkit.config.load import dump
from neoxkit.config.run import RunConfig
from neoxkit.data.tokens.indexed import IndexedFile, IndexedWriter
from neoxkit.errors import ConfigError
from neoxkit.train.feed import Feed
from neoxkit.train.length import lasting
from neoxkit.train.loop import train


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    runs.write_tokens(tmp_path)
    return tmp_path


def config(folder: Path, *overrides: str, **options: Any) -> RunConfig:
    return runs.config("gpt_neox", folder, "epochs=2", "steps=null", *overrides, **options)


def test_steps_follow_from_epochs_of_packed_samples(folder: Path) -> None:
    made = config(folder)
    assert made.steps == 0
    tokens = IndexedFile(folder / "tokens").tokens
    assert lasting(made).steps == ((2 * tokens - 1) // 12) // 4
    given = made.model_copy(update={"epochs": 3})
    assert Feed(lasting(given)).identity.sources[0].epochs == 3
    assert "steps" not in yaml.safe_load(dump(lasting(made)))


@pytest.mark.parametrize("packing", ["whole", "best_fit", "single"])
def test_every_document_is_read_as_often_as_there_are_epochs(folder: Path, packing: str) -> None:
    with IndexedWriter(folder / "few", vocab=runs.VOCAB) as writer:
        for number in range(30):
            writer.add(np.full(2 + number % 9, number))  # of which each is a number of its own
        writer.commit()
    data = {"train": str(folder / "few"), "packing": packing}
    made = lasting(config(folder, data=data, batch={"size": 1}))
    feed = Feed(made)
    seen: Counter[int] = Counter()
    for number in range(made.steps):
        row = feed.row(number)
        parts = row.ids[: 1 + (len(row.ids) - 1 if row.counts is None else int(np.flatnonzero(row.counts)[-1]) + 1)]
        seen.update(set(parts.tolist()))
    assert seen == dict.fromkeys(range(30), 2)


@pytest.mark.parametrize("packing", ["packed", "whole", "best_fit", "single"])
def test_each_source_is_read_as_often(folder: Path, packing: str) -> None:
    for name, documents in (("few", 12), ("many", 90)):
        with IndexedWriter(folder / name, vocab=runs.VOCAB) as writer:
            for number in range(documents):
                writer.add(np.full(3 + number % 7, number % 61))
            writer.commit()
    data = {"train": [str(folder / "few"), str(folder / "many")], "packing": packing}
    made = lasting(config(folder, data=data, batch={"size": 1}))
    feed = Feed(made)
    seen = Counter((prefix, index) for prefix, _, index in map(feed.locate, range(made.steps)))
    assert set(seen.values()) == {1}
    for name in ("few", "many"):
        alone = lasting(config(folder, data={**data, "train": str(folder / name)}, batch={"size": 1}))
        assert sum(Path(prefix).name == name for prefix, _ in seen) == alone.steps
    weighed = [{"tokens": str(folder / "few"), "weight": 2.0}, {"tokens": str(folder / "many")}]
    with pytest.raises(ConfigError, match="epochs: sources that are taken by weight"):
        config(folder, data={**data, "train": weighed})


def test_batches_that_grow_count_as_they_are_made(folder: Path) -> None:
    whole = lasting(config(folder))
    warmup = {"start": 2, "increment": 2, "samples": 20}
    grown = lasting(config(folder, batch={"size": 4, "micro": 2, "warmup": warmup}))
    samples = ((2 * IndexedFile(folder / "tokens").tokens - 1) // 12) - 20
    assert grown.steps == 10 + samples // 4
    assert grown.steps > whole.steps


def test_a_run_of_epochs_ends_and_goes_on_with_more(folder: Path) -> None:
    with IndexedWriter(folder / "few", vocab=runs.VOCAB) as writer:
        writer.add(np.arange(61))
        writer.commit()
    data = {"train": str(folder / "few"), "packing": "single"}
    first = config(folder, data=data)
    assert train(first, {}).position.samples == 8  # of 2 x 5 pieces
    assert train(first.model_copy(update={"epochs": 4}), {}).position.samples == 20


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("epochs=2", "steps=6"), "steps and epochs are both given"),
        (("steps=0",), "steps is 0; give at least 1, or epochs"),
        (("steps=null",), "steps is null"),
        (("epochs=0", "steps=null"), "epochs is 0"),
    ],
)
def test_either_steps_or_epochs(folder: Path, overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        runs.config("gpt_neox", folder, *overrides)


def test_a_step_of_more_than_there_is_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"epochs 2: the data has \d+ samples, and a step takes 4000"):
        lasting(config(folder, batch={"size": 4000}))
    with pytest.raises(ConfigError, match="warmup_steps 900 is more than"):
        lasting(config(folder, schedule={"warmup_steps": 900}))

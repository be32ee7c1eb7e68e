"""Index arrays on disk: made once, found by what they depend on, and never half there."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neoxkit.data.rows.arrange import Arrangement
from neoxkit.data.rows.cache import Cache
from neoxkit.data.tokens.indexed import IndexedFile, IndexedWriter

KEY = {"algorithm": "x", "seed": 3}


class Maker:
    """Makes arrays, and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> dict[str, Any]:
        self.times += 1
        return {"a": np.arange(10), "b": np.zeros((2, 3), np.int32)}


def test_arrays_are_made_once_and_mapped(tmp_path: Path) -> None:
    make = Maker()
    for _ in range(3):
        found = Cache(tmp_path / "new" / "index").arrays(KEY, make)
        assert found["a"].tolist() == list(range(10))
        assert found["b"].shape == (2, 3)
        assert isinstance(found["a"], np.memmap)
    assert make.times == 1
    Cache(tmp_path / "new" / "index").arrays({**KEY, "seed": 4}, make)
    assert make.times == 2
    Cache(None).arrays(KEY, make)
    assert make.times == 3


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert Cache(tmp_path / "file").arrays(KEY, Maker())["a"].tolist() == list(range(10))


@pytest.mark.parametrize("damage", ["no key", "another key", "truncated", "one array gone"])
def test_what_is_damaged_is_made_anew(tmp_path: Path, damage: str) -> None:
    make, cache = Maker(), Cache(tmp_path)
    cache.arrays(KEY, make)
    place = next(path for path in tmp_path.iterdir() if path.is_dir())
    if damage == "no key":
        (place / "key.txt").unlink()
    elif damage == "another key":
        (place / "key.txt").write_text("{}\na b")
    elif damage == "one array gone":
        (place / "b.npy").unlink()
    else:
        (place / "a.npy").write_bytes((place / "a.npy").read_bytes()[:40])
    assert cache.arrays(KEY, make)["a"].tolist() == list(range(10))
    assert make.times == 2
    assert cache.arrays(KEY, make)["a"].tolist() == list(range(10))
    assert make.times == 2


def test_many_at_once_make_it_once(tmp_path: Path) -> None:
    make, found = Maker(), []
    threads = [
        threading.Thread(target=lambda: found.append(Cache(tmp_path).arrays(KEY, make)["a"].sum())) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [45] * 8
    assert make.times == 1
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]


def test_without_locks_the_first_one_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes that know nothing of each other: both make the same, and what the first has mapped stays."""
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    make, there = Maker(), list[int]()

    def slow() -> dict[str, Any]:
        Cache(tmp_path).arrays(KEY, make)  # the other node, while this one makes its own
        there.extend(path.stat().st_ino for path in tmp_path.glob("*/a.npy"))
        return make()

    assert Cache(tmp_path).arrays(KEY, slow)["a"].tolist() == list(range(10))
    assert make.times == 2
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1
    assert [path.stat().st_ino for path in tmp_path.glob("*/a.npy")] == there


def file_of(folder: Path, lengths: list[int]) -> IndexedFile:
    with IndexedWriter(folder / "p", 1000, force=True) as writer:
        for length in lengths:
            writer.add(np.arange(length))
        writer.commit()
    return IndexedFile(folder / "p")


@pytest.mark.parametrize("kind", ["packed", "whole", "single", "best_fit"])
def test_an_order_from_disk_is_the_order(tmp_path: Path, kind: Any) -> None:
    file = file_of(tmp_path, [3, 9, 4, 4, 17, 2] * 5)
    arranged = Arrangement(kind=kind, context=8, seed=1, first=2, last=29)
    plain = arranged.order(file)
    wanted = [plain.spans(k) for k in range(2 * plain.first.count)]
    for _ in range(2):
        order = arranged.order(file, Cache(tmp_path / "index"))
        assert [order.spans(k) for k in range(len(wanted))] == wanted
    assert len(list((tmp_path / "index").glob("*/key.txt"))) >= 2


def test_an_index_is_not_taken_for_that_of_other_data(tmp_path: Path) -> None:
    """gpt-neox finds its index by name alone, and takes one that was made of another split."""
    cache, counts = Cache(tmp_path / "index"), set()
    for lengths, changes in (
        ([5] * 20, {}),
        ([5] * 19 + [6], {}),
        ([5] * 20, {"first": 1}),
        ([5] * 20, {"last": 19}),
        ([5] * 20, {"context": 4}),
        ([5] * 20, {"seed": 2}),
        ([5] * 20, {"epochs": 2}),
        ([5] * 20, {"kind": "whole"}),
        ([5] * 20, {"kind": "whole", "within_documents": True}),
        ([5] * 20, {"kind": "whole", "turned": True}),
    ):
        given: dict[str, Any] = {"kind": "packed", "context": 6, "seed": 1, "first": 0, "last": 20, **changes}
        Arrangement(**given).order(file_of(tmp_path, lengths), cache)
        counts.add(len(os.listdir(tmp_path / "index")))
    assert len(counts) == 10

"""Checkpoints as folders: commit, replacement, deletion, dead attempts, a full disk; and what is no checkpoint."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch

from neoxkit.checkpoint.attempt import delete, home_of
from neoxkit.checkpoint.folder import list_checkpoints, newest, publish
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.checkpoint.writer import Writer, cut
from neoxkit.errors import CheckpointError
from neoxkit.mesh import Mesh
from neoxkit.spec import whole


def test_nothing_is_visible_before_the_commit(tmp_path: Path, config, specs, tensors) -> None:
    parts = cut(specs, dict.fromkeys(specs, "BF16"), Mesh())
    with Writer(tmp_path / "run" / "step-00000001", parts, config=config, mesh={}) as writer:
        for name, value in tensors.items():
            writer.write(name, whole(value.shape), value)
            assert [path.name[:15] for path in (tmp_path / "run").iterdir()] == [".step-00000001."]
        writer.commit()
        writer.abort()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["step-00000001"]
    with pytest.raises(RuntimeError, match="on purpose"), Writer(tmp_path / "other", parts, config=config, mesh={}):
        raise RuntimeError("on purpose")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_exists_is_not_overwritten(save, tensors) -> None:
    folder = save()
    before = Checkpoint.open(folder).fingerprint
    changed = {name: value + 1 for name, value in tensors.items()}
    with pytest.raises(CheckpointError, match="exists; choose another destination, or give --force"):
        save(values=changed)
    assert Checkpoint.open(folder).fingerprint == before
    save(values=changed, force=True)
    assert Checkpoint.open(folder).fingerprint != before
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


def test_the_newest_valid_checkpoint_of_a_run(save, tmp_path: Path, capsys) -> None:
    for step in (2, 10, 9):
        save(f"run/step-{step:08d}", step=step)
    run = tmp_path / "run"
    publish(run, run / "step-00000002")
    assert (run / "latest").read_text() == "step-00000002\n"
    assert [int(path.name[5:]) for path in list_checkpoints(run)] == [2, 9, 10]
    assert Checkpoint.open(run).manifest.step == 10
    os.truncate(run / "step-00000010/model/whole-00000.safetensors", 5)
    assert Checkpoint.open(run).manifest.step == 9
    assert "step-00000010 is passed over" in capsys.readouterr().err
    delete(run / "step-00000009")
    assert {path.name for path in run.iterdir()} == {"latest", "step-00000002", "step-00000010"}
    (run / "step-00000002/manifest.json").unlink()
    assert newest(run) is None
    with pytest.raises(CheckpointError, match="a run without a single valid checkpoint"):
        Checkpoint.open(run)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (None, "no such file or folder"),
        ([], "not a checkpoint: it has no manifest"),
        (["config.json", "model.safetensors"], "a Hugging Face folder.*neoxkit import"),
        (["config.json", "pytorch_model.bin"], "a Hugging Face folder.*neoxkit import"),
        (["latest", "global_step100/mp_rank_00_model_states.pt"], "a gpt-neox"),
        (["layer_00-model_00-model_states.pt"], "a gpt-neox"),
        ([".step-00000001.abcdef.partial/config.json"], "a run in which no save was finished"),
    ],
)
def test_what_is_no_checkpoint_is_called_what_it_is(tmp_path: Path, files: list[str] | None, says: str) -> None:
    place = tmp_path / "place"
    for file in files or []:
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).touch()
    if files == []:
        place.mkdir()
    with pytest.raises(CheckpointError, match=says):
        Checkpoint.open(place)


def test_an_attempt_is_not_loaded_even_when_it_is_whole(save) -> None:
    folder = save()
    home = home_of(folder, "abcdef")
    home.mkdir()
    os.rename(folder, home / "files")
    with pytest.raises(CheckpointError, match="an unfinished attempt to write checkpoint"):
        Checkpoint.open(home)
    with pytest.raises(CheckpointError, match="an unfinished attempt to write checkpoint"):
        Checkpoint.open(home / "files")
    with pytest.raises(CheckpointError, match="a file, not a checkpoint"):
        Checkpoint.open(home / "files" / "config.json")


def full(*args: object) -> None:
    """A disk without room."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync"])
def test_a_full_disk(save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    save("before")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(
            CheckpointError, match=r"(?s)no space left on the disk; the file needs \d+ bytes; free some"
        ):
            save()
    assert [path.name for path in tmp_path.iterdir()] == ["before"]


def test_too_little_room_is_known_before_the_work(save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(CheckpointError, match=r"needs \d+ bytes, and the disk has 1000 free"):
        save()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(save, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(CheckpointError, match="Permission denied"):
        save("locked/checkpoint")


def test_a_rank_that_does_not_come(tmp_path: Path, config, specs, tensors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neoxkit.checkpoint.attempt._WAIT", 0.1)
    parts = cut(specs, dict.fromkeys(specs, "BF16"), Mesh())
    writer = Writer(tmp_path / "c", parts, config=config, mesh={}, world=2, attempt="abcdef")
    for name, value in tensors.items():
        writer.write(name, whole(value.shape), value)
    with pytest.raises(CheckpointError, match=r"\.rank-00001\.json: a rank did not finish"):
        writer.commit()
    assert list(tmp_path.iterdir()) == []


def test_a_piece_that_nobody_wrote(tmp_path: Path, config, specs, tensors) -> None:
    parts = cut(specs, dict.fromkeys(specs, "BF16"), Mesh(tp=2))
    writer = Writer(tmp_path / "c", parts, config=config, mesh={})
    for part in parts:
        if part.file.endswith("tp00.safetensors"):
            writer.write(part.name, part.box, tensors[part.name][tuple(slice(*span) for span in part.box)])
    with pytest.raises(CheckpointError, match=r"of model/pp00-tp01\.safetensors was not written"):
        writer.commit()
    assert list(tmp_path.iterdir()) == []
    assert torch.is_tensor(tensors["model/embed.weight"])

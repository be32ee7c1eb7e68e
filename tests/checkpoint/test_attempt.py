"""Folders written aside: what --force replaces, what interrupted commands leave, and who may remove it."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from neoxkit.checkpoint import attempt as attempts
from neoxkit.checkpoint.attempt import (
    FILES,
    LOCK,
    OLD,
    Attempt,
    check_destination,
    dead_attempts,
    home_of,
    remove_dead_attempts,
)
from neoxkit.checkpoint.folder import not_a_checkpoint
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.errors import CheckpointError


def leave(folder: Path, name: str, kind: str = "partial") -> Path:
    """What a command that was killed while it wrote `folder` leaves."""
    home = home_of(folder, name, kind)
    (home / FILES / "model").mkdir(parents=True)
    (home / FILES / "config.json").write_text("{}")
    (home / LOCK).touch()
    return home


def hold(home: Path) -> int:
    """Lock an attempt, as the command that writes it does."""
    fd = os.open(home / LOCK, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def names(folder: Path) -> set[str]:
    """What is in a folder."""
    return {path.name for path in folder.iterdir()}


def test_force_replaces_checkpoints_and_empty_folders_only(save, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(save("real"))
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (save("mixed") / "model" / "notes.txt").write_text("x")
    (save("other") / "manifest.json").write_text('{"format": {"name": "another"}, "files": []}')
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for name, why in {
        "home": "is not a checkpoint",
        "file": "is not a folder",
        "link": "is not a folder but a link",
        "nowhere": "is not a folder but a link",
        "mixed": r"is not only a checkpoint: model/notes\.txt is there",
        "other": "is not a checkpoint",
    }.items():
        with pytest.raises(CheckpointError, match=f"{name} exists and {why}; choose another destination"):
            save(name, force=True)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "empty").mkdir()
    save("empty", force=True)


def test_force_replaces_a_damaged_checkpoint(save) -> None:
    """A manifest cut short is no reason to keep it; a file that no checkpoint has still is one."""
    folder = save()
    os.truncate(folder / "manifest.json", 100)
    (folder / "film.mkv").touch()
    with pytest.raises(CheckpointError, match=r"film\.mkv is there"):
        save(force=True)
    (folder / "film.mkv").unlink()
    save(force=True)
    assert Checkpoint.open(folder).fingerprint


def test_what_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path / "new", not_a_checkpoint)
    attempt.make(0)
    (tmp_path / "new").mkdir()
    with pytest.raises(CheckpointError, match="new exists"):
        attempt.commit("last", b"")
    attempt.abort()
    assert names(tmp_path) == {"new"}


def test_replacing_where_names_cannot_be_swapped(save, tensors, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two renames; a death between them is put right by the next command that writes there."""
    monkeypatch.setattr(attempts, "_exchange", lambda first, second: False)
    folder = save()
    before = Checkpoint.open(folder).fingerprint
    save(values={name: value + 1 for name, value in tensors.items()}, force=True)
    after = Checkpoint.open(folder).fingerprint
    assert after != before
    assert names(folder.parent) == {"checkpoint"}
    home = leave(folder, "abcdef")
    os.rename(folder, home / OLD)
    assert remove_dead_attempts(folder.parent) == []
    assert names(folder.parent) == {"checkpoint"}
    assert Checkpoint.open(folder).fingerprint == after


def test_swapping_names(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not attempts._exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this system cannot swap two names in one step")
    assert (tmp_path / "a" / "b").exists()
    assert (tmp_path / "b" / "a").exists()


def test_dead_attempts_are_removed_and_living_and_foreign_ones_are_not(save, tmp_path: Path, capsys) -> None:
    dead = leave(tmp_path / "checkpoint", "aaaaaa")
    deleted = leave(tmp_path / "old", "bbbbbb", "deleted")
    begun = home_of(tmp_path / "begun", "eeeeee")
    begun.mkdir()
    foreign = tmp_path / ".downloads.cccccc.partial"
    foreign.mkdir()
    (foreign / "film.mkv").touch()
    more = leave(tmp_path / "more", "ffffff")
    (more / "film.mkv").touch()
    (tmp_path / ".link.abcdef.partial").symlink_to(foreign)
    alive = leave(tmp_path / "other", "dddddd")
    held = hold(alive)
    assert dead_attempts(tmp_path) == sorted([dead, deleted, begun])
    save()
    assert capsys.readouterr().err.count("which an interrupted save or deletion left") == 3
    assert names(tmp_path) == {"checkpoint", foreign.name, more.name, ".link.abcdef.partial", alive.name}
    os.close(held)
    assert remove_dead_attempts(tmp_path) == [alive]


def test_looking_at_attempts_does_not_disturb_who_begins_one(tmp_path: Path) -> None:
    """One process writes attempt after attempt, while others look for dead ones, and remove them."""
    stop, failed = threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            try:
                dead_attempts(tmp_path)
                remove_dead_attempts(tmp_path)
            except Exception as error:  # noqa: BLE001  # whatever it is
                failed.append(error)

    lookers = [threading.Thread(target=look) for _ in range(3)]
    for looker in lookers:
        looker.start()
    try:
        for number in range(60):
            attempt = Attempt(tmp_path / f"c{number}", not_a_checkpoint)
            attempt.make(0)
            (attempt.path / "manifest.json").write_text(str(number))
            attempt.commit("last", b"")
            assert (tmp_path / f"c{number}" / "manifest.json").read_text() == str(number)
    finally:
        stop.set()
        for looker in lookers:
            looker.join()
    assert failed == []
    assert len(names(tmp_path)) == 60


def test_a_destination_is_checked_without_touching_it(tmp_path: Path) -> None:
    check_destination(tmp_path / "new", False, not_a_checkpoint)
    check_destination(tmp_path / "no" / "such" / "parent", False, not_a_checkpoint)
    (tmp_path / "there").mkdir()
    with pytest.raises(CheckpointError, match="there exists; choose another destination, or give --force"):
        check_destination(tmp_path / "there", False, not_a_checkpoint)
    check_destination(tmp_path / "there", True, not_a_checkpoint)
    assert names(tmp_path) == {"there"}

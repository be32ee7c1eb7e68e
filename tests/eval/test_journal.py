"""What was answered is not asked again; what is no journal is refused, and nothing in it lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from neoxkit.errors import DataError
from neoxkit.eval.desk import Ask, likelihood_of
from neoxkit.eval.journal import Journal, key_of
from neoxkit.serve.request import Likelihood, Request, Sampling

SCORE, SAY = likelihood_of([1, 2, 3], 2), Ask(Request((1, 2), max_tokens=4, stop_ids=frozenset({9, 3})), ("a",))


def test_answers_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.jsonl"
    with Journal(path) as journal:
        assert journal.find(SCORE) is None
        journal.keep(SCORE, Likelihood(-1.23456789012345, True))
        journal.keep(SAY, 'text "with\nall"')
        assert len(journal) == 2
    with Journal(path) as journal:
        assert journal.find(SCORE) == Likelihood(-1.23456789012345, True)
        assert journal.find(SAY) == 'text "with\nall"'


def test_keys_tell_asks_apart() -> None:
    asks = [
        SCORE, SAY, likelihood_of([1, 2, 3], 1), likelihood_of([1, 2, 4], 2), Ask(SAY.request),
        Ask(SAY.request, ("b",)), Ask(Request((1, 2), max_tokens=5)),
        Ask(Request((1, 2), Sampling(temperature=1), max_tokens=5)),
        Ask(Request((1, 2), Sampling(temperature=1, seed=1), max_tokens=5)),
    ]  # fmt: skip
    assert len({key_of(ask) for ask in asks}) == len(asks)


def test_a_line_that_was_not_finished_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with Journal(path) as journal:
        journal.keep(SCORE, Likelihood(-1.0, False))
    whole = path.read_bytes()
    path.write_bytes(whole + b'["abc", -3')
    with Journal(path) as journal:
        assert len(journal) == 1
        journal.keep(SAY, "x")
    assert path.read_bytes().startswith(whole)
    with Journal(path) as journal:
        assert journal.find(SAY) == "x"


@pytest.mark.parametrize("line", [b"{}", b"[]", b"5", b'["a"]', b'["a", "b", "c", "d"]', b'["a", "x", true]', b"\xff"])
def test_other_files_are_refused(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(DataError, match=r"a.jsonl:1: not an answer"):
        Journal(path)
    assert path.read_bytes() == line + b"\n"


def test_one_command_at_a_time(tmp_path: Path) -> None:
    with Journal(tmp_path / "a.jsonl"), pytest.raises(DataError, match="another command is writing to it"):
        Journal(tmp_path / "a.jsonl")

"""Files that are made while others are sent."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest

from neoxkit.convert.push.ahead import Ahead, Stopped


def making(ahead: Ahead, begun: list[int], count: int = 5) -> None:
    for number in range(count):
        ahead.begin()
        begun.append(number)
        ahead.hand_on(str(number))


def test_two_are_there_at_a_time() -> None:
    begun: list[int] = []
    for taken, name in enumerate(Ahead(lambda ahead: making(ahead, begun))):
        assert name == str(taken)
        assert len(begun) <= taken + 2
    assert begun == [0, 1, 2, 3, 4]


def test_an_error_comes_in_place_of_the_end() -> None:
    def failing(ahead: Ahead) -> None:
        making(ahead, [], 1)
        raise ValueError("damaged")

    names = iter(Ahead(failing))
    assert next(names) == "0"
    with pytest.raises(ValueError, match="damaged"):
        next(names)


def test_who_wants_no_more_stops_the_work() -> None:
    begun: list[int] = []
    ended = []

    def watched(ahead: Ahead) -> None:
        try:
            making(ahead, begun, 1000)
        except Stopped:
            ended.append(True)
            raise

    with closing(iter(Ahead(watched))) as names:
        assert next(names) == "0"
    assert ended == [True]
    assert len(begun) <= 3
    assert not [each for each in threading.enumerate() if each.name == "export"]

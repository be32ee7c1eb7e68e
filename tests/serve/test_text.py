"""Text that grows token by token is the text of all tokens."""

from collections.abc import Sequence

from neoxkit.serve.text import deltas


def decode(ids: Sequence[int]) -> str:
    """A byte-level tokenizer: each id is a byte."""
    return bytes(ids).decode("utf-8", errors="replace")


def test_characters_are_held_back_until_whole() -> None:
    text = "aé€😀z"
    pieces = list(deltas(text.encode(), decode))
    assert pieces == ["a", "é", "€", "😀", "z"]


def test_an_unfinished_character_ends_the_text() -> None:
    assert "".join(deltas("a€".encode()[:-1], decode)) == "a�"


def test_what_came_before_is_not_repeated() -> None:
    assert list(deltas(b"cd", decode, before=b"ab")) == ["c", "d"]


def test_nothing() -> None:
    assert list(deltas([], decode)) == []

"""Text that grows token by token is the text of all tokens, up to where it is to stop."""

from __future__ import annotations

import os.path
from collections.abc import Sequence
from typing import Any

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models

from neoxkit.data.tokenizer import Tokenizer
from neoxkit.data.tokenizer.train import train_bpe
from neoxkit.errors import ConfigError
from neoxkit.serve.text import TextStream

WORDS = ["▁", "▁▁", "▁a", "▁ab", "a", "b", "ab", "ba", ".", "\n", "é", "\ufffd", "▁é", "abab", "aab", ""]
BYTES = [f"<0x{number:02X}>" for number in (0x0A, 0x20, 0x41, *"é€😀".encode(), 0xFF, 0xE2)]

LLAMA = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
GEMMA = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])


def word_level(words: Sequence[str]) -> models.WordLevel:
    return models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0])


MADE: dict[str, tuple[Sequence[str], Any]] = {
    "llama": (["<unk>", *WORDS, *dict.fromkeys(BYTES)], LLAMA),
    "gemma": (["<unk>", *WORDS, *dict.fromkeys(BYTES)], GEMMA),
    "metaspace": (["<unk>", *WORDS], decoders.Metaspace()),
    "wordpiece": (["<unk>", "a", "##a", "b", "##b", ".", "'", "##é", "ab", "##ba", "!"], decoders.WordPiece()),
    "suffix": (["<unk>", "a", "a</w>", "b", "b</w>", "ab</w>", "</w>", "ba"], decoders.BPEDecoder()),
    "none": (["<unk>", "a", "b", "ab", "ba", " "], None),
}


@pytest.fixture(scope="module")
def all_tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """Tokenizers of each kind, each with two special tokens at its end."""
    here = tmp_path_factory.mktemp("tokenizers")
    made = {}
    for kind, (words, decoder) in MADE.items():
        inner = tokenizers.Tokenizer(word_level(words))
        if decoder is not None:
            inner.decoder = decoder
        inner.add_special_tokens(["<s>", AddedToken("</s>", lstrip=True)])
        inner.add_tokens(["<a b>"])
        inner.save(str(here / f"{kind}.json"))
        made[kind] = Tokenizer(here / f"{kind}.json")
    train_bpe(["a é€😀 b", "ab ba abab aab", "\u00a0x"], 270, here / "bytes")
    made["bytes"] = Tokenizer(here / "bytes")
    return made


def plain(tokenizer: Tokenizer, before: Sequence[int], answer: Sequence[int], special: bool = False) -> str:
    """What an answer adds, by decoding everything."""
    known, whole = tokenizer.decode(before, special), tokenizer.decode([*before, *answer], special)
    return whole[len(os.path.commonprefix([known, whole])) :]  # noqa: RUF071 - characters are what is meant


def cut(whole: str, stop: Sequence[str], keep: bool = False) -> tuple[str, str | None]:
    """A text up to where one of the others is first complete, and that one."""
    for end in range(len(whole) + 1):
        found = [each for each in stop if whole[:end].endswith(each)]
        if found:
            longest = max(found, key=len)
            return whole[: end if keep else end - len(longest)], longest
    return whole, None


def pieces(stream: TextStream, tokens: Sequence[int]) -> list[str]:
    return [*(stream.add(token) for token in tokens), stream.finish()]


STOPS = st.lists(st.text("ab .é\n\ufffd", min_size=1, max_size=5) | st.text("ab", min_size=2, max_size=9), max_size=3)
RUNS = st.lists(
    st.lists(st.integers(0, 10**6), max_size=4)
    | st.builds(lambda one, count: [one] * count, st.integers(0, 40), st.integers(1, 20)),
    max_size=16,
).map(lambda runs: [number for run in runs for number in run])
"""Numbers that are not all as likely as each other: some come in long rows."""


@settings(max_examples=600)
@given(
    kind=st.sampled_from([*MADE, "bytes"]),
    numbers=RUNS,
    before=RUNS,
    stop=STOPS,
    keep=st.booleans(),
    special=st.booleans(),
)
def test_pieces_are_the_whole(
    all_tokenizers: dict[str, Tokenizer],
    kind: str,
    numbers: list[int],
    before: list[int],
    stop: list[str],
    keep: bool,
    special: bool,
) -> None:
    """Of any tokens, special and unknown ones and single bytes of characters among them."""
    tokenizer = all_tokenizers[kind]
    numbers, before = ([number % (tokenizer.vocab + 2) for number in each] for each in (numbers, before))
    stream = TextStream(tokenizer, before, stop, keep, special)
    wanted, stopped = cut(plain(tokenizer, before, numbers, special), stop, keep)
    assert "".join(pieces(stream, numbers)) == wanted
    assert stream.stopped == stopped
    if stopped is not None:
        assert stream.add(tokenizer.id("a")) == stream.finish() == ""


@settings(max_examples=200)
@given(
    data=st.lists(st.sampled_from("aé€😀".encode() + b"\xe2\xf0\x80\xff\x9fab "), max_size=80),
    before=st.lists(st.sampled_from("é€😀".encode() + b"\xe2a"), max_size=20),
)
@example([0x80] * 60, [0xF0, 0x9F, 0x98])
@example([0xE2, 0x82] * 30, [])
@example([0xF0, 0x9F, 0x98] * 20 + [0x80], [])
def test_bytes_are_shown_as_soon_as_they_are_characters(
    all_tokenizers: dict[str, Tokenizer], data: list[int], before: list[int]
) -> None:
    tokenizer = all_tokenizers["bytes"]
    ids, context = ([id_of(tokenizer, byte) for byte in each] for each in (data, before))
    stream = TextStream(tokenizer, context)
    shown = ""
    for count, token in enumerate(ids, start=1):
        shown += stream.add(token)
        so_far = plain(tokenizer, context, ids[:count])
        assert shown in (so_far, so_far.removesuffix("\ufffd"))
    assert shown + stream.finish() == plain(tokenizer, context, ids)


def id_of(tokenizer: Tokenizer, byte: int) -> int:
    """The token of one byte in a byte-level tokenizer."""
    unprintable = [*range(33), *range(127, 161), 173]
    return tokenizer.id(chr(256 + unprintable.index(byte)) if byte in unprintable else chr(byte))


@settings(max_examples=200)
@given(whole=st.text("ab", max_size=30), stop=STOPS)
@example("aaaaab", ["aaab"])
@example("abacabababc", ["ababc"])
def test_no_more_is_held_back_than_may_begin_a_stop_text(
    all_tokenizers: dict[str, Tokenizer], whole: str, stop: list[str]
) -> None:
    tokenizer = all_tokenizers["bytes"]
    stream = TextStream(tokenizer, stop=stop)
    shown = ""
    for count, token in enumerate([id_of(tokenizer, byte) for byte in whole.encode()], start=1):
        shown += stream.add(token)
        so_far, stopped = cut(whole[:count], stop)
        assert stream.stopped == stopped
        if stopped is not None:
            assert shown == so_far
            break
        beginnings = [each[:length] for each in stop for length in range(1, len(each))]
        held = max((len(each) for each in beginnings if so_far.endswith(each)), default=0)
        assert shown == so_far[: count - held]


@pytest.mark.parametrize(
    ("stop", "shown", "stopped"),
    [
        (["b a"], "a", "b a"),
        (["b a", "b"], "a", "b"),
        (["ab", "b"], "", "ab"),
        (["b", "ab"], "", "ab"),
        (["aab"], "ab ", "aab"),
        ([" aab."], "ab aab", None),
        (["z", "b", "b"], "a", "b"),
    ],
)
def test_stop_texts(all_tokenizers: dict[str, Tokenizer], stop: list[str], shown: str, stopped: str | None) -> None:
    """Over several tokens, in the middle of one, several at once."""
    tokenizer = all_tokenizers["llama"]
    tokens = [tokenizer.id(word) for word in ("▁a", "b", "▁", "aab")]
    stream = TextStream(tokenizer, stop=stop)
    assert "".join(pieces(stream, tokens)) == shown
    assert stream.stopped == stopped
    stream = TextStream(tokenizer, stop=stop, keep_stop=True)
    assert "".join(pieces(stream, tokens)) == shown + (stopped or "")


@pytest.mark.parametrize(
    ("least", "shown", "stopped"), [(0, "", "aa"), (1, "", "aa"), (2, "a", "aa"), (3, "aa", "aa"), (5, "aaaaa", None)]
)
def test_a_stop_text_is_complete_after_the_least_tokens(
    all_tokenizers: dict[str, Tokenizer], least: int, shown: str, stopped: str | None
) -> None:
    """It may have begun before; one that was complete before does not count."""
    tokenizer = all_tokenizers["bytes"]
    stream = TextStream(tokenizer, stop=["aa"], min_tokens=least)
    assert "".join(pieces(stream, [id_of(tokenizer, ord("a"))] * 5)) == shown
    assert stream.stopped == stopped


def test_a_space_is_shown_behind_a_prompt_and_not_at_the_beginning(all_tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = all_tokenizers["llama"]
    tokens = [tokenizer.id(word) for word in ("▁a", "▁a")]
    assert pieces(TextStream(tokenizer), tokens) == ["a", " a", ""]
    assert pieces(TextStream(tokenizer, before=[tokenizer.id("b")]), tokens) == [" a", " a", ""]
    assert pieces(TextStream(tokenizer, before=[tokenizer.id("<s>")]), tokens) == ["a", " a", ""]


def test_single_bytes_wait_for_the_end_of_their_row(all_tokenizers: dict[str, Tokenizer]) -> None:
    """Such tokenizers take a row of bytes for no characters at all where one of them is none."""
    tokenizer = all_tokenizers["llama"]
    row = [tokenizer.id(f"<0x{byte:02X}>") for byte in "€é".encode()]
    tokens = [*row, tokenizer.id("<s>"), *row, tokenizer.id("a")]
    assert pieces(TextStream(tokenizer), tokens) == [""] * 11 + ["€é€éa", ""]
    assert pieces(TextStream(tokenizer), row[:-1]) == ["", "", "", "", "\ufffd" * 4]
    assert TextStream(tokenizer, special=True).add(tokenizer.id("<s>")) == "<s>"
    assert all_tokenizers["bytes"].single_bytes == frozenset()


def test_a_prompt_is_looked_at_as_far_as_it_matters(all_tokenizers: dict[str, Tokenizer]) -> None:
    """Behind tokens without a text, and in the middle of a long row of single bytes."""
    llama, by_bytes = all_tokenizers["llama"], all_tokenizers["bytes"]
    euro = [llama.id(f"<0x{byte:02X}>") for byte in "€".encode()]
    space, nothing = llama.id("▁a"), llama.id("")
    begun = [id_of(by_bytes, byte) for byte in b"a\xe2\x82"] + [by_bytes.eod()] * 20
    for tokenizer, before, answer, wanted in [
        (llama, [llama.id("b")] + [nothing] * 20, [space], " a"),
        (llama, [llama.id("b")] + euro * 7, [*euro, space], "€ a"),
        (llama, [llama.id("b")] + euro * 7 + euro[:2], [euro[2], space], "€" * 8 + " a"),
        (by_bytes, begun, [id_of(by_bytes, 0xAC)], "€"),
    ]:
        assert plain(tokenizer, before, answer) == wanted
        assert "".join(pieces(TextStream(tokenizer, before), answer)) == wanted


def counted(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many ids the tokenizer is given each time that it decodes, from now on."""
    decode, found = tokenizer.decode, []

    def count(ids: Sequence[int], special: bool = False) -> str:
        found.append(len(ids))
        return decode(ids, special)

    monkeypatch.setattr(tokenizer, "decode", count)
    return found


@pytest.mark.parametrize("kind", [*MADE, "bytes"])
def test_each_token_costs_the_same(
    all_tokenizers: dict[str, Tokenizer], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = all_tokenizers[kind]
    ids = [tokenizer.id("a")] * 300
    wanted = plain(tokenizer, ids, ids)
    lengths = counted(tokenizer, monkeypatch)
    assert "".join(pieces(TextStream(tokenizer, before=ids), ids)) == wanted
    assert max(lengths) < 20
    assert len(lengths) < 400


@pytest.mark.parametrize("data", [[0x80] * 300, [0xF0, 0x9F] * 150], ids=["continued", "begun"])
def test_bytes_that_are_no_characters_cost_the_same(
    all_tokenizers: dict[str, Tokenizer], data: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = all_tokenizers["bytes"]
    ids = [id_of(tokenizer, byte) for byte in data]
    wanted = tokenizer.decode(ids)
    lengths = counted(tokenizer, monkeypatch)
    assert "".join(pieces(TextStream(tokenizer), ids)) == wanted
    assert max(lengths) < 20


def test_an_empty_stop_text_is_refused(all_tokenizers: dict[str, Tokenizer]) -> None:
    with pytest.raises(ConfigError, match="empty stop text"):
        TextStream(all_tokenizers["bytes"], stop=["a", ""])

"""Tokenizers of every kind, judged by the library that each is from: sentencepiece, tiktoken, transformers."""

from __future__ import annotations

import base64
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from refusal import run
from tokenizing import sentencepiece_model

from neoxkit.data.tokenizer import Tokenizer
from neoxkit.data.tokenizer.kinds import open_tokenizer
from neoxkit.data.tokenizer.probes import PROBES
from neoxkit.data.tokenizer.ranks import CL100K_PATTERN, R50K_PATTERN, Encoding, convert, letters, of_tekken
from neoxkit.data.tokenizer.train import train_bpe
from neoxkit.errors import DataError

LINE = "def add_{0}(left, right):\n    return left + right + {0}  # é 中文 < / s > unk [0x12ABCDEF] y,|p\n"
LINES = [LINE.format(k) for k in range(120)]
TEXT = st.text() | st.text("ab \u2581\n\téé中<>user/s0x41", max_size=20)
SYMBOLS = ["<user>", "[/x]"]


PIECES = {
    "llama": ("bpe", {"byte_fallback": True, "remove_extra_whitespaces": False, "vocab_size": 600}),
    "default bpe": ("bpe", {}),
    "no prefix": ("bpe", {"add_dummy_prefix": False, "user_defined_symbols": SYMBOLS}),
    "symbols": ("bpe", {"user_defined_symbols": SYMBOLS, "control_symbols": ["<c>"]}),
    "unigram": ("unigram", {"user_defined_symbols": SYMBOLS}),
    "unigram of bytes": ("unigram", {"byte_fallback": True, "remove_extra_whitespaces": False, "vocab_size": 600}),
}


@pytest.fixture(scope="module", params=PIECES)
def pieces(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    """A SentencePiece model as we open it, and as its own library does."""
    sentencepiece = pytest.importorskip("sentencepiece")
    kind, options = PIECES[request.param]
    content = sentencepiece_model(LINES, kind, **options)
    path = tmp_path_factory.mktemp("pieces") / "tokenizer.model"
    path.write_bytes(content)
    return open_tokenizer(path), sentencepiece.SentencePieceProcessor(model_proto=content)


@settings(max_examples=150)
@given(text=TEXT)
@example(text="<s> a</s><c><unk><0x41>  <user>b[/x][/x]<user>")
@example(text="<user>x")
@example(text="   ")
def test_a_sentencepiece_model_gives_its_own_ids(pieces: tuple[Tokenizer, Any], text: str) -> None:
    ours, judge = pieces
    if text in SYMBOLS:
        return  # the difference that convert() names
    assert ours.encode(text) == judge.encode(text)
    assert ours.encode_batch([text]) == [judge.encode(text)]


def test_a_sentencepiece_model_has_its_own_special_tokens(pieces: tuple[Tokenizer, Any]) -> None:
    ours, judge = pieces
    assert (ours.bos, ours.eos, ours.pad) == (judge.bos_id(), judge.eos_id(), None)
    assert ours.vocab == judge.get_piece_size()
    text = "def add_1(left, right):"
    assert ours.decode(ours.encode(text)) == judge.decode(judge.encode(text)) == text
    assert ours.parsing().encode("a</s>")[-1] == ours.eos != ours.encode("a</s>")[-1]


def test_documents_get_the_ids_of_the_library_from_every_worker(tmp_path: Path) -> None:
    """The names of control tokens in a document stay text, in this process and in others."""
    sentencepiece = pytest.importorskip("sentencepiece")
    content = sentencepiece_model(LINES, "bpe", byte_fallback=True, vocab_size=600)
    (tmp_path / "t.model").write_bytes(content)
    texts = ["<s>a</s>", "x  y<unk>", *LINES[:9]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    judge = sentencepiece.SentencePieceProcessor(model_proto=content)
    for workers in (1, 2):
        prefix = tmp_path / f"t{workers}"
        done = run(f"data tokenize {tmp_path}/a.jsonl -o {prefix} --tokenizer {tmp_path}/t.model --workers {workers}")
        assert done.exit_code == 0, done.stderr
        ids = np.fromfile(f"{prefix}.bin", np.uint16).tolist()
        assert ids == [each for text in texts for each in [*judge.encode(text), judge.eos_id()]]


def test_what_a_tokenizer_json_cannot_do_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.model").write_bytes(sentencepiece_model(LINES, "bpe", normalization_rule_name="nmt_nfkc"))
    with pytest.raises(DataError, match=r"changes characters by its own map \(nmt_nfkc\)"):
        open_tokenizer(tmp_path / "m.model")
    (tmp_path / "m.model").write_bytes(sentencepiece_model(LINES, "word", vocab_size=100))
    with pytest.raises(DataError, match="neither BPE nor unigram"):
        open_tokenizer(tmp_path / "m.model")
    (tmp_path / "m.model").write_bytes(sentencepiece_model(LINES, "bpe")[:3000])
    with pytest.raises(DataError, match="is no SentencePiece model"):
        open_tokenizer(tmp_path / "m.model")


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    """A byte-level BPE whose entries are in the order of its merges."""
    folder = tmp_path_factory.mktemp("bpe") / "t"
    train_bpe(LINES, 500, folder)
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def ranked(bpe: tokenizers.Tokenizer) -> dict[bytes, int]:
    """The same as ranks, the bytes in another order."""
    back = {letter: byte for byte, letter in letters().items()}
    vocab = sorted(bpe.get_vocab().items(), key=lambda each: each[1])
    tokens = [bytes(back[letter] for letter in token) for token, number in vocab if number >= 2]
    return {token: rank for rank, token in enumerate(tokens[::-1][-256:] + tokens[256:])}


@pytest.mark.parametrize("pattern", [R50K_PATTERN, CL100K_PATTERN])
def test_ranks_give_the_ids_of_tiktoken(ranked: dict[bytes, int], pattern: str) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    judge = tiktoken.Encoding("t", pat_str=pattern, mergeable_ranks=ranked, special_tokens={})
    made = convert(Encoding("t", pattern, ranked, {"<|end|>": len(ranked)}), "t")
    made.encode_special_tokens = True

    @settings(max_examples=300)
    @given(text=TEXT | st.text("'sSlLvVdDreREtTmM\u017f 1 \r\n", max_size=12))
    def same(text: str) -> None:
        assert made.encode(text).ids == judge.encode_ordinary(text)

    same()
    made.encode_special_tokens = False
    assert made.encode("<|end|>").ids == [len(ranked)]


def test_a_tekken_file_is_read(ranked: dict[bytes, int], tmp_path: Path) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    vocab = [{"rank": rank, "token_bytes": base64.b64encode(token).decode()} for token, rank in ranked.items()]
    config = {"pattern": CL100K_PATTERN, "default_vocab_size": 300 + 20, "default_num_special_tokens": 20}
    (tmp_path / "tekken.json").write_text(json.dumps({"config": config, "vocab": vocab}))
    judge = tiktoken.Encoding(
        "t",
        pat_str=CL100K_PATTERN,
        mergeable_ranks={token: rank for token, rank in ranked.items() if rank < 300},
        special_tokens={},
    )
    for path in (tmp_path, tmp_path / "tekken.json"):
        ours = open_tokenizer(path)
        assert (ours.vocab, ours.bos, ours.eos, ours.pad) == (320, 1, 2, 11)
        assert ours.encode(LINES[0]) == [20 + rank for rank in judge.encode_ordinary(LINES[0])]
        assert ours.parsing().encode("[INST]a") == [3, *ours.encode("a")]
    with pytest.raises(DataError, match="is no tekken"):
        of_tekken(b'{"config": {}, "vocab": []}', "x")


def test_a_file_of_ranks_of_unknown_size_is_refused(ranked: dict[bytes, int], tmp_path: Path) -> None:
    path = tmp_path / "x.tiktoken"
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranked.items()))
    with pytest.raises(DataError, match=f"has {len(ranked)} ranks, and of no tokenizer of that size"):
        open_tokenizer(path)
    path.write_text("QQ== 0\nQQ==\n")
    with pytest.raises(DataError, match="each line is a token in base64"):
        open_tokenizer(path)


def test_a_name_of_tiktoken_that_is_not_at_hand_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = pytest.importorskip("tiktoken.load")

    def unreachable(path: str) -> bytes:
        raise ConnectionError(f"cannot reach {path}")

    monkeypatch.setattr(load, "read_file", unreachable)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(DataError, match=r"tiktoken has no p50k_edit in its cache .* set TIKTOKEN_CACHE_DIR"):
        open_tokenizer("p50k_edit")


@pytest.fixture
def pair(bpe: tokenizers.Tokenizer, tmp_path: Path) -> Path:
    """A folder with vocab.json and merges.txt."""
    tree = json.loads(bpe.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(tree["vocab"]))
    lines = ["#version: 0.2", *(each if isinstance(each, str) else " ".join(each) for each in tree["merges"])]
    (tmp_path / "merges.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_a_vocabulary_and_its_merges(bpe: tokenizers.Tokenizer, pair: Path) -> None:
    bpe.encode_special_tokens = True
    expected = [bpe.encode(text).ids for text in PROBES]
    bpe.encode_special_tokens = False
    for name in (pair, pair / "vocab.json", f"{pair}/vocab.json,{pair}/merges.txt"):
        ours = open_tokenizer(name)
        assert [ours.encode(text) for text in PROBES] == expected
        assert (ours.bos, ours.eos) == (0, 0)
        assert open_tokenizer(ours.path).fingerprint == ours.fingerprint
    (pair / "vocab.json").rename(pair / "small-vocab.json")
    (pair / "merges.txt").rename(pair / "small-merges.txt")
    assert open_tokenizer(pair / "small-vocab.json").encode(LINES[0]) == bpe.encode(LINES[0]).ids


def test_two_files_that_are_no_pair_are_refused(pair: Path) -> None:
    with pytest.raises(DataError, match="no such file; name both"):
        open_tokenizer(f"{pair}/vocab.json,{pair}/none.txt")
    (pair / "merges.txt").write_text("a b c\n")
    with pytest.raises(DataError, match="'a b c' is no merge of two"):
        open_tokenizer(pair)
    (pair / "merges.txt").write_text("qqq zzz\n")
    with pytest.raises(DataError, match="do not belong together"):
        open_tokenizer(pair)
    (pair / "merges.txt").unlink()
    with pytest.raises(DataError, match="no merges lie beside it"):
        open_tokenizer(pair / "vocab.json")


@given(text=TEXT)
def test_bytes_are_the_bytes(text: str) -> None:
    assert BYTES.encode(text) == list(text.encode())
    assert BYTES.decode(BYTES.encode(text), special=True) == text


BYTES = open_tokenizer("bytes")


def test_bytes_have_the_size_and_the_ends_of_gpt_neox() -> None:
    assert (BYTES.vocab, BYTES.eos, BYTES.pad) == (512, 0, 1)


def test_a_folder_of_transformers_without_tokenizer_json_is_what_transformers_makes_of_it(pair: Path) -> None:
    transformers = pytest.importorskip("transformers")
    (pair / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>", "add_prefix_space": True})
    )
    theirs = transformers.AutoTokenizer.from_pretrained(pair)
    ours = open_tokenizer(pair)
    assert [ours.encode(text) for text in PROBES] == [theirs(text)["input_ids"] for text in PROBES]
    assert ours.eos == theirs.eos_token_id == 0
    (pair / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Unheard", "auto_map": {"x": "y"}}))
    (pair / "vocab.json").write_text("{")
    with pytest.raises(DataError, match="transformers can make no"):
        open_tokenizer(pair)


@pytest.mark.parametrize("kind", ["bytes", "pieces", "pair"])
def test_the_files_of_each_kind_give_the_same_ids_elsewhere(pair: Path, tmp_path: Path, kind: str) -> None:
    """In transformers, and in neoxkit once a checkpoint has carried them."""
    transformers = pytest.importorskip("transformers")
    if kind == "pieces":
        (tmp_path / "t.model").write_bytes(sentencepiece_model(LINES, "bpe", byte_fallback=True, vocab_size=600))
    ours = open_tokenizer({"bytes": "bytes", "pieces": tmp_path / "t.model", "pair": pair}[kind])
    folder = tmp_path / "out"
    folder.mkdir()
    for name, content in ours.contents().items():
        (folder / name).write_bytes(content)
    theirs, again = transformers.AutoTokenizer.from_pretrained(folder), open_tokenizer(folder)
    parsing = ours.parsing()
    for text in PROBES:
        assert theirs(text, add_special_tokens=False)["input_ids"] == parsing.encode(text) == again.encode(text)
    assert (again.fingerprint, again.vocab) == (ours.fingerprint, ours.vocab)


def test_a_tokenizer_is_pickled_with_all_that_it_knows() -> None:
    again = pickle.loads(pickle.dumps(BYTES))
    assert (again.eos, again.pad, again.literal, again.fingerprint) == (0, 1, True, BYTES.fingerprint)


def test_a_name_of_the_hub_is_read_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model = tmp_path / "models--someone--small"
    (model / "refs").mkdir(parents=True)
    (model / "refs/main").write_text("0" * 40)
    train_bpe(LINES, 300, model / "made")
    (model / "snapshots").mkdir()
    (model / "made").rename(model / "snapshots" / ("0" * 40))
    for name in ("someone/small", "hf:someone/small", "hf:someone/small@main"):
        assert open_tokenizer(name).vocab == 300
    with pytest.raises(DataError, match="someone/else: no such file or folder, and the Hub gives no tokenizer"):
        open_tokenizer("someone/else")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("vocab.txt", b"[PAD]\n[UNK]\n", "alone does not say how text is cut"),
        ("tokenizer.model", b"\x00\x01", "is not a tokenizer"),
        ("tokenizer.model", b"", "is not a tokenizer"),
        ("tekken.json", b'{"config": {}, "vocab": []}', "is no tekken.json"),
        ("tekken.json", b"{", "is not JSON"),
        ("README.md", b"", "no tokenizer.json"),
    ],
)
def test_a_folder_that_holds_none_is_refused(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says):
        open_tokenizer(tmp_path)


def test_a_name_that_is_none_is_refused_with_the_forms_there_are() -> None:
    with pytest.raises(DataError, match=r"no such tokenizer; give a tokenizer\.json, .*, bytes, ORG/NAME .* r50k_base"):
        open_tokenizer("nothing")

"""The .bin/.idx pair: golden bytes made by gpt-neox, and every way in which a pair can be wrong."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neoxkit.data.tokens.indexed import DTYPES, IndexedFile, IndexedWriter, dtype_for
from neoxkit.errors import DataError

GOLDEN_DOCUMENTS = [[5, 6, 7], [1], [9, 8, 7, 6]]
GOLDEN_BIN = bytes.fromhex("05000600070001000900080007000600")
GOLDEN_IDX = bytes.fromhex(
    "4d4d49444944580000 0100000000000000 08 0300000000000000 0400000000000000 03000000 01000000 04000000"
    "0000000000000000 0600000000000000 0800000000000000"
    "0000000000000000 0100000000000000 0200000000000000 0300000000000000"
)


def write(prefix: Path, documents: list[list[int]], vocab: int | None = 100) -> Path:
    with IndexedWriter(prefix, vocab) as writer:
        for ids in documents:
            writer.add(ids)
        writer.commit()
    return prefix


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    (tmp_path / "g.bin").write_bytes(GOLDEN_BIN)
    (tmp_path / "g.idx").write_bytes(GOLDEN_IDX)
    return tmp_path / "g"


def test_writes_the_golden_bytes(tmp_path: Path) -> None:
    write(tmp_path / "w", GOLDEN_DOCUMENTS)
    assert (tmp_path / "w.bin").read_bytes() == GOLDEN_BIN
    assert (tmp_path / "w.idx").read_bytes() == GOLDEN_IDX
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.bin", "w.idx"]


@pytest.mark.parametrize("suffix", ["", ".bin", ".idx"])
def test_reads_the_golden_bytes(golden: Path, suffix: str) -> None:
    file = IndexedFile(f"{golden}{suffix}")
    assert [file[k].tolist() for k in range(len(file))] == GOLDEN_DOCUMENTS
    assert (file.tokens, file.dtype) == (8, np.dtype("<u2"))
    assert file.documents.tolist() == [0, 1, 2, 3]
    assert file.read(2, 1, 3).tolist() == [8, 7]


def test_dtype_rule() -> None:
    assert [dtype_for(v).name for v in (65499, 65500, None)] == ["uint16", "int32", "int32"]


@settings(deadline=None, max_examples=40)
@given(
    documents=st.lists(st.lists(st.integers(0, 69_999), max_size=9), max_size=9), vocab=st.sampled_from([None, 70_000])
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], vocab: int | None
) -> None:
    file = IndexedFile(write(tmp_path_factory.mktemp("pair") / "p", documents, vocab))
    assert [file[k].tolist() for k in range(len(file))] == documents
    assert file.tokens == sum(map(len, documents))


@pytest.mark.parametrize("code", DTYPES)
def test_every_dtype_is_read(tmp_path: Path, code: int) -> None:
    values = np.array([1, 2, 3], DTYPES[code])
    (tmp_path / "p.bin").write_bytes(values.tobytes())
    head = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, 2, 3)
    body = struct.pack("<2i2q3q", 1, 2, 0, values.itemsize, 0, 1, 2)
    (tmp_path / "p.idx").write_bytes(head + body)
    file = IndexedFile(tmp_path / "p")
    assert [file[0].tolist(), file[1].tolist()] == [[1], [2, 3]]


def test_a_merged_document_index_is_read(golden: Path) -> None:
    """gpt-neox's merge leaves [0] in the document index."""
    idx = bytearray(GOLDEN_IDX[:-24])
    idx[26:34] = struct.pack("<Q", 1)
    golden.with_suffix(".idx").write_bytes(idx)
    assert IndexedFile(golden).tokens == 8


def at(offset: int, value: bytes) -> bytes:
    return GOLDEN_IDX[:offset] + value + GOLDEN_IDX[offset + len(value) :]


@pytest.mark.parametrize(
    ("idx", "tokens", "says"),
    [
        (None, GOLDEN_BIN, "no such index"),
        (GOLDEN_IDX, None, "no such token file"),
        (b"", GOLDEN_BIN, "not a token index"),
        (b"PK\3\4" + GOLDEN_IDX[4:], GOLDEN_BIN, "not a token index"),
        (b"TNTIDX\0\0" + GOLDEN_IDX, GOLDEN_BIN, "legacy"),
        (GOLDEN_IDX[:20], GOLDEN_BIN, "not even a header"),
        (at(9, struct.pack("<Q", 2)), GOLDEN_BIN, "version 2"),
        (at(17, b"\x09"), GOLDEN_BIN, "dtype code 9"),
        (at(18, struct.pack("<Q", 1 << 60)), GOLDEN_BIN, "truncated"),
        (GOLDEN_IDX[:-1], GOLDEN_BIN, "idx is truncated"),
        (GOLDEN_IDX + b"\0", GOLDEN_BIN, "idx is too long"),
        (GOLDEN_IDX, GOLDEN_BIN[:-2], "bin is truncated"),
        (GOLDEN_IDX, b"", "outside g.bin"),
        (GOLDEN_IDX, GOLDEN_BIN + b"\0\0", "bin is too long"),
        (at(34, struct.pack("<i", -3)), GOLDEN_BIN, "negative size"),
        (at(46, struct.pack("<q", -6)), GOLDEN_BIN, "negative size"),
        (at(46, struct.pack("<q", 1 << 62)), GOLDEN_BIN, "outside g.bin"),
        (at(len(GOLDEN_IDX) - 8, struct.pack("<q", 9)), GOLDEN_BIN, "document index"),
    ],
)
def test_a_wrong_pair_is_refused(tmp_path: Path, idx: bytes | None, tokens: bytes | None, says: str) -> None:
    for suffix, content in ((".idx", idx), (".bin", tokens)):
        if content is not None:
            (tmp_path / f"g{suffix}").write_bytes(content)
    with pytest.raises(DataError, match=says):
        IndexedFile(tmp_path / "g")


@pytest.mark.parametrize(("ids", "vocab"), [([100], 100), ([-1], 100), ([1 << 31], None)])
def test_ids_outside_the_vocabulary_are_refused(tmp_path: Path, ids: list[int], vocab: int | None) -> None:
    with pytest.raises(DataError, match=f"token id {ids[0]}"):
        write(tmp_path / "p", [[1], ids], vocab)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_unasked(golden: Path) -> None:
    with pytest.raises(DataError, match="exists; give --force"):
        IndexedWriter(golden, 100)
    with IndexedWriter(golden, 100, force=True) as writer:
        writer.add([1])
    assert golden.with_suffix(".bin").read_bytes() == GOLDEN_BIN, "not committed, so not replaced"
    with IndexedWriter(golden, 100, force=True) as writer:
        writer.add([1])
        writer.commit()
    assert IndexedFile(golden).tokens == 1


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent: no such folder"):
        IndexedWriter(tmp_path / "absent" / "p", 100)

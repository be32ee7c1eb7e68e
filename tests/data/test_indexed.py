"""The .bin/.idx pair: golden bytes made by gpt-neox in both forms, and every way in which a pair can be wrong."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neoxkit.data.rows.arrange import Arrangement
from neoxkit.data.rows.pack import split
from neoxkit.data.rows.rows import Reading, Rows
from neoxkit.data.tokens.index import DTYPES, pieces, write_index
from neoxkit.data.tokens.indexed import IndexedFile, IndexedWriter, dtype_for
from neoxkit.errors import DataError

GOLDEN_DOCUMENTS = [[5, 6, 7], [1], [9, 8, 7, 6]]
GOLDEN_BIN = bytes.fromhex("05000600070001000900080007000600")
GOLDEN_IDX = bytes.fromhex(
    "4d4d49444944580000 0100000000000000 08 0300000000000000 0400000000000000 03000000 01000000 04000000"
    "0000000000000000 0600000000000000 0800000000000000"
    "0000000000000000 0100000000000000 0200000000000000 0300000000000000"
)

CACHED_DOCUMENTS = [[5, 6, 7], [1]]
CACHED_BIN = struct.pack("<4i", 5, 6, 7, 1)
CACHED_IDX = bytes.fromhex(
    "544e544944580000 0100000000000000 0400000000000000 0400000000000000 0200000000000000 0200000000000000"
    "0300000000000000 0000000000000000 0100000000000000 0200000000000000 0000000000000000 0300000000000000"
    "0400000000000000 0300000000000000 0100000000000000 0000000000000000 0100000000000000 0200000000000000"
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
    assert (file.documents.tolist(), file.alone, file.form) == ([0, 1, 2, 3], True, "megatron")
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
    file = IndexedFile(golden)
    assert (file.tokens, file.document_count, file.documents.tolist()) == (8, 3, [0, 1, 2, 3])


def test_the_golden_bytes_of_the_cached_form_are_read(tmp_path: Path) -> None:
    (tmp_path / "c.bin").write_bytes(CACHED_BIN)
    (tmp_path / "c.idx").write_bytes(CACHED_IDX)
    file = IndexedFile(tmp_path / "c")
    assert [file[k].tolist() for k in range(len(file))] == CACHED_DOCUMENTS
    assert (file.tokens, file.dtype, file.form) == (4, np.dtype("<i4"), "cached")
    assert (file.documents.tolist(), file.alone) == ([0, 1, 2], True)
    assert file.read(0, 1, 3).tolist() == [6, 7]


def test_documents_of_several_sequences(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "p", 100) as writer:
        writer.add([1])
        writer.add([2, 3, 4], [1, 2])
        writer.add([], [])
        writer.add([5])
        assert len(writer) == 4
        writer.commit()
    file = IndexedFile(tmp_path / "p")
    assert [file[k].tolist() for k in range(len(file))] == [[1], [2], [3, 4], [5]]
    assert (file.documents.tolist(), file.document_count, file.alone) == ([0, 1, 3, 3, 4], 4, False)
    assert file.document_sizes().tolist() == [1, 3, 0, 1]


@pytest.mark.parametrize(("modes", "says"), [(b"\0\0\0", None), (b"\0\1\0", "sequences of several modes")])
def test_modes(golden: Path, modes: bytes, says: str | None) -> None:
    """Megatron's multimodal files: text alone is read."""
    golden.with_suffix(".idx").write_bytes(GOLDEN_IDX + modes)
    if says is None:
        assert IndexedFile(golden).tokens == 8
        return
    with pytest.raises(DataError, match=says):
        IndexedFile(golden)


@pytest.mark.parametrize("code", [6, 7])
@pytest.mark.parametrize("width", [4, 8])
def test_floats_of_either_library(tmp_path: Path, code: int, width: int) -> None:
    """The codes mean float32 and float64 to gpt-neox, float64 and float32 to Megatron-core."""
    values = np.array([0.5, -1, 3], f"<f{width}")
    (tmp_path / "p.bin").write_bytes(values.tobytes())
    head = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, 2, 3)
    (tmp_path / "p.idx").write_bytes(head + struct.pack("<2i2q3q", 1, 2, 0, width, 0, 1, 2))
    file = IndexedFile(tmp_path / "p")
    assert [file[0].tolist(), file[1].tolist()] == [[0.5], [-1, 3]]


def cached(place: int, value: int) -> bytes:
    """The cached index with another number at a place, in numbers of 8 bytes."""
    return CACHED_IDX[: 8 * place] + struct.pack("<q", value) + CACHED_IDX[8 * place + 8 :]


@pytest.mark.parametrize(
    ("idx", "says"),
    [
        (CACHED_IDX[:40], "not even a header"),
        (CACHED_IDX[:-8], "idx is truncated"),
        (CACHED_IDX + b"\0" * 8, "idx is too long"),
        (cached(1, 2), "version 2"),
        (cached(2, 9), "dtype code 9"),
        (cached(3, 2), "int32 takes 2 bytes"),
        (cached(8, 2), "several dimensions"),
        (cached(11, 2), "outside c.bin|too long|truncated"),
        (cached(13, -1), "negative size"),
        (cached(13, 1 << 31), "2\\^31 tokens"),
        (cached(14, 0), "c.bin is too long"),
        (cached(14, 2), "c.bin is truncated"),
        (cached(17, 3), "document index"),
        (cached(15, 1), "document index"),
    ],
)
def test_a_wrong_cached_pair_is_refused(tmp_path: Path, idx: bytes, says: str) -> None:
    (tmp_path / "c.bin").write_bytes(CACHED_BIN)
    (tmp_path / "c.idx").write_bytes(idx)
    with pytest.raises(DataError, match=says):
        IndexedFile(tmp_path / "c")


def sparse(prefix: Path, sizes: np.ndarray, marks: dict[int, int]) -> None:
    """A pair of u16 tokens whose .bin takes no disk: zeros but for the first token of the sequences in `marks`."""
    ends = np.cumsum(sizes, dtype=np.int64)
    with open(f"{prefix}.bin", "wb") as tokens:
        for sequence, token in marks.items():
            tokens.seek(2 * int(ends[sequence] - sizes[sequence]))
            tokens.write(struct.pack("<H", token))
        tokens.truncate(2 * int(ends[-1]))
    with open(f"{prefix}.idx", "wb") as index:
        write_index(index, np.dtype("<u2"), pieces(sizes))


@pytest.mark.parametrize(("documents", "size"), [(2_500, 2_000_000), (1_100_000, 4_600)], ids=["long", "many"])
def test_five_billion_tokens(tmp_path: Path, documents: int, size: int) -> None:
    """Beyond 2^32 tokens, and so 2^33 bytes, and beyond one chunk of documents: tokens are where arithmetic says.

    Of 50 million documents: benchmarks/index.py.
    """
    sizes = np.full(documents, size, np.int32)
    sizes[0] -= 1
    far = [0, documents // 2, documents - 2, documents - 1]
    sparse(tmp_path / "p", sizes, {document: 7 + k for k, document in enumerate(far)})
    file = IndexedFile(tmp_path / "p")
    assert (file.tokens, file.document_count) == (documents * size - 1, documents)
    assert file.tokens > 1 << 32
    assert [int(file.read(document, 0, 1)[0]) for document in far] == [7, 8, 9, 10]
    assert file.read(documents - 1, size - 1).tolist() == [0]
    order = Arrangement(kind="packed", context=2048, seed=3, first=0, last=documents).order(file)
    rows, packing = Rows(file, order, Reading(context=2048)), order.first.packing
    assert rows.count == (file.tokens - 1) // 2048
    before = np.concatenate([[0], np.cumsum(sizes[packing.order], dtype=np.int64)])
    places = packing.bounds[:, 0].astype(np.int64)
    assert np.array_equal(before[places] + packing.bounds[:, 1], np.arange(rows.count + 1) * 2048)
    place_of = np.empty(documents, np.int64)
    place_of[packing.order] = np.arange(documents)
    number_of = np.empty(rows.count, np.int64)
    number_of[packing.shuffle] = np.arange(rows.count)
    for token, document in enumerate(far, 7):
        stretch, offset = divmod(int(before[place_of[document]]), 2048)
        if stretch < rows.count:  # else what is left over at the end
            assert rows.row(int(number_of[stretch])).ids[offset] == token
    train, valid, test = split("969,30,1", documents)
    assert (train[0], train[1], valid[1], test[1]) == (0, valid[0], test[0], documents)
    last = Arrangement(kind="packed", context=2048, seed=3, first=test[0], last=test[1]).order(file)
    assert sorted(last.first.packing.order.tolist()) == list(range(*test))


def at(offset: int, value: bytes) -> bytes:
    return GOLDEN_IDX[:offset] + value + GOLDEN_IDX[offset + len(value) :]


@pytest.mark.parametrize(
    ("idx", "tokens", "says"),
    [
        (None, GOLDEN_BIN, "no such index"),
        (GOLDEN_IDX, None, "no such token file"),
        (b"", GOLDEN_BIN, "not a token index"),
        (b"PK\3\4" + GOLDEN_IDX[4:], GOLDEN_BIN, "not a token index"),
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

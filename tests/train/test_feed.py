"""What a run reads: several sources, changes of weight at resume, and the order that never depends on the rest."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs as runs
import tokenizers
from tokenizers import models

from neoxkit.config.run import RunConfig
from neoxkit.data.rows.blend import Phase
from neoxkit.data.tokens.columns import write_column
from neoxkit.data.tokens.indexed import IndexedFile, IndexedWriter
from neoxkit.data.tokens.sidecar import Sidecar, path_of, write_sidecar
from neoxkit.errors import ConfigError, DataError
from neoxkit.train.feed import Feed
from neoxkit.train.identity import Began, Identity

VOCAB = runs.VOCAB


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three sources, whose tokens are 0 to 19, 20 to 39 and 40 to 59, and held-out tokens."""
    generator = np.random.default_rng(0)
    for name, low, documents in (("a", 0, 40), ("b", 20, 25), ("c", 40, 30), ("held-out", 0, 6)):
        with IndexedWriter(tmp_path / name, vocab=VOCAB) as writer:
            for _ in range(documents):
                writer.add(generator.integers(low, low + 20, size=generator.integers(3, 30)))
            writer.commit()
    return tmp_path


def sources(folder: Path, **weights: float) -> list[dict[str, Any]]:
    return [{"tokens": str(folder / name), "weight": weight} for name, weight in weights.items()]


def config(folder: Path, *overrides: str, data: Any, **options: Any) -> RunConfig:
    train = data if isinstance(data, list) else str(folder / data)
    given = {"train": train, "valid": str(folder / "held-out")}
    return runs.config("gpt_neox", folder, *overrides, data=given, **options)


def drawn(feed: Feed, first: int, last: int) -> list[list[int]]:
    return [feed.row(number).ids.tolist() for number in range(first, last)]


def of(row: list[int]) -> str:
    """The source of a row."""
    return "abc"[row[0] // 20]


def after(feed: Feed, samples: int) -> Began:
    """What a checkpoint says, through JSON as it is written."""
    import json

    return Began(Identity.read(json.loads(json.dumps(feed.identity.saved()))), samples, "run/step-1")


@pytest.mark.parametrize("blend", ["exact", "gpt-neox"])
def test_sources_come_by_weight(folder: Path, blend: str) -> None:
    feed = Feed(config(folder, f"data.blend={blend}", data=sources(folder, a=3, b=1, c=1), steps=50))
    rows = drawn(feed, 0, 200)
    assert Counter(map(of, rows)) == {"a": 120, "b": 40, "c": 40}
    assert Counter(map(of, rows[:20])) == {"a": 12, "b": 4, "c": 4}


def test_gpt_neoxs_blend_is_gpt_neoxs(folder: Path) -> None:
    """Each source in its own order, with the epochs that gpt-neox gives it."""
    from neoxkit.data.rows.pack import pack

    feed = Feed(config(folder, "data.blend=gpt-neox", data=sources(folder, a=0.7, b=0.2, c=0.1), steps=40))
    wanted = [0, 1, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0, 2, 0, 0, 0, 1, 0, 0]
    assert [of(row) for row in drawn(feed, 0, 20)] == ["abc"[k] for k in wanted]
    counts: Counter[str] = Counter()
    rows = drawn(feed, 0, 160)
    for name, weight in (("a", 0.7), ("b", 0.2), ("c", 0.1)):
        file = IndexedFile(folder / name)
        packing = pack(file.sizes, np.arange(len(file)), 12, seed=1234, rows=math.ceil(160 * weight * 1.005))
        stream = np.concatenate([file[int(k)] for k in packing.order]).tolist()
        for row in (row for row in rows if of(row) == name):
            at = int(packing.shuffle[counts[name]]) * 12
            assert row == stream[at : at + 13]
            counts[name] += 1


def test_one_of_a_list_is_one_alone(folder: Path) -> None:
    alone, listed = Feed(config(folder, data="a")), Feed(config(folder, data=sources(folder, a=5)))
    assert drawn(alone, 0, 24) == drawn(listed, 0, 24)
    assert alone.identity.sources == listed.identity.sources
    resumed = Feed(config(folder, data="a"), after(listed, 8))
    assert len(resumed.identity.phases) == 1


@pytest.mark.parametrize("packing", ["packed", "whole", "best_fit", "single"])
@pytest.mark.parametrize("blend", ["exact", "gpt-neox"])
def test_weights_change_at_resume_and_the_position_stays(folder: Path, packing: str, blend: str) -> None:
    """Of each source the rows go on where they were; a source may come, and another go."""
    how = (f"data.packing={packing}", f"data.blend={blend}")
    first = Feed(config(folder, *how, data=sources(folder, a=1, b=1), steps=10))
    began = after(first, 21)
    second = Feed(config(folder, *how, data=sources(folder, c=2, a=1), steps=20), began)
    own = {name: Feed(config(folder, *how, data=name, steps=20)) for name in "abc"}
    rows = drawn(first, 0, 21) + drawn(second, 21, 60)
    assert Counter(map(of, rows[21:])) == {"c": 26, "a": 13}
    again = Feed(config(folder, *how, data=sources(folder, a=1, c=2), steps=20), after(second, 30))
    assert drawn(again, 30, 60) == rows[30:]  # the order in which they are named says nothing
    assert again.identity.phases == second.identity.phases
    if packing != "packed":  # whose order depends on how many epochs there are
        counts: Counter[str] = Counter()
        for row in rows:
            assert row == own[of(row)].row(counts[of(row)]).ids.tolist()
            counts[of(row)] += 1


def test_a_resumed_run_reads_what_it_would_have_read(folder: Path) -> None:
    given = sources(folder, a=2, b=1)
    whole = Feed(config(folder, data=given, steps=30))
    for done in (0, 7, 60):
        assert drawn(Feed(config(folder, data=given, steps=30), after(whole, done)), done, 90) == drawn(whole, done, 90)


def test_other_data_is_refused(folder: Path) -> None:
    began = after(Feed(config(folder, data=sources(folder, a=1, b=1))), 8)
    with pytest.raises(ConfigError, match=r"data.train: the number or order of its tokens is .* run/step-1 began with"):
        Feed(config(folder, data="c"), began)  # nothing of what it began with
    with IndexedWriter(folder / "b", vocab=VOCAB, force=True) as writer:
        writer.add(np.arange(50))
        writer.commit()
    with pytest.raises(ConfigError, match=r"data\.train: the number or order of its tokens is 50"):
        Feed(config(folder, data=sources(folder, a=1, b=1)), began)
    Feed(config(folder, data=sources(folder, a=1, c=1)), began)
    with pytest.raises(ConfigError, match=r"data\.packing is whole, and the run in run/step-1 began with packed"):
        Feed(config(folder, "data.packing=whole", data=sources(folder, a=1)), began)
    with pytest.raises(ConfigError, match="seed is 5"):
        Feed(config(folder, "seed=5", data=sources(folder, a=1)), began)


def test_sources_that_look_alike_are_told_apart_by_where_they_are(folder: Path) -> None:
    """Without a sidecar nothing but the lengths of documents is known of a file."""
    for at, name in enumerate("abc"):
        with IndexedWriter(folder / name, vocab=VOCAB, force=True) as writer:
            for document in range(16):
                writer.add(np.full(13, 20 * at + document))
            writer.commit()
    given = sources(folder, a=1, b=1)
    whole = Feed(config(folder, "data.packing=single", data=given))
    rows = drawn(whole, 6, 24)
    turned = Feed(config(folder, "data.packing=single", data=given[::-1]), after(whole, 6))
    assert drawn(turned, 6, 24) == rows
    left = Feed(config(folder, "data.packing=single", data=given[1:]), after(whole, 6))
    assert drawn(left, 6, 9) == [row for row in rows if of(row) == "b"][:3]


def test_the_same_tokens_may_be_given_twice(folder: Path) -> None:
    with IndexedWriter(folder / "none", dtype=np.int32) as labels:
        for sequence in IndexedFile(folder / "a").sizes.tolist():
            labels.add([-100] * sequence)
        labels.commit()
    given = [{"tokens": str(folder / "a")}, {"tokens": str(folder / "a"), "labels": str(folder / "none")}]
    feed = Feed(config(folder, data=given))
    learned = [True if (counts := feed.row(number).counts) is None else bool(counts.any()) for number in range(4)]
    assert sorted(learned) == [False, False, True, True]


def test_a_split_may_hold_nothing_out(folder: Path) -> None:
    def divided(weights: str, **given: int) -> Feed:
        made = config(folder, data=sources(folder, **given))
        return Feed(made.model_copy(update={"data": made.data.model_copy(update={"valid": None, "split": weights})}))

    assert divided("1,0,0", a=1).held_out is None
    assert divided("9,1", a=1, b=1).held_out is not None
    with pytest.raises(DataError, match=r'data.split "1000,1" holds out none of so few documents'):
        divided("1000,1", a=1)


def test_bits_per_byte_are_of_text_that_is_judged_whole(folder: Path) -> None:
    about = Sidecar("sha256:1", VOCAB, 0, 6, IndexedFile(folder / "held-out").tokens, 500)
    write_sidecar(path_of(folder / "held-out"), about)
    assert Feed(config(folder, data="a")).bits_per_byte(1.0) is not None
    with write_column(folder / "held-out", "labels") as labels:
        file = IndexedFile(folder / "held-out")
        for number in range(len(file)):
            labels.add(file[number])
        labels.commit()
    write_sidecar(path_of(folder / "held-out"), replace(about, columns=("labels",)))
    assert Feed(config(folder, data="a")).bits_per_byte(1.0) is None


@pytest.mark.parametrize("name", ["a", "held-out"])
def test_a_sidecar_of_other_tokens_is_refused(folder: Path, name: str) -> None:
    about = Sidecar("sha256:1", VOCAB, 0, len(IndexedFile(folder / name)), 7, 500)
    write_sidecar(path_of(folder / name), about)
    with pytest.raises(DataError, match=rf"{name}\.json speaks of \d+ documents and 7 tokens, and {name}\.idx holds"):
        Feed(config(folder, data="a"))


def test_changed_contents_are_refused_though_they_look_alike(folder: Path) -> None:
    """Of the same number of documents with the same lengths, without a sidecar."""
    began = after(Feed(config(folder, data=sources(folder, a=1, b=1))), 8)
    path = folder / "a.bin"
    content = bytearray(path.read_bytes())
    content[-2:] = b"\x01\x00" if content[-2:] != b"\x01\x00" else b"\x02\x00"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="the checksum of its tokens"):
        Feed(config(folder, data=sources(folder, a=1, b=1)), began)


def test_changed_labels_are_refused(folder: Path) -> None:
    from neoxkit.data.tokens.columns import write_column

    file = IndexedFile(folder / "a")
    data = [{"tokens": str(folder / "a"), "labels": str(folder / "a-labels")}]
    for first in (3, 5):
        with write_column(folder / "a", "labels", force=True) as writer:
            for number in range(len(file)):
                writer.add(np.where(np.arange(len(file[number])) < first, -100, file[number]))
            writer.commit()
        if first == 3:
            began = after(Feed(config(folder, data=data)), 8)
            Feed(config(folder, data=data), began)
    with pytest.raises(ConfigError, match="the checksum of its labels"):
        Feed(config(folder, data=data), began)


def test_moved_data_is_the_same_data(folder: Path) -> None:
    whole = Feed(config(folder, data=sources(folder, a=1, b=1)))
    rows, began = drawn(whole, 8, 24), after(whole, 8)
    moved = folder / "moved"
    moved.mkdir()
    for name in ("a.bin", "a.idx", "b.bin", "b.idx"):
        (folder / name).rename(moved / name)
    assert drawn(Feed(config(folder, data=sources(moved, a=1, b=1)), began), 8, 24) == rows


def test_a_checkpoint_of_before_there_were_several_sources_is_gone_on_from(folder: Path) -> None:
    now = Feed(config(folder, data="a"))
    known = now.identity.sources[0]
    old = {
        **{name: getattr(known, name) for name in ("tokens", "documents", "sizes", "epochs", "tokenizer")},
        **{"sources": known.text, "sequence": 12, "seed": 1234},
    }
    identity = Identity.read(old)
    assert identity.phases == (Phase(0, (1.0,)),)
    feed = Feed(config(folder, data="a"), Began(identity, 8, "run/step-2"))
    assert drawn(feed, 8, 24) == drawn(now, 8, 24)
    with pytest.raises(ConfigError, match="the number or order of its tokens"):
        Feed(config(folder, data="b"), Began(identity, 8, "run/step-2"))


def test_how_samples_are_dealt_does_not_change_them(folder: Path) -> None:
    """A step reads the same rows for any micro-batch, accumulation and data-parallel size."""
    data = sources(folder, a=2, b=1)
    wanted = None
    for micro, dp in ((8, 1), (2, 1), (1, 2), (2, 4)):
        batch, mesh = {"size": 8, "micro": micro}, {"dp": dp}
        made = config(folder, data=data, batch=batch, mesh=mesh)
        rows = [
            row
            for rank in range(dp)
            for made_batch in Feed(made, dp_rank=rank).batches(16, 2)
            for row in made_batch.ids.tolist()
        ]
        wanted = wanted or sorted(rows)
        assert sorted(rows) == wanted


def test_held_out_sources(folder: Path) -> None:
    """All of each, or as many as asked for by weight; in micro-batches, of which the last is filled up."""
    made = config(folder, data="a")
    data = made.data.model_copy(
        update={"valid": runs.config(folder=folder, data={"train": sources(folder, b=1, c=3)}).data.train}
    )
    feed = Feed(made.model_copy(update={"data": data}))
    assert feed.held_out is not None
    ones = [Feed(config(folder, data=name)).identity.tokens for name in "bc"]
    assert feed.held_out.count == sum((tokens - 1) // 12 for tokens in ones)
    assert {of(feed.held_out.row(k).ids.tolist()) for k in range(feed.held_out.count)} == {"b", "c"}
    judged = made.evaluation.model_copy(update={"batches": 5})
    feed = Feed(made.model_copy(update={"data": data, "evaluation": judged}))
    assert feed.held_out is not None
    assert feed.held_out.count == 20
    assert Counter(of(feed.held_out.row(k).ids.tolist()) for k in range(20)) == {"b": 5, "c": 15}


def test_weights_by_documents(folder: Path) -> None:
    feed = Feed(config(folder, "data.weigh_by_documents=1.0", data=[{"tokens": str(folder / name)} for name in "abc"]))
    shares = np.array([40, 25, 30]) / 95
    assert feed.identity.phases[0].weights == pytest.approx(shares * (1 - shares) / (shares * (1 - shares)).sum())
    with IndexedWriter(folder / "void", vocab=VOCAB) as writer:
        writer.commit()
    with pytest.raises(DataError, match=r"data\.weigh_by_documents: one source has all documents"):
        Feed(
            config(
                folder, "data.weigh_by_documents=1.0", data=[{"tokens": str(folder / name)} for name in ("a", "void")]
            )
        )


def test_documents_turned_to_fill_gaps_need_a_tokenizer_that_knows_how(folder: Path) -> None:
    made = config(folder, "data.fill_in_middle.rate=1.0", "data.packing=whole", data="a")
    with pytest.raises(ConfigError, match=r"data.fill_in_middle names tokens, .* give data.tokenizer"):
        Feed(made)
    words = {"<fim_prefix>": 58, "<fim_middle>": 59, "<fim_suffix>": 60}
    for number, given in enumerate((words, {"a": 0})):
        path = folder / f"tokenizer-{number}.json"
        tokenizers.Tokenizer(models.WordLevel(given)).save(str(path))
        if number:
            with pytest.raises(DataError, match='no token "<fim_prefix>"'):
                Feed(made, tokenizer=path)
        else:
            assert any(58 in row for row in drawn(Feed(made, tokenizer=path), 0, 8))


def test_what_ends_a_document_must_be_known(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.mask_after_end: which token ends a document of .*a is not known"):
        Feed(config(folder, "data.mask_after_end=true", data="a"))
    feed = Feed(config(folder, "data.mask_after_end=true", "model.tokens.eos=[3]", data="a"))
    for number in range(20):
        row = feed.row(number)
        assert row.counts is not None
        assert row.counts.tolist() == [token != 3 for token in row.ids[:-1].tolist()]

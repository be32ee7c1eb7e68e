"""Sampling: what is kept, that what is drawn follows it, and that no row depends on another."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from neoxkit.serve import sampler
from neoxkit.serve.request import Sampling
from neoxkit.serve.sampler import Row, choose, noise, score

LOGITS = torch.tensor([2.0, 1.0, 1.0, 0.0, -1.0])
"""Their chances are 0.52, 0.19, 0.19, 0.07, 0.03."""

KINDS = {
    "greedy": Sampling(),
    "plain": Sampling(temperature=1.0),
    "cold": Sampling(temperature=0.6),
    "top_k": Sampling(temperature=1.0, top_k=3),
    "top_p": Sampling(temperature=1.0, top_p=0.8),
    "min_p": Sampling(temperature=1.5, min_p=0.1),
    "all": Sampling(temperature=0.9, top_k=40, top_p=0.9, min_p=0.01, seed=3),
    "penalties": Sampling(temperature=1.0, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2),
    "greedy penalties": Sampling(repetition_penalty=1.3, frequency_penalty=0.5),
    "bias": Sampling(temperature=1.0, bias={1: 5.0, 2: -100.0}),
    "greedy bias": Sampling(bias={3: 100.0}),
    "hot": Sampling(temperature=5.0, top_p=0.99),
}


def drawn(logits: Tensor, sampling: Sampling, count: int) -> list[int]:
    """The tokens that as many seeds draw from the same logits [V]."""
    rows = [Row(replace(sampling, seed=seed), 0) for seed in range(count)]
    found: list[int] = []
    for begin in range(0, count, 500):
        some = rows[begin : begin + 500]
        found += [token for token, _ in choose(logits.expand(len(some), -1), some)]
    return found


def chances(logits: Tensor, sampling: Sampling) -> Tensor:
    """What tokens should be drawn with, [V] fp64, as `choose` describes it, one token at a time."""
    scores = logits.double() / sampling.temperature
    order = sorted(range(len(scores)), key=lambda token: (-float(scores[token]), token))
    kept = [token for token in order if scores[token] >= scores[order[0]] + math.log(sampling.min_p or 1e-300)]
    if sampling.top_k:
        kept = [token for token in kept if scores[token] >= scores[order[min(sampling.top_k, len(order)) - 1]]]
    weights = scores.softmax(0)
    whole, before, last = sum(weights[kept]), 0.0, []
    for token in kept:
        if sampling.top_p == 1 or before <= sampling.top_p * whole:
            last.append(token)
        before += weights[token]
    found = torch.zeros_like(scores)
    found[last] = weights[last]
    return found / found.sum()


def check_draws(logits: Tensor, row: Row, wanted: Tensor) -> None:
    """Assert that tokens are drawn from logits [V] with the wanted chances, [V] fp64: those that win their races.

    Where none is left out a block of 256 is drawn first, then one of its tokens.
    """
    sampling, draws = row.sampling, [replace(row, index=index) for index in range(24)]
    found = [token for token, _ in choose(logits.expand(len(draws), -1), draws)]
    keys = [(sampling.seed, index) for index in range(len(draws))]
    ids = np.arange(len(logits))[None]
    with np.errstate(divide="ignore"):
        times = noise(keys, ids) / wanted.numpy()
        if not (sampling.top_k or sampling.top_p < 1 or sampling.min_p):
            mass = np.add.reduceat(wanted.numpy(), np.arange(0, len(logits), 256))
            blocks = (noise(keys, np.arange(len(mass))[None] + sampler._FIRST_BLOCK) / mass).argmin(1)
            times[ids // 256 != blocks[:, None]] = math.inf
    order = np.sort(times, axis=1)
    clear = [n for n in range(len(draws)) if len(logits) == 1 or order[n, 0] < order[n, 1] * (1 - 1e-5)]
    assert len(clear) > len(draws) // 2
    assert [found[n] for n in clear] == times.argmin(1)[clear].tolist()


def is_likely(found: np.ndarray, wanted: np.ndarray) -> bool:
    """Chi-square of counts; what is expected to be exceeded once in 10000 by Wilson and Hilferty's approximation."""
    freedom = len(wanted) - 1
    most = freedom * (1 - 2 / (9 * freedom) + 3.719 * math.sqrt(2 / (9 * freedom))) ** 3
    return bool(((found - wanted) ** 2 / wanted).sum() < most)


def test_temperature_zero_is_the_likeliest() -> None:
    assert choose(torch.stack([LOGITS, LOGITS.flip(0)]), [Row(Sampling(), 0)] * 2) == [(0, None), (4, None)]
    assert drawn(LOGITS, Sampling(bias={3: 2.5}), 2) == [3, 3]
    assert choose(torch.zeros(2, 1000).bfloat16(), [Row(Sampling(), 0)] * 2) == [(0, None), (0, None)]
    assert choose(LOGITS[None][:0], []) == []


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(temperature=1.0, top_k=1), 1),
        (Sampling(temperature=1.0, top_k=2), 3),
        (Sampling(temperature=1.0, top_k=3), 3),
        (Sampling(temperature=1.0, top_k=1000), 5),
        (Sampling(temperature=1.0, top_p=1e-9), 1),
        (Sampling(temperature=1.0, top_p=0.5), 1),
        (Sampling(temperature=1.0, top_p=0.6), 2),
        (Sampling(temperature=1.0, top_p=0.75), 3),
        (Sampling(temperature=1.0, top_p=0.98), 5),
        (Sampling(temperature=1.0, min_p=1.0), 1),
        (Sampling(temperature=1.0, min_p=0.36), 3),
        (Sampling(temperature=2.0, min_p=0.36), 4),
        (Sampling(temperature=1.0, min_p=0.0), 5),
        (Sampling(temperature=1e-300), 1),
        (Sampling(temperature=1e300), 5),
        (Sampling(temperature=1.0, top_k=2, top_p=0.6), 2),
    ],
    ids=str,
)
def test_what_is_kept(sampling: Sampling, kept: int) -> None:
    """top_k keeps ties; a token stays while those before it hold at most top_p."""
    assert len(set(drawn(LOGITS, sampling, 1000))) == kept


@pytest.mark.parametrize("kind", ["plain", "cold", "top_k", "top_p", "min_p", "all", "hot"])
@pytest.mark.parametrize("vocab", [5, 256, 3000])
def test_chances_are_as_described(kind: str, vocab: int) -> None:
    logits = (torch.randn(vocab, generator=torch.Generator().manual_seed(vocab)) * 2).bfloat16()  # many are equal
    check_draws(logits, Row(KINDS[kind], 0), chances(logits, KINDS[kind]))


@settings(max_examples=200)
@given(
    numbers=st.lists(st.integers(-8, 8), min_size=1, max_size=700),
    temperature=st.sampled_from([0.3, 1.0, 4.0]),
    top_k=st.sampled_from([0, 0, 1, 2, 5, 50, 127, 128, 129, 300, 699, 700, 5000]),
    top_p=st.sampled_from([0.1003, 0.5003, 0.937, 1.0]),  # no share of so many equals is one of these
    min_p=st.sampled_from([0.0, 0.0, 0.02, 0.3]),
)
@example([0] * 600, 1.0, 0, 0.937, 0.0)  # more equals than are looked at first
@example([0] * 600, 1.0, 3, 0.5, 0.0)
@example([8] * 128 + [7] * 500, 4.0, 128, 1.0, 0.0)
@example([8] * 128 + [7] * 500, 4.0, 129, 1.0, 0.0)
@example([8] * 128 + [7] * 500, 4.0, 0, 0.5, 0.3)
@example([-number for number in range(700)], 50.0, 300, 0.3, 0.0)
@example([-number for number in range(700)], 50.0, 0, 0.3, 0.2)
def test_tokens_that_are_equally_likely(
    numbers: list[int], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = torch.tensor(numbers) / 2
    check_draws(logits, Row(sampling, 0), chances(logits, sampling))


@pytest.mark.parametrize("candidates", [1, 20, 300, 10000])
def test_how_many_are_looked_at_first_makes_no_difference(candidates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, rows = a_batch(2000, torch.bfloat16)
    found = [choose(logits, [replace(row, index=n) for row in rows]) for n in range(5)]
    monkeypatch.setattr(sampler, "_CANDIDATES", candidates)
    assert [choose(logits, [replace(row, index=n) for row in rows]) for n in range(5)] == found


@pytest.mark.parametrize("kind", ["plain", "cold", "top_k", "top_p", "min_p"])
def test_draws_follow_the_chances(kind: str) -> None:
    """Chi-square of 20000 draws."""
    logits = torch.tensor([1.5, 0.3, -0.4, 2.0, 1.9, 0.0, -1.0, 0.8])
    wanted = chances(logits, KINDS[kind]).numpy() * 20000
    found = np.bincount(drawn(logits, KINDS[kind], 20000), minlength=8)
    there = wanted > 0
    assert not found[~there].any()
    assert there.sum() > 2
    assert is_likely(found[there], wanted[there])


def test_draws_over_a_large_vocabulary_follow_the_chances() -> None:
    """By groups of ids, so that each is expected often enough."""
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(2))
    wanted = logits.double().softmax(0).view(50, 20).sum(1).numpy() * 20000
    found = np.bincount(np.array(drawn(logits, KINDS["plain"], 20000)) // 20, minlength=50)
    assert is_likely(found, wanted)


@pytest.mark.parametrize(
    ("seed", "index"), [(1, 0), (0, 1), (1, 1), (0, 0), (2**32, 0), (0x9E3779B97F4A7C15, -1)], ids=str
)
def test_numbers_of_neighbours_have_nothing_in_common(seed: int, index: int) -> None:
    """Chi-square of 16 x 16 cells, for uniformity and independence in one; and the correlation.

    The last seeds are a step of SplitMix64 apart.
    """
    ids = np.array([[7]])
    first, second = (
        np.exp(-noise([(s + more, n + later) for s in range(200) for n in range(200)], ids + other)).ravel()
        for more, later, other in ((0, 0, 0), (seed, index, int(seed == index == 0)))
    )
    cells, _, _ = np.histogram2d(first, second, bins=16, range=[[0, 1], [0, 1]])
    assert is_likely(cells.ravel(), np.full(256, len(first) / 256))
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / math.sqrt(len(first))


def test_numbers_are_the_same_everywhere() -> None:
    """SplitMix64's own mixing, in Python's integers, of three steps from a mixed seed."""
    for seed, index, token in ((0, 0, 0), (7, 5, 50000), (2**64 - 1, 10**9, 2**31)):
        state = sampler._mixed(sampler._mixed(seed) + (index + 1) * sampler._STEP) + (token + 1) * sampler._STEP
        number = ((sampler._mixed(state) >> 11) + 0.5) * 2.0**-53
        assert noise([(seed, index)], np.array([[token]]))[0, 0] == pytest.approx(-math.log(number), rel=1e-12)
    assert sampler._mixed(sampler._STEP) == 0xE220A8397B1DCDAF, "as its authors publish it"
    ids = np.arange(3)[None]
    assert (noise([(2**64 + 7, 5)], ids) == noise([(7, 5)], ids)).all()


def test_tokens_that_are_impossible_are_not_drawn() -> None:
    """Blocks weigh 1 to e ** -24, and tokens at their borders nothing."""
    logits = torch.randn(8192, generator=torch.Generator().manual_seed(1)) - torch.arange(8192) // 256 % 5 * 6
    banned = frozenset(token for token in range(8192) if (token + 3) % 256 < 6)
    logits[list(banned)] = -math.inf
    rows = [Row(Sampling(temperature=2.0), index) for index in range(400)]
    found = {token for token, _ in choose(logits.expand(len(rows), -1), rows)}
    assert not found & banned
    assert len(found) > 100


def test_logits_that_are_rounded_otherwise_give_the_same_tokens() -> None:
    """Sums in another order differ by some 1e-5: with other texts beside, or on more ranks."""
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(50, 20000, generator=generator) * 2
    apart = logits + torch.randn(logits.shape, generator=generator) * 1e-5
    for sampling in KINDS.values():
        rows = [Row(replace(sampling, seed=n), n) for n in range(50)]
        given, other = ([token for token, _ in choose(each, rows)] for each in (logits, apart))
        assert given == other


def a_batch(vocab: int, dtype: torch.dtype) -> tuple[Tensor, list[Row]]:
    """Rows of every kind, several times, with other seeds, indexes and texts."""
    generator = torch.Generator().manual_seed(vocab)
    rows = []
    for number, sampling in enumerate([*KINDS.values()] * 3):
        prompt, answer = (torch.randint(vocab, (n,), generator=generator).tolist() for n in (9, number))
        banned = frozenset(range(number % 5))
        rows.append(Row(replace(sampling, seed=number), number, prompt, answer, banned, [None, 0, 3][number % 3]))
    return (torch.randn(len(rows), vocab, generator=generator) * 2).to(dtype), rows


@pytest.mark.parametrize("vocab", [97, 1024, 5003])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_row_alone_is_as_among_others(vocab: int, dtype: torch.dtype) -> None:
    logits, rows = a_batch(vocab, dtype)
    together = choose(logits, rows)
    alone = [choose(logits[n : n + 1], [row])[0] for n, row in enumerate(rows)]
    assert [token for token, _ in alone] == [token for token, _ in together]
    for (token, ours), (_, theirs), row in zip(alone, together, rows, strict=True):
        assert (ours is None) == (theirs is None) == (row.logprobs is None)
        if ours is not None and theirs is not None:
            assert ours.token == token
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-6)
            assert len(ours.alternatives) == len(theirs.alternatives) == row.logprobs
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    mixed = choose(logits[order], [rows[n] for n in order])
    assert [mixed[order.index(n)][0] for n in range(len(rows))] == [token for token, _ in together]


def test_weights_alone_are_as_among_others() -> None:
    """A last bit that depends on the batch would show where two tokens meet."""
    logits = torch.randn(64, 20000, generator=torch.Generator().manual_seed(5))
    rows = [Row(Sampling(temperature=0.9, seed=n), n) for n in range(64)]
    first = sampler._weigh(sampler._lowered(sampler._padded(logits)), rows)
    alone = [sampler._weigh(sampler._lowered(sampler._padded(logits[n : n + 1])), rows[n : n + 1]) for n in range(64)]
    assert torch.equal(first, torch.cat(alone))
    assert torch.equal(sampler._sums(first), torch.cat([sampler._sums(each) for each in alone]))


def test_logits_are_left_as_they_are() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        logits, rows = a_batch(512, dtype)
        before = logits.clone()
        choose(logits.requires_grad_(), rows)
        score(logits, [0] * len(rows), 3)
        assert torch.equal(logits, before)


def test_equals_transformers_processors() -> None:
    """Each alone and all in the order of transformers, where ours is another: min_p stands before the others."""
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    generator = torch.Generator().manual_seed(0)
    for number in range(60):
        logits = torch.randn(400, generator=generator) * 3
        text = torch.randint(400, (30,), generator=generator)
        kinds: list[tuple[object, dict[str, float]]] = [
            (RepetitionPenaltyLogitsProcessor(1.7), {"repetition_penalty": 1.7}),
            (TemperatureLogitsWarper(0.7), {"temperature": 0.7}),
            (MinPLogitsWarper(0.05), {"min_p": 0.05}),
            (TopKLogitsWarper(20), {"top_k": 20}),
            (TopPLogitsWarper(0.8), {"top_p": 0.8}),
        ]
        if number % 6 < 5:
            kinds = [kinds[number % 6]]
        theirs = LogitsProcessorList([each for each, _ in kinds])(text[None], logits[None])[0].double().softmax(0)
        ours = Sampling(**{"temperature": 1.0, **{key: value for _, some in kinds for key, value in some.items()}})
        check_draws(logits, Row(ours, 0, text[:20].tolist(), text[20:].tolist()), theirs)


def test_presence_and_frequency_count_the_answer() -> None:
    """As OpenAI defines them: c * frequency + (c > 0) * presence."""
    rows = [
        Row(Sampling(presence_penalty=0.5, frequency_penalty=0.3), 0, (0, 0, 0), (0, 1, 0)),
        Row(Sampling(presence_penalty=0.5), 0, (0, 0, 0), (0, 1, 0)),
        Row(Sampling(frequency_penalty=0.3), 0, (0, 0, 0), (0, 1, 0)),
        Row(Sampling(), 0, (0, 0, 0), (0, 1, 0)),
    ]
    scores = sampler._padded(torch.zeros(4, 3))
    sampler._adjust(scores, 3, rows)
    wanted = torch.tensor([[-1.1, -0.8, 0], [-0.5, -0.5, 0], [-0.6, -0.3, 0], [0, 0, 0]])
    torch.testing.assert_close(scores[:, :3], wanted)


def test_banned_ids_are_not_chosen() -> None:
    logits = torch.zeros(1, 6)
    for banned in (range(5), range(1, 6), (0, 2, 3, 4, 5)):
        for temperature in (0.0, 1.0):
            bias = {banned[0]: 100.0}
            none = frozenset({*banned, 77, 10**9, -3, *range(-256, -249)})  # what is no id bans nothing
            rows = [Row(Sampling(temperature, seed=n, bias=bias), n, banned=none) for n in range(50)]
            found = {token for token, _ in choose(logits.expand(50, -1), rows)}
            assert found == set(range(6)) - set(banned)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(repetition_penalty=1e300),
        Sampling(repetition_penalty=1e-300),
        Sampling(presence_penalty=1e308, frequency_penalty=-1e308),
        Sampling(frequency_penalty=-1e300),
        Sampling(bias={1: 1e300, 2: -1e300, 9: 1.0}),
        Sampling(bias={1: -math.inf}),
    ],
    ids=str,
)
def test_extreme_settings_give_tokens(sampling: Sampling) -> None:
    for temperature in (0.0, 1e-40, 1.0, 1e40):
        row = Row(replace(sampling, temperature=temperature), 0, (0, 1), (1, 2))
        weights = sampler._padded(LOGITS[None])
        sampler._adjust(weights, 5, [row])
        assert not weights.isnan().any()
        assert 0 <= choose(LOGITS[None], [row])[0][0] < 5


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers_harm_no_other_row(wrong: float) -> None:
    logits, rows = a_batch(300, torch.float32)
    good = choose(logits, rows)
    logits[::2] = wrong
    found = choose(logits, rows)
    assert found[1::2] == good[1::2]
    assert all(0 <= token < 300 for token, _ in found)


def test_scores_are_those_of_the_model_itself() -> None:
    logits, _ = a_batch(300, torch.bfloat16)
    wanted = logits.float().log_softmax(-1)
    sampling = Sampling(
        temperature=0.5, top_k=2, repetition_penalty=2.0, presence_penalty=1.0, bias={7: 50.0}, min_p=0.1
    )
    rows = [Row(sampling, n, (1, 2), (3,), frozenset({4}), n) for n in range(len(logits))]
    for number, (token, scored) in enumerate(choose(logits, rows)):
        assert scored is not None
        assert scored.token == token == 7
        assert scored.logprob == pytest.approx(float(wanted[number, 7]), abs=1e-5)
        best = wanted[number].topk(number).values.tolist()
        assert [each for _, each in scored.alternatives] == pytest.approx(best, abs=1e-5)
        assert all(each == pytest.approx(float(wanted[number, token]), abs=1e-5) for token, each in scored.alternatives)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("step", [1, 3000, 2**22])
def test_a_score_equals_its_entry_among_the_likeliest(
    dtype: torch.dtype, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit: lm-eval asks so whether a token was the likeliest."""
    monkeypatch.setattr(sampler, "_SLICE", step)
    logits, _ = a_batch(1000, dtype)
    best = logits.float().numpy().argmax(-1).tolist()
    for tokens, there in ((best, True), ([5] * len(best), False)):
        found = score(logits, tokens, 5)
        assert [each.token for each in found] == tokens
        for each in found:
            assert dict(each.alternatives).get(each.token, each.logprob) == each.logprob
            assert (each.alternatives[0] == (each.token, each.logprob)) == there
            numbers = [(-number, token) for token, number in each.alternatives]
            assert numbers == sorted(numbers)
            assert len(dict(each.alternatives)) == 5
    assert all(each.alternatives == () for each in score(logits, best, 0))


def test_all_of_a_small_vocabulary_can_be_asked_for() -> None:
    (found,) = score(LOGITS[None], [3], 1000)
    assert [token for token, _ in found.alternatives] == [0, 1, 2, 3, 4]
    assert sum(math.exp(each) for _, each in found.alternatives) == pytest.approx(1)
    assert score(LOGITS[None][:0], [], 3) == []


@settings(max_examples=100)
@given(st.lists(st.sampled_from([-math.inf, -3.0, -1.5, -0.0, 0.0]), min_size=1, max_size=900), st.integers(1, 300))
def test_the_best_are_those_of_a_sort(numbers: Sequence[float], count: int) -> None:
    """Of equals, the lower ids first."""
    count = min(count, len(numbers))
    scores = sampler._padded(torch.tensor([numbers, numbers[::-1]]))
    values, ids = sampler._best(scores, count)
    for row, kept, places in zip(scores.tolist(), values.tolist(), ids.tolist(), strict=True):
        wanted = sorted(range(len(row)), key=lambda place: (-row[place], place))[:count]
        assert places == wanted
        assert kept == [row[place] for place in wanted]


def test_seeds_decide() -> None:
    logits = torch.zeros(1, 50000)
    row = Row(Sampling(temperature=1.0, seed=11), 4)
    (token, _), (again, _) = (choose(logits, [row])[0] for _ in range(2))
    assert token == again
    others = Counter(
        choose(logits, [Row(Sampling(temperature=1.0, seed=seed), index)])[0][0]
        for seed, index in [(12, 4), (11, 5), (12, 5), (11, 3)]
    )
    assert len(others) == 4
    assert token not in others

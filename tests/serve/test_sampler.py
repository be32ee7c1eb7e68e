"""Sampling: what is kept, and that what is drawn follows it."""

import pytest
import torch

from neoxkit.serve.sampler import Sampling, distribution, sample

LOGITS = torch.tensor([2.0, 1.0, 1.0, 0.0, -1.0])


def test_plain_is_softmax() -> None:
    torch.testing.assert_close(distribution(LOGITS, Sampling(temperature=2.0)), (LOGITS / 2).softmax(0))


def test_temperature_zero_is_the_likeliest() -> None:
    assert distribution(LOGITS, Sampling()).tolist() == [1, 0, 0, 0, 0]
    assert sample(LOGITS, Sampling(), torch.Generator()) == 0


def test_top_k_keeps_ties() -> None:
    kept = distribution(LOGITS, Sampling(temperature=1.0, top_k=2))
    assert (kept > 0).tolist() == [True, True, True, False, False]


@pytest.mark.parametrize(("top_p", "count"), [(0.01, 1), (0.5, 1), (0.6, 2), (0.75, 3), (0.98, 5)])
def test_top_p_drops_the_outweighed(top_p: float, count: int) -> None:
    """The chances are 0.52, 0.19, 0.19, 0.07, 0.03: a token stays while those before it hold at most p."""
    assert int((distribution(LOGITS, Sampling(temperature=1.0, top_p=top_p)) > 0).sum()) == count


def test_equals_transformers_warpers() -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        logits = torch.randn(50, generator=generator) * 3
        theirs = TemperatureLogitsWarper(0.7)(None, logits[None])
        theirs = TopPLogitsWarper(0.8)(None, TopKLogitsWarper(20)(None, theirs))
        ours = distribution(logits, Sampling(temperature=0.7, top_k=20, top_p=0.8))
        # transformers keeps a token while those before it hold less than p, we while at most p: no tie here.
        torch.testing.assert_close(ours, theirs[0].softmax(0), atol=1e-6, rtol=1e-5)


def test_draws_follow_the_distribution() -> None:
    """Chi-square of 5000 draws over 5 tokens: 18.5 is exceeded once in 1000 at 4 degrees of freedom."""
    sampling = Sampling(temperature=1.0)
    generator = torch.Generator().manual_seed(4)
    counts = torch.zeros(5)
    for _ in range(5000):
        counts[sample(LOGITS, sampling, generator)] += 1
    expected = distribution(LOGITS, sampling) * 5000
    assert ((counts - expected) ** 2 / expected).sum() < 18.5

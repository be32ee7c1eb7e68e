"""From logits to tokens: pure functions of logits and settings, for all texts of a step at once.

What nobody asks for is not computed: where every row takes its likeliest token, a step is one argmax. What a row
gets depends on its own logits, seed and index alone, never on the rows beside it.

Shapes: R rows, V vocabulary, W the vocabulary rounded up to whole blocks (what is too much has the score -inf).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from neoxkit.serve.request import Sampling, Scored

_BLOCK = 256
"""W is a multiple of it. Whole blocks are ruled out by their best score, and passed over by their sum."""

_CANDIDATES = 128
"""As many of the likeliest tokens are looked at first where min_p, top_k or top_p leave some."""

_SLICE = 2**22
"""As many log-probabilities are held at once when they are only to be reported: 16 MiB."""

_BOUND = 1e30
"""Penalties, biases and temperatures beyond it, or its inverse, count as this: fp32 could not hold what they make."""


@dataclass(frozen=True, slots=True)
class Row:
    """A text whose next token is due: the `index`-th of its answer, counted from 0.

    `prompt` and `answer` are its ids so far; only penalties look at them. No id of `banned` is chosen. With `logprobs`
    the token comes with its log-probability and that many likeliest alternatives.
    """

    sampling: Sampling
    index: int
    prompt: Sequence[int] = ()
    answer: Sequence[int] = ()
    banned: frozenset[int] = frozenset()
    logprobs: int | None = None


def choose(logits: Tensor, rows: Sequence[Row]) -> list[tuple[int, Scored | None]]:
    """The next token of each row, from logits [R, V] of any precision, and its score where it is wanted.

    In the order of vLLM: bias and banned ids, repetition penalty, presence and frequency penalty, temperature, min_p,
    top_k, top_p. min_p keeps tokens at least that many times as likely as the best. top_k keeps tokens at least as
    likely as the k-th (ties too). top_p then drops tokens that are outweighed: those whose likelier companions already
    hold more than p; of equally likely ones the lower id goes first. The best is always kept.
    """
    logits = logits.detach()
    special = [number for number, row in enumerate(rows) if row.sampling.temperature > 0 or _is_adjusted(row)]
    if not special:
        tokens = _likeliest(logits)
    else:
        tokens = [0] * len(rows)
        plain = sorted(set(range(len(rows))).difference(special))
        for number, token in zip(plain, _likeliest(logits[plain]), strict=True):
            tokens[number] = token
        chosen = _chosen(logits if not plain else logits[special], [rows[number] for number in special])
        for number, token in zip(special, chosen, strict=True):
            tokens[number] = token
    scores: list[Scored | None] = [None] * len(rows)
    asking = [number for number, row in enumerate(rows) if row.logprobs is not None]
    if asking:
        counts = [rows[number].logprobs or 0 for number in asking]
        found = score(logits[asking], [tokens[number] for number in asking], max(counts))
        for number, count, each in zip(asking, counts, found, strict=True):
            scores[number] = Scored(each.token, each.logprob, each.alternatives[:count])
    return list(zip(tokens, scores, strict=True))


def score(logits: Tensor, tokens: Sequence[int], top: int) -> list[Scored]:
    """The log-probability of a token in each row of logits [R, V], and of the `top` likeliest.

    Of the logits as they are, before penalties and temperature, in fp32. A token that is among the likeliest has
    the very same number there. Of equally likely ones the lower id goes first.
    """
    logits = logits.detach()
    step = max(1, _SLICE // max(logits.shape[1], 1))
    found: list[Scored] = []
    for begin in range(0, len(tokens), step):
        found += _scored(logits[begin : begin + step], tokens[begin : begin + step], top)
    return found


def uniform(seed: int, index: int) -> float:
    """A number from [0, 1), in steps of 2**-53, that is the same on every machine.

    It is the index-th of the generator SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
    generators", 2014) that starts where the seed, itself mixed, says: so seeds that differ by one have nothing in
    common.
    """
    return (_mixed(_mixed(seed) + (index + 1) * 0x9E3779B97F4A7C15) >> 11) * 2.0**-53


def _mixed(number: int) -> int:
    """SplitMix64's mixing of 64 bits."""
    number &= 0xFFFFFFFFFFFFFFFF
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return number ^ (number >> 31)


def _likeliest(scores: Tensor) -> list[int]:
    """The best id of each row of scores; of equals, the lowest."""
    if scores.device.type != "cpu":
        return list(scores.argmax(-1).tolist())
    # numpy's argmax is ten times as fast as torch's here, thirty times as in bf16.
    return list(np.argmax(scores.float().numpy(), axis=-1).tolist())


def _is_adjusted(row: Row) -> bool:
    """Whether scores are changed before any are compared."""
    sampling = row.sampling
    return bool(
        row.banned
        or sampling.bias
        or sampling.repetition_penalty != 1
        or sampling.presence_penalty
        or sampling.frequency_penalty
    )


def _chosen(logits: Tensor, rows: Sequence[Row]) -> list[int]:
    """The next token of rows of which each has its scores changed, or is drawn."""
    vocab = logits.shape[1]
    scores = _padded(logits)
    _adjust(scores, vocab, rows)
    tokens = [0] * len(rows)
    kinds = [_kind(row.sampling) for row in rows]
    for kind, take in (("likeliest", _likeliest_of), ("any", _any_of), ("some", _some_of)):
        numbers = [number for number, each in enumerate(kinds) if each == kind]
        if numbers:
            theirs = scores if len(numbers) == len(rows) else scores[numbers]
            for number, token in zip(numbers, take(theirs, [rows[number] for number in numbers]), strict=True):
                tokens[number] = min(token, vocab - 1)  # beyond it only where logits are no numbers
    return tokens


def _kind(sampling: Sampling) -> Literal["likeliest", "any", "some"]:
    """Whether the likeliest token is taken, or one drawn from all, or from some."""
    if sampling.temperature == 0:
        return "likeliest"
    return "some" if sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0 else "any"


def _padded(logits: Tensor) -> Tensor:
    """A copy of logits [R, V] in fp32 as scores [R, W]."""
    vocab = logits.shape[1]
    scores = logits.to(torch.float32, copy=True)
    return F.pad(scores, (0, -vocab % _BLOCK), value=-math.inf) if vocab % _BLOCK else scores


def _adjust(scores: Tensor, vocab: int, rows: Sequence[Row]) -> None:
    """Change scores [R, W] by bias, banned ids and penalties, in place."""
    if any(row.banned or row.sampling.bias for row in rows):
        places, added = _entries([_added(row) for row in rows], vocab, scores.device)
        scores[places] += added
    if any(row.sampling.repetition_penalty != 1 for row in rows):
        places, factors = _entries([_repeated(row) for row in rows], vocab, scores.device)
        touched = scores[places]
        scores[places] = torch.where(touched > 0, touched / factors, touched * factors)
    if any(row.sampling.presence_penalty or row.sampling.frequency_penalty for row in rows):
        places, taken = _entries([_taken(row.sampling, row.answer) for row in rows], vocab, scores.device)
        scores[places] -= taken


_Entries: TypeAlias = tuple[Collection[int], Iterable[float]]
"""Ids, and as many numbers or more."""

_NONE: _Entries = ((), ())


def _added(row: Row) -> _Entries:
    """What bias and banned ids add to scores."""
    found = {token: _bounded(number) for token, number in row.sampling.bias.items()}
    found.update(dict.fromkeys(row.banned, -math.inf))
    return found.keys(), found.values()


def _repeated(row: Row) -> _Entries:
    """What the repetition penalty divides scores above 0 by, and multiplies others with."""
    if (penalty := row.sampling.repetition_penalty) == 1:
        return _NONE
    return {*row.prompt, *row.answer}, repeat(max(_bounded(penalty), 1 / _BOUND))


def _taken(sampling: Sampling, answer: Sequence[int]) -> _Entries:
    """What presence and frequency penalty take from scores."""
    once, each = sampling.presence_penalty, sampling.frequency_penalty
    if not once and not each:
        return _NONE
    counts = Counter(answer)
    return counts.keys(), (_bounded(once + each * count) for count in counts.values())


def _entries(rows: Sequence[_Entries], vocab: int, device: torch.device) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Numbers for some ids of each row, as an index into scores [R, W] and a vector; ids that are none are left out."""
    counts = [len(ids) for ids, _ in rows]
    ids = np.concatenate([np.fromiter(each, np.int64, count) for (each, _), count in zip(rows, counts, strict=True)])
    numbers = np.concatenate(
        [np.fromiter(each, np.float32, count) for (_, each), count in zip(rows, counts, strict=True)]
    )
    at = np.repeat(np.arange(len(rows)), counts)
    known = (ids >= 0) & (ids < vocab)
    index = torch.from_numpy(np.stack([at[known], ids[known]])).to(device)
    return (index[0], index[1]), torch.from_numpy(numbers[known]).to(device)


def _bounded(number: float) -> float:
    return min(max(number, -_BOUND), _BOUND)


def _likeliest_of(scores: Tensor, rows: Sequence[Row]) -> list[int]:
    """The best token of each row of scores [R, W]."""
    return _likeliest(scores)


def _any_of(scores: Tensor, rows: Sequence[Row]) -> list[int]:
    """A token of each row of scores [R, W], drawn from all. The scores are used up.

    In order of their ids tokens take up as much of a range as they weigh, and a number from [0, 1) says where in it:
    first in which block, then at which token. None of weight 0 is found: it takes up nothing.
    """
    weights = _weigh(_lowered(scores), rows)
    sums = _sums(weights)
    ends = sums.cumsum(1)
    sought = _column([uniform(row.sampling.seed, row.index) for row in rows], ends) * ends[:, -1:]
    block = torch.searchsorted(ends, sought, right=True).clamp(max=sums.shape[1] - 1)
    mass = sums.gather(1, block)
    # How far into the block. Its end is counted anew, for its fp32 sum is not quite its fp64 one.
    inside = ((sought - ends.gather(1, block) + mass) / mass).clamp(min=0)
    first = block * _BLOCK
    ends = weights.gather(1, first + torch.arange(_BLOCK, device=weights.device)).cumsum(1, dtype=torch.float64)
    place = torch.searchsorted(ends, inside * ends[:, -1:], right=True)
    return list((first + place)[:, 0].tolist())


def _some_of(scores: Tensor, rows: Sequence[Row]) -> list[int]:
    """A token of each row of scores [R, W], drawn from those that min_p, top_k and top_p leave. The scores are used up.

    These are the likeliest, so first a few candidates are looked at; where more may be left, all tokens are. The
    likeliest first, they take up as much of a range as they weigh, and a number from [0, 1) says where in it.
    """
    samplings = [row.sampling for row in rows]
    numbers = [uniform(row.sampling.seed, row.index) for row in rows]
    count = min(_CANDIDATES, scores.shape[1])
    values, ids = _best(_lowered(scores), count)
    weights = _weigh(values, rows)
    stays = weights >= _column([each.min_p for each in samplings], weights)
    if any(each.top_k for each in samplings):
        ranks = _column([each.top_k if each.top_k <= count else 0 for each in samplings], weights).long()
        stays &= (weights >= weights.gather(1, (ranks - 1).clamp(min=0))) | (ranks == 0)
    mass = weights.double() * stays
    ends = mass.cumsum(1)
    # More than the candidates may be left where all of them are.
    more = [False] * len(rows)
    if count < scores.shape[1]:
        more = (stays[:, -1] & (weights[:, -1] > 0)).tolist()
    if any(each.top_p < 1 for each in samplings):
        whole = ends[:, -1:].clone()
        asking = [n for n, each in enumerate(samplings) if more[n] and not each.top_k and not each.min_p]
        if asking:
            whole[asking] = _sums(_weigh(scores[asking], [rows[n] for n in asking])).cumsum(1)[:, -1:]
        shares = _column([each.top_p if each.top_p < 1 else math.inf for each in samplings], ends)
        stays &= ends - mass <= shares * whole
        ends = (mass * stays).cumsum(1)
        last = stays[:, -1].tolist()
        for n in asking:
            more[n] = last[n]
    place = torch.searchsorted(ends, _column(numbers, ends) * ends[:, -1:], right=True).clamp(max=count - 1)
    tokens: list[int] = ids.gather(1, place)[:, 0].tolist()
    for n in (n for n, each in enumerate(more) if each):
        (row,) = _weigh(scores[n : n + 1], rows[n : n + 1]).cpu().numpy()
        tokens[n] = _one_of(row, samplings[n], numbers[n])
    return tokens


def _one_of(weights: np.ndarray, sampling: Sampling, number: float) -> int:
    """A token of one row of weights [W], with as many candidates as there are."""
    share, count = sampling.top_p, sampling.top_k
    least = float(np.float32(sampling.min_p))
    if 0 < count < len(weights):
        least = max(least, float(np.partition(weights, -count)[-count]))
    left = weights if least == 0 else weights[weights >= least]
    whole = float(left.sum(dtype=np.float64))
    if share < 1:
        # Tokens that weigh less have less than 1 - share of the whole together, so they are outweighed.
        least = max(least, (1 - share) * whole / len(left))
    ids = np.flatnonzero(weights >= least)
    # As in `_keys`, but that weights are not below 0.
    keys = np.sort((weights[ids].view(np.int32).astype(np.int64) << 32) - ids)[::-1]
    ids = -keys & 0xFFFFFFFF
    ends = np.cumsum(weights[ids], dtype=np.float64)
    if share < 1:
        ends = ends[ends - weights[ids] <= share * whole]
    return int(ids[np.searchsorted(ends, number * ends[-1], side="right")])


def _column(numbers: Sequence[float], like: Tensor) -> Tensor:
    """Numbers for each row, [R, 1]."""
    return torch.tensor(numbers, dtype=like.dtype, device=like.device).unsqueeze(1)


def _lowered(scores: Tensor) -> Tensor:
    """Scores [R, W] less the greatest of each row, in place."""
    return scores.sub_(scores.amax(1, keepdim=True))


def _weigh(scores: Tensor, rows: Sequence[Row]) -> Tensor:
    """The chances of tokens but for a factor, from lowered scores of any of them, in place; the greatest is 1."""
    temperatures = [max(_bounded(row.sampling.temperature), 1 / _BOUND) for row in rows]
    if any(each != 1 for each in temperatures):
        scores.div_(_column(temperatures, scores))
    return scores.exp_()


def _sums(weights: Tensor) -> Tensor:
    """The sum of each block of weights [R, W], in fp64: [R, W / _BLOCK]."""
    return weights.unflatten(1, (-1, _BLOCK)).sum(-1).double()


def _best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` greatest of each row of scores [R, W] up to 0, and their ids, [R, count] each; of equals the lower
    id first.

    They lie in the `count` blocks with the greatest best scores, so two small selections do; blocks are as small as
    makes the two alike. torch's topk alone takes several times as long for many rows, and any of the equals.
    """
    width, device = scores.shape[1], scores.device
    size = min(max(2 ** round(math.log2(width / count) / 2), 32), _BLOCK)
    if count >= width // size:
        order = _keys(scores, torch.arange(width, device=device)).topk(count, largest=False).indices
        return scores.gather(1, order), order
    blocks = _keys(scores.unflatten(1, (-1, size)).amax(-1), torch.arange(width // size, device=device))
    first = blocks.topk(count, largest=False).indices * size
    ids = (first.unsqueeze(2) + torch.arange(size, device=device)).flatten(1)
    candidates = scores.gather(1, ids)
    order = _keys(candidates, ids).topk(count, largest=False).indices
    return candidates.gather(1, order), ids.gather(1, order)


def _keys(scores: Tensor, ids: Tensor) -> Tensor:
    """Whole numbers that grow where scores up to 0 fall, and among equals where ids grow."""
    # Without the sign, a float's bits are ordered like its distance from 0.
    return ((scores.view(torch.int32) & 0x7FFFFFFF).long() << 32) + ids


def _scored(logits: Tensor, tokens: Sequence[int], top: int) -> list[Scored]:
    """`score` of a few rows."""
    vocab = logits.shape[1]
    logprobs = F.log_softmax(_padded(logits), dim=-1)
    chosen = torch.tensor(list(tokens), dtype=torch.int64).to(logits.device)
    own = logprobs.gather(1, chosen[:, None])[:, 0].tolist()
    if not top:
        return [Scored(token, each) for token, each in zip(tokens, own, strict=True)]
    values, ids = _best(logprobs, min(top, vocab))
    return [
        Scored(token, each, tuple(zip(best, numbers, strict=True)))
        for token, each, best, numbers in zip(tokens, own, ids.tolist(), values.tolist(), strict=True)
    ]

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

_STEP = 0x9E3779B97F4A7C15
"""By how much SplitMix64 counts."""

_FIRST_BLOCK = 2**40
"""What blocks are numbered from, when they are drawn like ids."""

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


def noise(keys: Sequence[tuple[int, int]], ids: np.ndarray) -> np.ndarray:
    """Numbers [R, N] drawn from the exponential distribution, for ids [R or 1, N] of draws by (seed, index).

    Each is the same on every machine and in any company. They come of the generator SplitMix64 (Steele, Lea and Flood,
    "Fast splittable pseudorandom number generators", 2014), mixed anew for seed, index and id: so neighbours have
    nothing in common.
    """
    first = [_mixed(_mixed(seed) + (index + 1) * _STEP) for seed, index in keys]
    state = np.array(first, dtype=np.uint64)[:, None] + (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(_STEP)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    state ^= state >> np.uint64(31)
    found: np.ndarray = -np.log(((state >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)
    return found


def _race(rows: Sequence[Row], ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The place [R] of one of ids [R or 1, N] for each row, drawn as likely as it weighs in fp64 weights [R, N].

    Each arrives after a time that is exponential with its weight as rate, and the first wins. (That is what is called
    the Gumbel trick, by another name.) Weights that are rounded otherwise, because others were computed beside them,
    change the winner only where two arrive at once; a number looked up among sums of all weights would find another
    token at each of thousands of borders. What weighs 0 never arrives.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        times = noise([(row.sampling.seed, row.index) for row in rows], ids) / weights
    return np.argmin(times, axis=1)


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

    First a block, as likely as all of it weighs, then one of its tokens.
    """
    weights = _weigh(_lowered(scores), rows)
    sums = _sums(weights)
    blocks = np.arange(sums.shape[1])[None]
    block = torch.from_numpy(_race(rows, blocks + _FIRST_BLOCK, sums.cpu().numpy()))
    ids = block[:, None] * _BLOCK + torch.arange(_BLOCK)
    inside = weights.gather(1, ids.to(weights.device)).double().cpu().numpy()
    place = _race(rows, ids.numpy(), inside)
    return list(ids.numpy()[np.arange(len(rows)), place].tolist())


def _some_of(scores: Tensor, rows: Sequence[Row]) -> list[int]:
    """A token of each row of scores [R, W], drawn from those that min_p, top_k and top_p leave. The scores are used up.

    These are the likeliest, so first a few candidates are looked at; where more may be left, all tokens are.
    """
    samplings = [row.sampling for row in rows]
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
        last = stays[:, -1].tolist()
        for n in asking:
            more[n] = last[n]
    known = ids.cpu().numpy()
    place = _race(rows, known, (mass * stays).cpu().numpy())
    tokens: list[int] = known[np.arange(len(rows)), place].tolist()
    for n in (n for n, each in enumerate(more) if each):
        (row,) = _weigh(scores[n : n + 1], rows[n : n + 1]).cpu().numpy()
        tokens[n] = _one_of(row, rows[n])
    return tokens


def _one_of(weights: np.ndarray, row: Row) -> int:
    """A token of one row of weights [W], with as many candidates as there are."""
    sampling = row.sampling
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
    mass = weights[ids].astype(np.float64)
    if share < 1:
        mass *= np.cumsum(mass) - mass <= share * whole
    return int(ids[_race([row], ids[None], mass[None])[0]])


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

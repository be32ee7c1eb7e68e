"""Whether two scores differ by more than chance would have it. No torch.

The formulas are those of Miller, "Adding Error Bars to Evals" (arXiv:2411.00640), sections 2.1 and 4.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import Any

from neoxkit.errors import DataError
from neoxkit.eval.results import Score

CONFIDENCE = 0.95
QUANTILE = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
"""So many standard errors a difference has to exceed: 1.96."""

LARGEST = 1e150
"""Of a document's values: the squares of larger ones are no numbers."""

REMEDY = "evaluate again, or remove the file"

Asked = dict[tuple[str, str], tuple[str, dict[str, Any]]]
"""By document and filter: the document's digest, and the sample's values."""

Pairs = tuple[list[float], list[float]]
"""What each document adds to the first's and the second's score, in the same order; see `_parts`."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How far a second score is from a first.

    value is second - first in the metric's unit, error its standard error (None when unknown). paired counts the
    documents whose answers were compared one by one; 0 means that each score's own standard error was used, because
    of `why`. verdict is "better", "worse", "higher" or "lower" (where it is unknown which is better), "within the
    error", or what kept it from being told.
    """

    value: float
    error: float | None
    paired: int
    why: str
    verdict: str


def compare(first: Score, second: Score, paired: Pairs | str) -> Difference:
    """The difference of two scores of the same metric on the same prompts.

    `paired` has what each document adds, in the same order, or says why it is not known. Paired, the standard error is
    that of the mean of the documents' differences; what makes a document hard for both models drops out of it.
    Otherwise it is the root of the sum of the squares of both standard errors.
    """
    value = second.value - first.value
    if isinstance(paired, str):
        known = first.error is not None and second.error is not None
        error = math.hypot(first.error or 0.0, second.error or 0.0) if known else None
        return Difference(value, error, 0, paired, _verdict(value, error, first.higher))
    between = [b - a for a, b in zip(*paired, strict=True)]
    error = stdev(between) / math.sqrt(len(between))
    return Difference(value, error, len(between), "", _verdict(value, error, first.higher))


def _verdict(value: float, error: float | None, higher: bool | None) -> str:
    if not math.isfinite(value):
        return "no number"
    if error is None:
        return "no standard error"
    if abs(value) <= QUANTILE * error or value == 0:
        return "within the error"
    if error == 0:  # the same difference on each of a few documents
        return "too few documents"
    if higher is None:
        return "higher" if value > 0 else "lower"
    return "better" if (value > 0) == higher else "worse"


def read_samples(path: Path) -> Asked:
    """What was asked and answered, by document and filter. Raises DataError for what is no such file."""
    found: Asked = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                sample = json.loads(line)
                key = str(sample["doc_id"]), str(sample.get("filter", "none"))
                digests = [str(sample.get(name)) for name in ("doc_hash", "target_hash")]
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                raise DataError(f"{path}:{number}: not a sample ({error})", REMEDY) from error
            if key in found:
                raise DataError(f"{path}:{number}: document {key[0]} is there twice", REMEDY)
            found[key] = " ".join(digests), {name: each for name, each in sample.items() if _is_value(each)}
    return found


def pair(first: Asked, second: Asked, metric: str, scores: tuple[Score, Score]) -> Pairs | str:
    """What each document adds to the scores, first and second; or why it is not to be had.

    It is, when the documents are the same, and the scores follow from the documents' values: see `_parts`.
    """
    name, _, kept = metric.partition(",")
    chosen = [_values(asked, name, kept or "none") for asked in (first, second)]
    if chosen[0].keys() != chosen[1].keys():
        return "other documents"
    if len(chosen[0]) < 2:
        return "no values of documents"
    mine, theirs = (
        _parts([values[key] for key in chosen[0]], score.value) for values, score in zip(chosen, scores, strict=True)
    )
    return "not a mean of documents" if mine is None or theirs is None else (mine, theirs)


def _values(asked: Asked, metric: str, kept: str) -> Mapping[tuple[str, str], Any]:
    """By document and its digest."""
    return {
        (document, told): values[metric]
        for (document, chosen), (told, values) in asked.items()
        if chosen == kept and metric in values
    }


def _parts(values: Sequence[Any], score: float) -> list[float] | None:
    """How far each document moves a score, to first order; None when it is no function of the documents' mean.

    A value is a number, or a sum with its weight, as of texts: [log-likelihood, words]. With r the ratio of the sums
    of both, the harness has as score r itself (accuracies), exp(-r) (perplexities) or -r / ln 2 (bits per byte). The
    part of a document with x and w is the derivative there, times (x - r w) / mean(w): Cochran, Sampling Techniques,
    section 6.4, on the error of a ratio.
    """
    pairs = [value if isinstance(value, list) else (value, 1.0) for value in values]
    weight = fmean(each for _, each in pairs)
    if weight <= 0:
        return None
    ratio = fmean(each for each, _ in pairs) / weight
    forms = [(ratio, 1.0), (-ratio / math.log(2), -1 / math.log(2))]
    if -ratio < 700:  # beyond it no float has its exponential
        forms.append((math.exp(-ratio), -math.exp(-ratio)))
    for form, slope in forms:
        if math.isclose(form, score, rel_tol=1e-6, abs_tol=1e-9):
            return [slope * (x - ratio * w) / weight for x, w in pairs]
    return None


def _is_value(value: object) -> bool:
    """Whether it is a number, or a sum and its weight."""
    each = value if isinstance(value, list) and len(value) == 2 else [value]
    return all(isinstance(number, (int, float)) and abs(number) < LARGEST for number in each)


def same_direction(scores: Sequence[Score]) -> bool | None:
    """Whether higher is better, as all that know say; None where nobody knows, or they contradict each other."""
    told = {score.higher for score in scores} - {None}
    return told.pop() if len(told) == 1 else None

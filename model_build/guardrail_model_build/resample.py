"""Bootstrap intervals and paired tests, for figures that rows in common decide.

All intervals are the middle 95 % of 1,000 resamples of the rows, drawn with a fixed seed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from guardrail_sdk.evaluation import Interval

_RESAMPLES = 1000
_SEED = 2411
_CELLS = 100 * 5000
"""Weights held in memory at once."""

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Bools = NDArray[np.bool_]


def interval(values: Floats) -> Interval | None:
    """Return the middle 95 % of `values`, which may hold NaN; None if nothing else is left."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def ranking(unsafe: Bools, scores: Floats) -> tuple[Interval | None, Interval | None]:
    """Return the intervals of average precision and of the recall at a 5 % false-positive rate.

    Args:
        unsafe: The labels, bool [rows].
        scores: Higher for what is rather unsafe, float64 [rows].
    """
    if unsafe.all() or not unsafe.any():
        return None, None
    order = np.argsort(-scores, kind="stable")
    truth, ordered = unsafe[order], scores[order]
    # Rows of equal score fall on the same side of every threshold: count them together.
    ends = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    precision: list[Floats] = []
    recall: list[Floats] = []
    with np.errstate(invalid="ignore", divide="ignore"):
        for weights in _weights(len(scores)):
            hits = np.cumsum(weights * truth, axis=1)[:, ends]
            alarms = np.cumsum(weights * ~truth, axis=1)[:, ends]
            gained = np.diff(hits, prepend=0, axis=1) / hits[:, -1:]
            steps = np.where(gained > 0, gained * hits / (hits + alarms), 0.0)
            precision.append(np.where(hits[:, -1] > 0, steps.sum(1), np.nan))
            allowed = np.where(alarms <= 0.05 * alarms[:, -1:], hits, 0).max(1)
            defined = (hits[:, -1] > 0) & (alarms[:, -1] > 0)
            recall.append(np.where(defined, allowed / hits[:, -1], np.nan))
    return interval(np.concatenate(precision)), interval(np.concatenate(recall))


def paired(unsafe: Bools, first: Bools, second: Bools) -> tuple[Interval | None, Interval | None]:
    """Return the intervals of how much `second` differs from `first` in F1 and in FPR.

    Every resample takes the same rows for both. Both figures follow from how many rows fall into
    each of the eight cells of (label, first, second), and those of a resample are one draw of a
    multinomial.

    Args:
        unsafe: The labels, bool [rows].
        first: One model's verdicts, bool [rows].
        second: The other's.
    """
    cells = np.bincount(4 * unsafe + 2 * first + 1 * second, minlength=8)
    if not cells.sum():
        return None, None
    drawn = np.random.default_rng(_SEED).multinomial(
        cells.sum(), cells / cells.sum(), size=_RESAMPLES
    )
    # Axes: resamples, label, first, second.
    counts = drawn.reshape(-1, 2, 2, 2)
    before, after = counts.sum(3), counts.sum(2)
    return interval(_f1(after) - _f1(before)), interval(_fpr(after) - _fpr(before))


def mcnemar(unsafe: Bools, first: Bools, second: Bools) -> float:
    """Return the exact two-sided p of McNemar's test (1947) on which of two models errs more."""
    only_first = int(((first == unsafe) & (second != unsafe)).sum())
    only_second = int(((first != unsafe) & (second == unsafe)).sum())
    if not only_first + only_second:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


def _f1(counts: Counts) -> Floats:
    """Return F1 of counts [resamples, label, verdict]."""
    hits = counts[:, 1, 1]
    whole = 2 * hits + counts[:, 1, 0] + counts[:, 0, 1]
    return np.divide(2 * hits, whole, out=np.full(len(counts), np.nan), where=whole > 0)


def _fpr(counts: Counts) -> Floats:
    """Return the false-positive rate of counts [resamples, label, verdict]."""
    safe = counts[:, 0].sum(1)
    return np.divide(counts[:, 0, 1], safe, out=np.full(len(counts), np.nan), where=safe > 0)


def _weights(rows: int) -> Iterator[Counts]:
    """Yield how often each row is drawn, int64 [some resamples, rows], for all resamples."""
    generator = np.random.default_rng(_SEED)
    chunk = max(1, min(_RESAMPLES, _CELLS // rows))
    for start in range(0, _RESAMPLES, chunk):
        count = min(chunk, _RESAMPLES - start)
        drawn = generator.integers(0, rows, (count, rows)) + rows * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * rows).reshape(count, rows)

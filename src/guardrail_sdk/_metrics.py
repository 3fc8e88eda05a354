"""How good a guard is: figures from labels, probabilities and decisions alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Counts = npt.NDArray[np.int64]
    Floats = npt.NDArray[np.float64]

Interval = tuple[float, float]
"""The two ends of a 95 % interval."""

_RESAMPLES: Final = 1000
_SEED: Final = 2411
_BINS: Final = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """How well a guard tells unsafe from safe on one group of rows; None where undefined.

    `f1`, `precision`, `recall` and `fpr` follow from the decisions taken at the thresholds in
    force. `auprc` and the recalls at an FPR follow from the ranking by P(unsafe) and need rows of
    both kinds. `ece` and `brier` say whether P(unsafe) can be taken at its word.

    Intervals are percentile bootstraps over rows (Efron, 1979), the same at every run. They say
    what another draw of as many rows could have given, not what other texts would give; where no
    row was wrong they have no width, so read `rows` beside them.
    """

    rows: int
    unsafe: int
    """How many of `rows` are labelled unsafe."""
    f1: float | None
    """Harmonic mean of precision and recall; None without unsafe rows."""
    f1_interval: Interval | None
    precision: float | None
    """Share of the flagged rows that are unsafe; None if none was flagged."""
    recall: float | None
    """Share of the unsafe rows that were flagged; None without unsafe rows."""
    recall_interval: Interval | None
    fpr: float | None
    """Share of the safe rows that were flagged; None without safe rows."""
    fpr_interval: Interval | None
    auprc: float | None
    """Average precision: the area under the precision-recall curve, without interpolation."""
    recall_at_fpr_1: float | None
    """The best recall of any threshold that flags at most 1 % of the safe rows."""
    recall_at_fpr_5: float | None
    """The same at 5 %."""
    always_unsafe_f1: float | None
    """F1 of flagging every row: what `f1` has to beat; None without unsafe rows."""
    ece: float | None
    """Expected calibration error: the mean distance between P(unsafe) and the share of unsafe
    rows, over 15 bins that hold as many rows each; None without rows.
    """
    brier: float | None
    """Mean squared distance between P(unsafe) and the label, 0 or 1; None without rows."""


def measure(
    labels: Sequence[bool], probabilities: Sequence[float], flagged: Sequence[bool]
) -> Metrics:
    """Return the metrics of one group of rows, given in any order, one item a row each.

    Args:
        labels: True where the row is unsafe.
        probabilities: P(unsafe) in [0, 1].
        flagged: True where the decision was anything but to allow.

    Raises:
        ValueError: If the lengths differ or a probability is outside [0, 1].
    """
    import numpy as np

    if not len(labels) == len(probabilities) == len(flagged):
        raise ValueError("labels, probabilities and flagged must be of one length")
    truth = np.asarray(labels, dtype=np.bool_)
    scores = np.asarray(probabilities, dtype=np.float64)
    positive = np.asarray(flagged, dtype=np.bool_)
    if not np.all((scores >= 0) & (scores <= 1)):
        raise ValueError("a probability is outside [0, 1]")
    rows, unsafe = len(labels), int(truth.sum())
    hits, alarms = int((truth & positive).sum()), int((~truth & positive).sum())
    ranked = _Ranking.of(truth, scores) if 0 < unsafe < rows else None
    drawn = _Resamples.of(hits, unsafe - hits, alarms, rows - unsafe - alarms)
    return Metrics(
        rows=rows,
        unsafe=unsafe,
        f1=_ratio(2 * hits, unsafe + hits + alarms) if unsafe else None,
        f1_interval=drawn.f1() if unsafe else None,
        precision=_ratio(hits, hits + alarms),
        recall=_ratio(hits, unsafe),
        recall_interval=drawn.recall() if unsafe else None,
        fpr=_ratio(alarms, rows - unsafe),
        fpr_interval=drawn.fpr() if unsafe < rows else None,
        auprc=ranked and ranked.average_precision(),
        recall_at_fpr_1=ranked and ranked.recall_at_fpr(0.01),
        recall_at_fpr_5=ranked and ranked.recall_at_fpr(0.05),
        always_unsafe_f1=2 * unsafe / (unsafe + rows) if unsafe else None,
        ece=_calibration_error(truth, scores) if rows else None,
        brier=float(np.mean((scores - truth) ** 2)) if rows else None,
    )


@dataclass(frozen=True, slots=True)
class _Resamples:
    """What bootstrap resamples of a group count: int64 [resamples] each.

    F1, recall and FPR depend on four counts only, and those of a resample are one draw of a
    multinomial: no row needs to be drawn, and a thousand resamples take a millisecond.
    """

    hits: Counts
    misses: Counts
    alarms: Counts
    quiet: Counts

    @classmethod
    def of(cls, *counts: int) -> _Resamples:
        import numpy as np

        rows = sum(counts)
        # Without rows there is nothing to draw; whoever asks gets no interval.
        shares = np.array(counts) / rows if rows else np.array([0.0, 0.0, 0.0, 1.0])
        drawn = np.random.default_rng(_SEED).multinomial(rows, shares, size=_RESAMPLES)
        return cls(*drawn.T)

    def f1(self) -> Interval | None:
        return _interval(2 * self.hits, 2 * self.hits + self.misses + self.alarms)

    def recall(self) -> Interval | None:
        return _interval(self.hits, self.hits + self.misses)

    def fpr(self) -> Interval | None:
        return _interval(self.alarms, self.alarms + self.quiet)


def _interval(parts: Counts, wholes: Counts) -> Interval | None:
    """Return the middle 95 % of `parts` / `wholes`, where that is defined."""
    import numpy as np

    defined = wholes > 0
    if not defined.any():
        return None
    low, high = np.percentile(parts[defined] / wholes[defined], [2.5, 97.5])
    return float(low), float(high)


def _calibration_error(truth: npt.NDArray[np.bool_], scores: Floats) -> float:
    """Return the expected calibration error (Naeini et al., 2015), with bins of equal mass."""
    import numpy as np

    values, group, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    # Rows of equal score share their labels' mean, so that the rows' order decides nothing.
    shares = np.bincount(group, weights=truth, minlength=len(values)) / sizes
    gaps = np.repeat(values - shares, sizes)
    bins = np.array_split(gaps, min(_BINS, len(gaps)))
    return float(sum(abs(part.sum()) for part in bins) / len(gaps))


@dataclass(frozen=True, slots=True)
class _Ranking:
    """Unsafe and safe rows at or above each distinct score, from the highest score down."""

    hits: Counts
    alarms: Counts

    @classmethod
    def of(cls, truth: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64]) -> _Ranking:
        import numpy as np

        order = np.argsort(-scores, kind="stable")
        ordered = scores[order]
        # Rows of equal score fall on the same side of every threshold: count them together.
        ends = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
        hits = np.cumsum(truth[order], dtype=np.int64)[ends]
        return cls(hits, ends.astype(np.int64) + 1 - hits)

    def average_precision(self) -> float:
        import numpy as np

        gained = np.diff(self.hits, prepend=0) / self.hits[-1]
        return float(np.sum(gained * self.hits / (self.hits + self.alarms)))

    def recall_at_fpr(self, limit: float) -> float:
        allowed = self.hits[self.alarms <= limit * self.alarms[-1]]
        return float(allowed[-1] / self.hits[-1]) if len(allowed) else 0.0


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None

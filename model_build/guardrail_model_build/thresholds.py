"""Calibration and thresholds: what makes a margin a probability, and a probability a verdict.

Both are chosen on the validation split alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from guardrail_model_build.recipe import Everyday, Limits, Presets
from guardrail_sdk import Category, Stage
from guardrail_sdk.artifact import Calibration

Preset = Literal["strict", "balanced", "permissive"]
PRESETS: tuple[Preset, ...] = get_args(Preset)
SIDES: tuple[Stage, ...] = get_args(Stage)
DEFAULT: Preset = "balanced"

_MIN_POSITIVES = 10
"""A hazard with fewer unsafe rows in the validation split keeps the threshold 0.5."""
_FLATTEST = 1e-3
"""A model that ranks no better than chance would get a slope of 0, which has no inverse."""

_NEAR_BEST = 0.005
"""F1 that is as good as the best: validation can't tell such thresholds apart."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Setting(BaseModel):
    """How the margins of one step are read."""

    model_config = ConfigDict(frozen=True)

    calibration: dict[Stage, Calibration]
    thresholds: dict[Preset, dict[Stage, float]]
    """P(unsafe) from which a text counts as unsafe."""

    def probabilities(self, margins: Floats, sides: Sequence[Stage]) -> Floats:
        """Return P(unsafe) of each row, float64 [rows]."""
        scale = np.array([self.calibration[side].scale for side in sides])
        bias = np.array([self.calibration[side].bias for side in sides])
        return 0.5 * (1 + np.tanh((scale * margins + bias) / 2))

    def flagged(self, probabilities: Floats, sides: Sequence[Stage], preset: Preset) -> Bools:
        """Return which rows count as unsafe, bool [rows]."""
        return probabilities >= np.array([self.thresholds[preset][side] for side in sides])


def settle(
    margins: Floats,
    unsafe: Bools,
    sides: Sequence[Stage],
    sources: Sequence[str],
    presets: Presets,
) -> Setting:
    """Return the calibration and the thresholds that these validation rows ask for.

    Args:
        margins: float64 [rows].
        unsafe: The labels, bool [rows].
        sides: What is judged of each row.
        sources: Where each row comes from.
        presets: What is asked of the thresholds.

    Raises:
        ValueError: If a side has not both safe and unsafe rows.
    """
    calibration: dict[Stage, Calibration] = {}
    thresholds: dict[Preset, dict[Stage, float]] = {preset: {} for preset in PRESETS}
    for side in SIDES:
        here = np.array([one == side for one in sides], dtype=np.bool_)
        if len(set(unsafe[here])) != 2:
            raise ValueError(f"The validation split needs safe and unsafe rows ({side}).")
        calibration[side] = platt(margins[here], unsafe[here])
        reading = Setting(calibration=calibration, thresholds={})
        same: list[Stage] = [side] * int(here.sum())
        scores = reading.probabilities(margins[here], same)
        asked: dict[Preset, Limits | Everyday] = {
            "strict": presets.strict,
            "permissive": presets.permissive,
            "balanced": presets.balanced,
        }
        for preset, wanted in asked.items():
            if isinstance(wanted, Limits):
                limit: float = getattr(wanted, side)
                thresholds[preset][side] = threshold(scores, unsafe[here], limit)
                continue
            everyday = np.array([source in wanted.sources for source in sources])[here]
            cut = near_best(scores, unsafe[here], everyday, wanted.rate)
            low, high = thresholds["strict"][side], thresholds["permissive"][side]
            thresholds[preset][side] = min(max(cut, low), high)
    return Setting(calibration=calibration, thresholds=thresholds)


def platt(margins: Floats, unsafe: Bools) -> Calibration:
    """Return the logistic regression of the labels on the margins (Platt, 1999)."""
    fitted = LogisticRegression(C=1e6).fit(margins[:, None], unsafe)
    scale = max(float(fitted.coef_[0, 0]), _FLATTEST)
    return Calibration(scale=scale, bias=float(fitted.intercept_[0]))


def threshold(scores: Floats, unsafe: Bools, limit: float) -> float:
    """Return a threshold that at most `limit` of the safe rows reach, and as many rows as can be.

    It lies between two rows' scores, so that float noise moves no row across it.
    """
    safe = np.sort(scores[~unsafe])[::-1]
    allowed = int(limit * len(safe))
    if allowed >= len(safe):
        return 0.0
    floor = float(safe[allowed])
    above = scores[scores > floor]
    return _between(floor, float(above.min())) if len(above) else 1.0


def near_best(scores: Floats, unsafe: Bools, everyday: Bools, rate: float) -> float:
    """Return the threshold that `recipe.Everyday` describes.

    Args:
        scores: P(unsafe), float64 [rows].
        unsafe: The labels, bool [rows].
        everyday: Which rows are everyday talk and work, bool [rows].
        rate: The share of its safe rows that may be flagged.
    """
    least = threshold(scores[everyday], unsafe[everyday], rate) if everyday.any() else 0.0
    cuts = [cut for cut in _cuts(scores) if cut >= least] or [least]
    found = [_f1(unsafe, scores >= cut) for cut in cuts]
    return min(
        cut for cut, value in zip(cuts, found, strict=True) if value >= max(found) - _NEAR_BEST
    )


def _f1(unsafe: Bools, flagged: Bools) -> float:
    # scikit-learn's takes 100 times as long, and there is a threshold for every row.
    counted = int(unsafe.sum()) + int(flagged.sum())
    return 2 * int((unsafe & flagged).sum()) / counted if counted else 0.0


def _cuts(scores: Floats) -> list[float]:
    """Return every threshold that tells two neighbouring scores apart, rising."""
    distinct = np.unique(scores)
    return [_between(float(low), float(high)) for low, high in pairwise(distinct)]


def category_thresholds(
    hazards: Floats, categories: Sequence[Sequence[Category]]
) -> dict[Category, float]:
    """Return, per hazard with enough unsafe rows, the threshold of the best F1.

    Args:
        hazards: Scores of S1 to S14, float64 [rows, 14].
        categories: The hazards of each row; none if it is safe.
    """
    chosen: dict[Category, float] = {}
    candidates = np.linspace(0.02, 0.98, 49)
    for column, hazard in enumerate(Category):
        truth = np.array([hazard in named for named in categories], dtype=np.bool_)
        if truth.sum() < _MIN_POSITIVES:
            continue
        scores = hazards[:, column]
        found = {float(cut): float(f1_score(truth, scores >= cut)) for cut in candidates}
        chosen[hazard] = round(_best(found), 2)
    return chosen


def _best(found: Mapping[float, float]) -> float:
    """Return the middle one of the thresholds that do best."""
    top = max(found.values())
    tied = [cut for cut, value in found.items() if value == top]
    return tied[len(tied) // 2]


def _between(low: float, high: float) -> float:
    """Return a number in (low, high] with as few digits as can be."""
    middle = (low + high) / 2
    for digits in range(2, 16):
        rounded = round(middle, digits)
        if low < rounded <= high:
            return rounded
    return high

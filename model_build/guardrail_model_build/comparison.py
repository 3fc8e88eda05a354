"""From scores to findings: every figure of an evaluation, computed and never judged again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

from guardrail_model_build.findings import (
    ALL_SIDES,
    PUBLIC,
    Difference,
    Evaluation,
    Figures,
    Groups,
    PresetFindings,
    Quantisation,
    Side,
    StepFindings,
    Worst,
)
from guardrail_model_build.partial import partial_text
from guardrail_model_build.recipe import Everyday, Limits
from guardrail_model_build.resample import mcnemar, paired, ranking
from guardrail_model_build.scores import SHIPPED, VALIDATION, Judgements, Label
from guardrail_model_build.thresholds import (
    DEFAULT,
    PRESETS,
    SIDES,
    Bools,
    Floats,
    Preset,
    Setting,
    category_thresholds,
    settle,
)
from guardrail_sdk import Category, Stage
from guardrail_sdk.evaluation import measure

_WORST = 15
_POINT = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step's scores, read at its own calibration and thresholds.

    Attributes:
        setting: What was chosen on validation.
        probabilities: P(unsafe), float64 [rows]; NaN where the step has not judged.
        verdicts: By preset: whether the row counts as unsafe, bool [rows].
    """

    setting: Setting
    probabilities: Floats
    verdicts: Mapping[Preset, Bools]


def read_step(judged: Judgements, name: str) -> Step:
    """Return one step's scores, calibrated on the validation rows that have a label."""
    margins = judged.margins[name]
    sides: list[Stage] = [row.side for row in judged.labels]
    known = judged.where(files=[VALIDATION])
    setting = settle(
        margins[known],
        judged.unsafe[known],
        [side for side, is_known in zip(sides, known, strict=True) if is_known],
        [row.source for row, is_known in zip(judged.labels, known, strict=True) if is_known],
        judged.about.presets,
    )
    probabilities = setting.probabilities(margins, sides)
    verdicts: dict[Preset, Bools] = {
        preset: setting.flagged(probabilities, sides, preset) for preset in PRESETS
    }
    return Step(setting=setting, probabilities=probabilities, verdicts=verdicts)


def evaluate_scores(judged: Judgements) -> Evaluation:
    """Compute everything that `evaluation.json` holds.

    Raises:
        ValueError: If validation has not both safe and unsafe rows of each side.
    """
    steps = {name: read_step(judged, name) for name in judged.about.steps}
    return Evaluation(
        name=judged.about.name,
        version=judged.about.version,
        steps={name: _step(judged, steps, name) for name in steps},
        presets=_presets(judged, steps[SHIPPED]),
        category_thresholds=_category_thresholds(judged),
        quantisation=_quantisation(judged, steps),
        partial=partial_text(judged, steps[SHIPPED].verdicts[DEFAULT]),
        worst=_worst(judged, steps[SHIPPED]),
        latency_ms=judged.about.latency_ms,
    )


def scopes(judged: Judgements) -> dict[str, list[str]]:
    """Return the files, and all but validation together, as lists of files."""
    files = judged.files()
    found = {file: [file] for file in files}
    return {**found, PUBLIC: files[1:]} if len(files) > 1 else found


def _step(judged: Judgements, steps: Mapping[str, Step], name: str) -> StepFindings:
    step = steps[name]
    parent = judged.parents().get(name)
    broad = {scope: files for scope, files in scopes(judged).items() if scope in _BROAD}
    return StepFindings(
        setting=step.setting,
        files={
            scope: {
                side: _figures(judged, step, mask, ranked=True)
                for side, mask in _by_side(judged, files)
            }
            for scope, files in scopes(judged).items()
        },
        parent=parent,
        against_parent={
            scope: {
                side: difference(judged, steps[parent], step, mask)
                for side, mask in _by_side(judged, files)
            }
            for scope, files in scopes(judged).items()
        }
        if parent
        else {},
        categories={scope: _categories(judged, step, files) for scope, files in broad.items()},
        languages={
            scope: _groups(judged, step, files, lambda row: row.lang, ranked=name == SHIPPED)
            for scope, files in broad.items()
        },
        sources={
            scope: _groups(judged, step, files, lambda row: row.source)
            for scope, files in broad.items()
        },
    )


_BROAD = (VALIDATION, PUBLIC)


def _by_side(judged: Judgements, files: Sequence[str]) -> Iterable[tuple[Side, Bools]]:
    """Yield the sides of which these files have rows; `both` is always among them."""
    for side in ALL_SIDES:
        mask = judged.where(files=files, side=side)
        if mask.any():
            yield side, mask


def _figures(judged: Judgements, step: Step, mask: Bools, *, ranked: bool = False) -> Figures:
    """Return the figures of the rows in `mask`; with `ranked`, the slower intervals too."""
    unsafe, scores = judged.unsafe[mask], step.probabilities[mask]
    flagged = step.verdicts[DEFAULT][mask]
    found = measure(unsafe.tolist(), scores.tolist(), flagged.tolist())
    precision, recall = ranking(unsafe, scores) if ranked else (None, None)
    both = 0 < found.unsafe < found.rows
    return Figures(
        **asdict(found),
        roc_auc=float(roc_auc_score(unsafe, scores)) if both else None,
        auprc_interval=precision,
        recall_at_fpr_5_interval=recall,
    )


def _groups(
    judged: Judgements,
    step: Step,
    files: Sequence[str],
    key: Callable[[Label], str],
    *,
    ranked: bool = False,
) -> Groups:
    """Return, per side, the figures of the rows with the same key."""
    keys = np.array([key(row) for row in judged.labels])
    return {
        side: {
            str(name): _figures(judged, step, mask & (keys == name), ranked=ranked)
            for name in sorted(set(keys[mask]))
        }
        for side, mask in _by_side(judged, files)
    }


def _categories(judged: Judgements, step: Step, files: Sequence[str]) -> Groups:
    """Return, per side and hazard, the figures of its unsafe rows and its files' safe rows."""
    groups: Groups = {}
    own = np.array([row.file for row in judged.labels])
    for side, mask in _by_side(judged, files):
        groups[side] = {}
        for hazard in Category:
            named = np.array([hazard in row.categories for row in judged.labels])
            unsafe = mask & named & judged.unsafe
            if unsafe.any():
                beside = mask & ~judged.unsafe & np.isin(own, own[unsafe])
                groups[side][hazard.value] = _figures(judged, step, unsafe | beside)
    return groups


def difference(judged: Judgements, first: Step, second: Step, mask: Bools) -> Difference:
    """Return how the verdicts of `second` differ from those of `first` on the rows in `mask`."""
    unsafe = judged.unsafe[mask]
    before, after = first.verdicts[DEFAULT][mask], second.verdicts[DEFAULT][mask]
    f1_interval, fpr_interval = paired(unsafe, before, after)
    both_unsafe, both_safe = unsafe.any(), (~unsafe).any()
    return Difference(
        rows=int(mask.sum()),
        f1=_f1(unsafe, after) - _f1(unsafe, before) if both_unsafe else None,
        f1_interval=f1_interval if both_unsafe else None,
        fpr=float(after[~unsafe].mean() - before[~unsafe].mean()) if both_safe else None,
        fpr_interval=fpr_interval if both_safe else None,
        flips=float((before != after).mean()),
        worse=int(((before == unsafe) & (after != unsafe)).sum()),
        better=int(((before != unsafe) & (after == unsafe)).sum()),
        mcnemar_p=mcnemar(unsafe, before, after),
    )


def _f1(unsafe: Bools, flagged: Bools) -> float:
    whole = unsafe.sum() + flagged.sum()
    return float(2 * (unsafe & flagged).sum() / whole) if whole else 0.0


def _quantisation(judged: Judgements, steps: Mapping[str, Step]) -> Quantisation:
    student, shipped = steps[judged.about.student], steps[SHIPPED]
    plain = judged.written & np.array([row.alone for row in judged.labels])
    overall: dict[Side, Difference] = {
        side: difference(judged, student, shipped, mask)
        for side, mask in _by_side(judged, judged.files())
    }
    rounded = judged.margins[judged.parents()[SHIPPED]]
    drift = np.abs(judged.margins[SHIPPED] - rounded)[judged.where() & plain]
    return Quantisation(
        student=judged.about.student,
        overall=overall,
        in_one_piece=difference(judged, student, shipped, judged.where() & plain),
        holds=_holds(overall["both"]),
        mean_difference=float(drift.mean()) if len(drift) else 0.0,
        largest_difference=float(drift.max()) if len(drift) else 0.0,
    )


def _holds(found: Difference) -> bool:
    # What is not defined can't have got worse.
    f1, fpr = found.f1 or 0.0, found.fpr or 0.0
    low = found.f1_interval[0] if found.f1_interval else 0.0
    high = found.fpr_interval[1] if found.fpr_interval else 0.0
    return f1 >= -_POINT and fpr <= _POINT and low >= -2 * _POINT and high <= 2 * _POINT


def _presets(judged: Judgements, step: Step) -> dict[Preset, dict[Side, PresetFindings]]:
    found: dict[Preset, dict[Side, PresetFindings]] = {}
    for preset in PRESETS:
        found[preset] = {}
        asked: Limits | Everyday = getattr(judged.about.presets, preset)
        for side in SIDES:
            metrics = {
                scope: measure(
                    judged.unsafe[mask].tolist(),
                    step.probabilities[mask].tolist(),
                    step.verdicts[preset][mask].tolist(),
                )
                for scope, files in scopes(judged).items()
                if (mask := judged.where(files=files, side=side)).any()
            }
            found[preset][side] = PresetFindings(
                limit=getattr(asked, side) if isinstance(asked, Limits) else None,
                threshold=step.setting.thresholds[preset][side],
                recall={scope: one.recall for scope, one in metrics.items()},
                fpr={scope: one.fpr for scope, one in metrics.items()},
                f1={scope: one.f1 for scope, one in metrics.items()},
            )
    return found


def _category_thresholds(judged: Judgements) -> dict[Stage, dict[Category, float]]:
    """Choose the hazards' thresholds on validation rows that name hazards, or are safe."""
    known = np.array(
        [
            row.file == VALIDATION and (row.unsafe is False or bool(row.categories))
            for row in judged.labels
        ]
    ) & ~np.isnan(judged.hazards).any(axis=1)
    found: dict[Stage, dict[Category, float]] = {}
    for side in SIDES:
        mask = known & np.array([row.side == side for row in judged.labels])
        named = [row.categories for row, here in zip(judged.labels, mask, strict=True) if here]
        found[side] = category_thresholds(judged.hazards[mask], named)
    return found


def _worst(judged: Judgements, step: Step) -> tuple[Worst, ...]:
    """Return the rows furthest from their label: the safe ones first, worst first."""
    found: list[Worst] = []
    known = judged.where() & ~np.isnan(step.probabilities)
    for unsafe in (False, True):
        places = np.flatnonzero(known & (judged.unsafe == unsafe))
        sign = 1 if unsafe else -1
        order = np.argsort(sign * step.probabilities[places], kind="stable")
        for place in places[order][:_WORST]:
            row = judged.labels[place]
            found.append(
                Worst(
                    file=row.file,
                    id=row.id,
                    side=row.side,
                    unsafe=unsafe,
                    probability=float(step.probabilities[place]),
                )
            )
    return tuple(found)

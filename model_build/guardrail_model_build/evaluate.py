"""Stage `evaluated`: what every step cost, and the thresholds that the model ships with.

Stages are compared on one stratified sample of the validation split, each at the threshold that
keeps its own false-positive rate there: labels and rows are the same, so differences are the
stage's. Files given for evaluation are only ever read to report the shipped model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue
from rich.progress import Progress
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score

from guardrail_model_build.data import load_split, sample
from guardrail_model_build.examples import Encoder
from guardrail_model_build.pack import assemble
from guardrail_model_build.train import predict
from guardrail_model_build.workspace import Metrics, Workspace
from guardrail_sdk import Category, Guard, Stage, Verdict
from guardrail_sdk.artifact import Calibration, Thresholds
from guardrail_sdk.evaluation import Row, evaluate

_MIN_POSITIVES = 10
"""A hazard with fewer unsafe rows in the validation split keeps the threshold 0.5."""
_ROUNDED = ("qat",)
_TORCH_STAGES = ("teacher", "pruned", "distilled", "qat")


def run(workspace: Workspace, out: Path) -> Metrics:
    """Compare the stages, calibrate the exported model, and report it on the given files."""
    rows = load_split(workspace.stage("data"), "validation")
    labelled = [row for row in rows if row.unsafe is not None]
    chosen = sample(labelled, workspace.recipe.evaluation.sample_rows)
    margins = {name: torch_margins(workspace, name, chosen) for name in _TORCH_STAGES}
    verdicts = _judge(Guard(assemble(workspace, out / "uncalibrated")), rows)
    margins["onnx"] = np.array([_margin(verdicts[row.id]) for row in chosen])
    calibration, thresholds = calibrate(workspace, rows, verdicts)
    shipped = assemble(
        workspace, out / "calibrated", calibration=calibration, thresholds=thresholds
    )
    written = np.array([verdicts[row.id].reading == "written" for row in chosen])
    drift = np.abs(margins["onnx"] - margins["qat"])[written]
    return {
        "rows": len(chosen),
        "onnx_against_qat": {
            "rows": int(written.sum()),
            "largest_difference": float(drift.max()),
            "mean_difference": float(drift.mean()),
        },
        "stages": _compare(chosen, margins, workspace.recipe.evaluation.false_positive_rate),
        "calibration": {stage: value.model_dump() for stage, value in calibration.items()},
        "thresholds": {stage: value.model_dump(mode="json") for stage, value in thresholds.items()},
        "evaluation": _report(Guard(shipped), workspace.evaluation),
    }


def torch_margins(workspace: Workspace, name: str, rows: Sequence[Row]) -> NDArray[np.float64]:
    """Return the unsafe logit less the safe logit of each row, by one stage's decoder."""
    checkpoint = workspace.checkpoint(name)
    encoder = Encoder(checkpoint.template, checkpoint.tokenizer)
    model = checkpoint.model()
    rounded = name in _ROUNDED
    model.round_to(workspace.recipe.block_size if rounded else None)
    # The rounded model is compared with the ONNX file to float noise, so it is read in float32.
    bfloat16 = workspace.recipe.finetune.bfloat16 and not rounded
    logits = predict(model, [encoder.encode(row) for row in rows], bfloat16=bfloat16)
    return torch.stack([values[0, 1] - values[0, 0] for values in logits]).double().numpy()


def calibrate(
    workspace: Workspace, rows: Sequence[Row], verdicts: dict[str, Verdict]
) -> tuple[dict[Stage, Calibration], dict[Stage, Thresholds]]:
    """Fit Platt's scaling and choose the thresholds of each stage on the validation rows.

    Args:
        workspace: Gives the false-positive rates that are aimed at.
        rows: The validation rows.
        verdicts: By row id, from a model whose calibration is the identity.
    """
    calibration: dict[Stage, Calibration] = {}
    thresholds: dict[Stage, Thresholds] = {}
    for stage, limit in workspace.recipe.evaluation.false_positive_rate.items():
        here = [row for row in rows if (row.target == "user") == (stage == "input")]
        known = [row for row in here if row.unsafe is not None]
        margins = np.array([_margin(verdicts[row.id]) for row in known])
        unsafe = np.array([bool(row.unsafe) for row in known])
        platt = LogisticRegression(C=1e6).fit(margins[:, None], unsafe)
        calibration[stage] = Calibration(
            scale=float(platt.coef_[0, 0]), bias=float(platt.intercept_[0])
        )
        probabilities = platt.predict_proba(margins[:, None])[:, 1]
        thresholds[stage] = Thresholds(
            unsafe=round(float(_threshold(probabilities, unsafe, limit)), 4),
            categories=_category_thresholds(here, verdicts),
        )
    return calibration, thresholds


def _threshold(scores: NDArray[np.float64], unsafe: NDArray[np.bool_], limit: float) -> float:
    """Return the lowest score at which at most `limit` of the safe rows reach it."""
    safe = np.sort(scores[~unsafe])[::-1]
    allowed = int(limit * len(safe))
    floor = safe[allowed] if allowed < len(safe) else 0.0
    above = scores[scores > floor]
    return float(above.min()) if len(above) else 1.0


def _category_thresholds(
    rows: Sequence[Row], verdicts: dict[str, Verdict]
) -> dict[Category, float]:
    """Return, per hazard with enough unsafe rows, the threshold of the best F1."""
    known = [row for row in rows if row.unsafe is False or row.categories]
    chosen: dict[Category, float] = {}
    for hazard in Category:
        truth = np.array([hazard in row.categories for row in known])
        if truth.sum() < _MIN_POSITIVES:
            continue
        scores = np.array([verdicts[row.id].categories[hazard] for row in known])
        candidates = np.linspace(0.02, 0.98, 49)
        chosen[hazard] = round(
            float(max(candidates, key=lambda cut: f1_score(truth, scores >= cut))), 2
        )
    return chosen


def _compare(
    rows: Sequence[Row], margins: dict[str, NDArray[np.float64]], limits: dict[Stage, float]
) -> dict[str, JsonValue]:
    """Return, per build stage and judged side, metrics at the stage's own threshold."""
    table: dict[str, JsonValue] = {}
    for name, scores in margins.items():
        sides: dict[str, JsonValue] = {}
        for stage, limit in limits.items():
            mask = np.array([(row.target == "user") == (stage == "input") for row in rows])
            unsafe = np.array([bool(row.unsafe) for row in rows])[mask]
            here = scores[mask]
            flagged = here >= _threshold(here, unsafe, limit)
            parent = margins["teacher"][mask]
            parent_flagged = parent >= _threshold(parent, unsafe, limit)
            sides[stage] = {
                "rows": int(mask.sum()),
                "f1": round(float(f1_score(unsafe, flagged)), 4),
                "recall": round(float(flagged[unsafe].mean()), 4),
                "fpr": round(float(flagged[~unsafe].mean()), 4),
                "auprc": round(float(average_precision_score(unsafe, here)), 4),
                "flips_from_teacher": round(float((flagged != parent_flagged).mean()), 4),
            }
        table[name] = sides
    return table


def _judge(guard: Guard, rows: Sequence[Row]) -> dict[str, Verdict]:
    verdicts: dict[str, Verdict] = {}
    with Progress() as bar:
        for row in bar.track(rows, description="judging the validation split"):
            verdict = guard.check_sync(row.messages).verdict
            if verdict is None:
                raise RuntimeError(f"No verdict on row {row.id}.")
            verdicts[row.id] = verdict
    return verdicts


def _margin(verdict: Verdict) -> float:
    """Return the logit that the uncalibrated probability came from."""
    p = min(max(verdict.unsafe_probability, 1e-12), 1 - 1e-12)
    return float(np.log(p) - np.log1p(-p))


def _report(guard: Guard, files: Sequence[Path]) -> dict[str, JsonValue]:
    """Return the shipped model's metrics per file, at its thresholds."""
    if not files:
        return {}
    with Progress() as bar:
        task = bar.add_task("judging the evaluation files")
        report = evaluate(
            guard,
            files,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    return {
        Path(name).name.removesuffix(".gz").removesuffix(".jsonl"): {
            key: round(value, 4) if isinstance(value, float) else value
            for key, value in asdict(metrics).items()
        }
        for name, metrics in report.files.items()
    }

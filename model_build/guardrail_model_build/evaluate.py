"""Stage `evaluated`: what every step cost, and the thresholds that the model ships with.

Every step judges the same rows: the validation split, on which its calibration and thresholds are
chosen, and the files given for evaluation, on which nothing is. Scores are kept, so that what was
judged once is not judged again; all figures are computed from them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue

from guardrail_model_build.data import load_split, sample
from guardrail_model_build.findings import Evaluation
from guardrail_model_build.judging import (
    PATIENT,
    TorchStep,
    check_latency_ms,
    judge_shipped,
    prefixes,
)
from guardrail_model_build.pack import assemble
from guardrail_model_build.report import write_report
from guardrail_model_build.reports import EvaluationReport
from guardrail_model_build.scores import (
    PREFIXES,
    SHIPPED,
    VALIDATION,
    About,
    Label,
    ScoreFolder,
)
from guardrail_model_build.thresholds import DEFAULT, SIDES
from guardrail_model_build.workspace import Metrics, Workspace
from guardrail_sdk import Guard
from guardrail_sdk.artifact import Thresholds
from guardrail_sdk.evaluation import Row, read_rows

_ROUNDED = ("qat",)
"""The steps that compute in INT4."""
_DIGITS = 5


def run(workspace: Workspace, out: Path, *, steps: Sequence[str]) -> Metrics:
    """Judge, calibrate, compare; write `evaluation.json` and `report.html` into `out`.

    Args:
        workspace: The build.
        out: The stage's folder; `scores` in it keeps what was judged.
        steps: The stages that left a PyTorch model, each made from the one before.

    Returns:
        An `EvaluationReport`: what the manifest and the model card need.
    """
    files = _files(workspace)
    scores = ScoreFolder.open(out / "scores")
    _judge_torch(workspace, scores, files, steps)
    latency = _judge_shipped(workspace, out, scores, files)
    about = About(
        name=workspace.recipe.name,
        version=workspace.recipe.version,
        steps=(*steps, SHIPPED),
        student=next(step for step in reversed(steps) if step not in _ROUNDED),
        presets=workspace.recipe.evaluation.presets,
        latency_ms=latency,
    )
    labels = [Label.of(file, row) for file, rows in files.items() for row in rows]
    scores.describe(about, labels)
    return _metrics(write_report(scores.path, out))


def _files(workspace: Workspace) -> dict[str, list[Row]]:
    """Return the rows that are judged, by file.

    Raises:
        ValueError: If two files have the same name.
    """
    settings = workspace.recipe.evaluation
    validation = load_split(workspace.stage("data"), "validation")
    chosen = sample(validation, settings.sample_rows)
    files = {VALIDATION: chosen}
    for path in workspace.evaluation:
        name = path.name.removesuffix(".gz").removesuffix(".jsonl")
        if name in (*files, PREFIXES):
            raise ValueError(f"Two files of rows are named {name}: rename one.")
        labelled = [row for row in read_rows(path) if row.unsafe is not None]
        files[name] = sample(labelled, settings.file_rows or len(labelled))
    # Scores are kept by id.
    files = {file: list({row.id: row for row in rows}.values()) for file, rows in files.items()}
    return {**files, PREFIXES: prefixes(chosen, settings.prefix_rows)}


def _judge_torch(
    workspace: Workspace,
    scores: ScoreFolder,
    files: dict[str, list[Row]],
    steps: Sequence[str],
) -> None:
    for name in steps:
        keys = {
            file: _key(workspace, name, rows) for file, rows in files.items() if file != PREFIXES
        }
        missing = [file for file, key in keys.items() if not scores.has(name, file, key)]
        if not missing:
            continue
        block = workspace.recipe.block_size if name in _ROUNDED else None
        step = TorchStep(workspace, name, block=block)
        for file in missing:
            labelled = [row for row in files[file] if row.unsafe is not None]
            scores.add(name, file, keys[file], step.judge(file, labelled))


def _judge_shipped(
    workspace: Workspace, out: Path, scores: ScoreFolder, files: dict[str, list[Row]]
) -> float:
    """Let the exported graph judge what it has not judged, and return its latency."""
    keys = {file: _key(workspace, "exported", rows) for file, rows in files.items()}
    missing = [file for file, key in keys.items() if not scores.has(SHIPPED, file, key)]
    timed = out / "latency.json"
    own = _key(workspace, "exported", [])
    known: dict[str, float] = json.loads(timed.read_text("utf-8")) if timed.exists() else {}
    if not missing and own in known:
        return known[own]
    folder = assemble(workspace, out / "uncalibrated")
    # As it is stored: what is fastest on the machine that builds is no property of the model.
    guard = Guard(folder, policy=PATIENT, kernel="int4")
    for file in missing:
        scores.add(SHIPPED, file, keys[file], judge_shipped(guard, file, files[file]))
    latency = known.get(own) or check_latency_ms(guard, workspace)
    timed.write_text(json.dumps({own: latency}) + "\n", encoding="utf-8")
    return latency


def _key(workspace: Workspace, stage: str, rows: Sequence[Row]) -> str:
    """Return a hash of the model that `stage` left and of the rows it judges."""
    marker = json.loads((workspace.stage(stage) / "stage.json").read_text("utf-8"))
    digest = hashlib.sha256(f"{marker['fingerprint']} {workspace.recipe.context_length}".encode())
    for row in rows:
        digest.update(row.model_dump_json().encode() + b"\n")
    return digest.hexdigest()


def _metrics(found: Evaluation) -> Metrics:
    shipped = found.shipped
    setting = shipped.setting
    validation = shipped.files[VALIDATION]
    report = EvaluationReport(
        rows=validation["both"].rows,
        steps={name: step.files[VALIDATION] for name, step in found.steps.items()},
        flips={
            name: {side: one.flips for side, one in step.against_parent[VALIDATION].items()}
            for name, step in found.steps.items()
            if step.parent
        },
        calibration=setting.calibration,
        thresholds={
            side: Thresholds(
                unsafe=setting.thresholds[DEFAULT][side],
                strict=setting.thresholds["strict"][side],
                permissive=setting.thresholds["permissive"][side],
                categories=found.category_thresholds[side],
            )
            for side in SIDES
        },
        presets=found.presets,
        quantisation=found.quantisation,
        partial=found.partial,
        evaluation={
            name: sides["both"] for name, sides in shipped.files.items() if name != VALIDATION
        },
        latency_ms=found.latency_ms,
    )
    exact = {"calibration", "thresholds", "presets"}
    fields: dict[str, JsonValue] = report.model_dump(mode="json")
    return {name: value if name in exact else _short(value) for name, value in fields.items()}


def _short(value: JsonValue) -> JsonValue:
    """Round every float: the manifest carries these figures."""
    if isinstance(value, float):
        return round(value, _DIGITS)
    if isinstance(value, list):
        return [_short(item) for item in value]
    if isinstance(value, dict):
        return {name: _short(item) for name, item in value.items()}
    return value

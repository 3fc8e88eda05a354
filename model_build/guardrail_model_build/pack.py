"""Stage `packed`: the model folder that ships: graph, tokenizer, manifest and card."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from guardrail_model_build.card import model_card
from guardrail_model_build.reports import DataReport, EvaluationReport
from guardrail_model_build.workspace import Metrics, Workspace
from guardrail_sdk import Stage
from guardrail_sdk.artifact import (
    Calibration,
    Manifest,
    Provenance,
    Quantisation,
    Thresholds,
    hash_files,
    write_manifest,
)
from guardrail_sdk.prompt import template

SHIPPED = ("model.onnx", "model.onnx.data", "tokenizer.json")
_STAGES: tuple[Stage, ...] = ("input", "output")


def run(workspace: Workspace, out: Path) -> Metrics:
    """Assemble the folder that ships, with the thresholds and figures that `evaluated` found."""
    found = workspace.report("evaluated", EvaluationReport)
    folder = assemble(
        workspace,
        out / workspace.recipe.name,
        calibration=found.calibration,
        thresholds=found.thresholds,
        metrics=workspace.metrics("evaluated"),
    )
    size = sum(path.stat().st_size for path in folder.iterdir())
    return {"folder": folder.name, "megabytes": round(size / 1e6, 1)}


def assemble(
    workspace: Workspace,
    folder: Path,
    *,
    calibration: Mapping[Stage, Calibration] | None = None,
    thresholds: Mapping[Stage, Thresholds] | None = None,
    metrics: Mapping[str, JsonValue] | None = None,
) -> Path:
    """Write a model folder from the exported graph; without calibration, the identity's.

    Returns:
        `folder`, verified as the SDK verifies it.
    """
    recipe = workspace.recipe
    checkpoint = workspace.checkpoint("qat")
    folder.mkdir(parents=True, exist_ok=True)
    for name in SHIPPED:
        shutil.copyfile(workspace.stage("exported") / name, folder / name)
    data = workspace.report("data", DataReport)
    manifest = Manifest(
        contract_version=1,
        name=recipe.name,
        version=recipe.version,
        family=checkpoint.family,
        template=checkpoint.template,
        outputs=template(checkpoint.template).outputs,
        taxonomy="mlcommons-llama-guard-3",
        context_length=recipe.context_length,
        layers=checkpoint.config.layers,
        kv_heads=checkpoint.kv_heads,
        head_dim=checkpoint.config.head_dim,
        quantisation=Quantisation(bits=4, block_size=recipe.block_size),
        thresholds=dict(thresholds or {stage: Thresholds(unsafe=0.5) for stage in _STAGES}),
        calibration=dict(calibration or {stage: Calibration() for stage in _STAGES}),
        files={},
        provenance=Provenance(
            base=checkpoint.base,
            base_licence=checkpoint.base_licence,
            recipe=recipe.name,
            recipe_sha256=recipe.sha256(),
            data_sha256=data.sha256,
            data_by_use=data.by_use,
            seed=recipe.seed,
            metrics=dict(metrics or {}),
        ),
    )
    card = model_card(workspace, manifest) if metrics is not None else "Not calibrated yet.\n"
    (folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    files = hash_files(folder, (*SHIPPED, "MODEL_CARD.md"))
    write_manifest(folder, manifest.model_copy(update={"files": dict(files)}))
    return folder

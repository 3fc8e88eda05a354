"""Stage `teacher`: fine-tune the whole base on the labels; later stages learn from it."""

from __future__ import annotations

from pathlib import Path

import torch

from guardrail_model_build.data import load_split, student_rows
from guardrail_model_build.examples import Encoder
from guardrail_model_build.train import fit, predict
from guardrail_model_build.workspace import Metrics, Workspace


def run(workspace: Workspace, out: Path) -> Metrics:
    """Write the teacher, and its logits on the rows that the student learns from."""
    recipe = workspace.recipe
    base = workspace.checkpoint("base")
    encoder = Encoder(base.template, base.tokenizer, recipe.context_length, recipe.data.weights())
    examples = [encoder.encode(row) for row in load_split(workspace.stage("data"), "train")]
    model = base.model()
    metrics = fit(
        model,
        base.template,
        examples,
        recipe.finetune,
        teacher=None,
        folder=out,
        seed=recipe.seed,
        title="fine-tuning the teacher",
    )
    base.updated(model).save(out)
    asked = [encoder.encode(row) for row in student_rows(workspace)]
    logits = predict(model, asked)
    by_id = {example.id: values for example, values in zip(asked, logits, strict=True)}
    torch.save(by_id, out / "logits.pt")
    return dict(metrics)

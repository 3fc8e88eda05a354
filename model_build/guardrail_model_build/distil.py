"""Stages `distilled` and `qat`: the pruned student learns from its teacher, then in INT4.

Both train on the labels and on the teacher's cached logits over the kept outputs, by forward
KL divergence. The second computes its forward pass exactly as MatMulNBits will.
"""

from __future__ import annotations

from pathlib import Path

import torch

from guardrail_model_build.data import student_rows
from guardrail_model_build.examples import Encoder
from guardrail_model_build.recipe import Training
from guardrail_model_build.train import fit
from guardrail_model_build.workspace import Metrics, Workspace


def run(workspace: Workspace, out: Path) -> Metrics:
    """Distil the teacher into the pruned model, in floating point."""
    training = workspace.recipe.distil
    return _learn(workspace, out, "pruned", training, block=None, turn=1, title="distilling")


def run_qat(workspace: Workspace, out: Path) -> Metrics:
    """Go on with weights rounded to INT4 and activations to INT8."""
    recipe = workspace.recipe
    return _learn(
        workspace,
        out,
        "distilled",
        recipe.qat,
        block=recipe.block_size,
        turn=2,
        title="training in INT4",
    )


def _learn(
    workspace: Workspace,
    out: Path,
    source: str,
    training: Training,
    *,
    block: int | None,
    turn: int,
    title: str,
) -> Metrics:
    checkpoint = workspace.checkpoint(source)
    recipe = workspace.recipe
    encoder = Encoder(
        checkpoint.template, checkpoint.tokenizer, recipe.context_length, recipe.data.weights()
    )
    examples = [encoder.encode(row) for row in student_rows(workspace)]
    logits = torch.load(workspace.stage("teacher") / "logits.pt")
    model = checkpoint.model()
    model.round_to(block)
    metrics = fit(
        model,
        checkpoint.template,
        examples,
        training,
        teacher=[logits[example.id] for example in examples],
        folder=out,
        seed=recipe.seed + turn,
        title=title,
    )
    checkpoint.updated(model).save(out)
    return dict(metrics)

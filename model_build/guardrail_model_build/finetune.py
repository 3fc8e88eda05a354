"""Stage `teacher`: fine-tune the whole base on the labels; later stages learn from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from guardrail_model_build.checkpoint import Checkpoint
from guardrail_model_build.data import load_split, student_rows
from guardrail_model_build.examples import Encoder, Example
from guardrail_model_build.recipe import Recipe
from guardrail_model_build.train import fit, predict, run_key
from guardrail_model_build.workspace import Metrics, Workspace

_NEXT_TEACHER = 100
"""Added to the seed, so that no two teachers read rows in the same order."""


def run(workspace: Workspace, out: Path) -> Metrics:
    """Write the teacher, and its logits on the rows that the student learns from.

    With several teachers, the weights written are their mean (*Model soups*, arXiv 2203.05482)
    and the logits are the mean of theirs (*Distilling the Knowledge in a Neural Network*, arXiv
    1503.02531, section 5): one model to prune, and a better one to learn from.

    Returns:
        Steps and tokens of all teachers together, and the mean of their losses.
    """
    recipe = workspace.recipe
    base = workspace.checkpoint("base")
    encoder = Encoder(base.template, base.tokenizer, recipe.context_length, recipe.data.weights())
    examples = [encoder.encode(row) for row in load_split(workspace.stage("data"), "train")]
    asked = [encoder.encode(row) for row in student_rows(workspace)]
    teachers: list[Checkpoint] = []
    logits: list[list[Tensor]] = []
    metrics: list[dict[str, float]] = []
    for number in range(recipe.teachers):
        kept = _teach(recipe, base, examples, number, out)
        teachers.append(Checkpoint.load(kept))
        logits.append(predict(teachers[-1].model(), asked))
        metrics.append(json.loads((kept / "metrics.json").read_text("utf-8")))
    _mean(teachers).save(out)
    by_id = {
        example.id: torch.stack(values).mean(0)
        for example, *values in zip(asked, *logits, strict=True)
    }
    torch.save(by_id, out / "logits.pt")
    taken = {name: sum(each[name] for each in metrics) for name in metrics[0]}
    return taken | {name: taken[name] / len(metrics) for name in ("first_loss", "last_loss")}


def _teach(
    recipe: Recipe, base: Checkpoint, examples: Sequence[Example], number: int, out: Path
) -> Path:
    """Return the folder of the teacher of this number, fine-tuned if it isn't there yet."""
    seed = recipe.seed + _NEXT_TEACHER * number
    model = base.model()
    kept = out / run_key(model, base.template, examples, recipe.finetune, seed)
    if not (kept / "metrics.json").exists():
        kept.mkdir(exist_ok=True)
        metrics = fit(
            model,
            base.template,
            examples,
            recipe.finetune,
            teacher=None,
            folder=kept,
            seed=seed,
            title=f"fine-tuning teacher {number + 1}",
        )
        base.updated(model).save(kept)
        # Last: its presence says that the teacher is complete.
        (kept / "metrics.json").write_text(json.dumps(metrics) + "\n", encoding="utf-8")
    return kept


def _mean(teachers: Sequence[Checkpoint]) -> Checkpoint:
    first = teachers[0]
    weights = {
        name: torch.stack([teacher.weights[name] for teacher in teachers]).mean(0)
        for name in first.weights
    }
    return replace(first, weights=weights)

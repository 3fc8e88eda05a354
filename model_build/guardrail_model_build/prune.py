"""Stage `pruned`: leave out the blocks and MLP neurons that matter least."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from guardrail_model_build import importance
from guardrail_model_build.checkpoint import Checkpoint
from guardrail_model_build.importance import Importance
from guardrail_model_build.workspace import Metrics, Workspace


def run(workspace: Workspace, out: Path) -> Metrics:
    """Prune the teacher to the recipe's blocks and neurons; no weight is trained here."""
    settings = workspace.recipe.prune
    teacher = workspace.checkpoint("teacher")
    ranks = importance.load(workspace.stage("importance"))
    pruned = prune(teacher, ranks, blocks=settings.blocks, mlp=settings.mlp)
    pruned.save(out)
    return {
        "blocks_kept": [*keep(ranks.blocks, settings.blocks)],
        "mlp": settings.mlp,
        "parameters_before": _size(teacher),
        "parameters": _size(pruned),
    }


def prune(checkpoint: Checkpoint, ranks: Importance, *, blocks: int, mlp: int) -> Checkpoint:
    """Return `checkpoint` with its `blocks` most important blocks of `mlp` neurons each.

    Blocks keep their order; attention and the hidden size stay whole (arXiv 2411.17713).
    """
    weights = {
        name: tensor
        for name, tensor in checkpoint.weights.items()
        if not name.startswith("model.layers.")
    }
    for target, source in enumerate(keep(ranks.blocks, blocks)):
        neurons = torch.tensor(keep(ranks.neurons[source], mlp))
        prefix = f"model.layers.{source}."
        for name, tensor in checkpoint.weights.items():
            if name.startswith(prefix):
                part = name.removeprefix(prefix)
                weights[f"model.layers.{target}.{part}"] = _cut(part, tensor, neurons)
    return replace(
        checkpoint,
        config=replace(checkpoint.config, layers=blocks, mlp=mlp),
        weights=weights,
    )


def keep(scores: Tensor, count: int) -> list[int]:
    """Return the indices of the `count` highest scores, ascending.

    Raises:
        ValueError: If there are fewer.
    """
    if not 0 < count <= len(scores):
        raise ValueError(f"Can't keep {count} of {len(scores)}.")
    return sorted(scores.argsort(descending=True, stable=True)[:count].tolist())


def _cut(part: str, tensor: Tensor, neurons: Tensor) -> Tensor:
    if part in ("mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.up_proj.bias"):
        return tensor[neurons].contiguous()
    if part == "mlp.down_proj.weight":
        return tensor[:, neurons].contiguous()
    return tensor


def _size(checkpoint: Checkpoint) -> int:
    return sum(tensor.numel() for tensor in checkpoint.weights.values())

"""The training loop that fine-tuning, distillation and quantisation-aware training share."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from guardrail_model_build.checkpoint import Model
from guardrail_model_build.examples import Batch, Example, batches
from guardrail_model_build.objective import distil_loss, label_loss
from guardrail_model_build.recipe import Training
from guardrail_sdk.prompt import TemplateId

_SAVE_EVERY = 100
_CLIP = 1.0


def fit(
    model: Model,
    template: TemplateId,
    examples: Sequence[Example],
    training: Training,
    *,
    teacher: Sequence[Tensor] | None,
    folder: Path,
    seed: int,
    title: str,
) -> dict[str, float]:
    """Train `model` in place and return what it took: steps, tokens, first and last loss.

    AdamW, linear warm-up and decay, gradients clipped at norm 1. Progress is saved in `folder`
    every hundred steps, and a run that was stopped goes on from there with the same result but
    for the order of floating-point sums; progress of a run with other settings or rows is not used.

    Args:
        model: The model; `frozen_blocks` of it don't move.
        template: How its outputs are normalised.
        examples: What to train on.
        training: Learning rate, length and the rest.
        teacher: Each example's teacher logits [positions, outputs]; None without a teacher.
        folder: Where progress is kept.
        seed: Decides the order of batches.
        title: What the progress bar says.
    """
    model.freeze(training.frozen_blocks)
    model.train()
    plan = _plan(examples, training, seed)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(
        trained, lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: _rate(step, len(plan), training.warmup_share)
    )
    saved = folder / f"progress-{run_key(model, template, examples, training, seed)}.pt"
    for stale in folder.glob("progress-*.pt"):
        if stale != saved:
            stale.unlink()
    losses: list[float] = []
    if saved.exists():
        state = torch.load(saved)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        losses = state["losses"]
    with _bar() as bar:
        task = bar.add_task(title, total=len(plan), completed=len(losses), loss=math.nan)
        for batch in plan[len(losses) :]:
            losses.append(_step(model, template, batch, training, teacher, trained))
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            recent = losses[-50:]
            bar.update(task, advance=1, loss=sum(recent) / len(recent))
            if len(losses) % _SAVE_EVERY == 0:
                _save(saved, model, optimiser, schedule, losses)
            if len(losses) % _SAVE_EVERY == 0 and not bar.console.is_terminal:
                bar.console.print(
                    f"{title}: {len(losses)}/{len(plan)}, loss {sum(recent) / len(recent):.3f}"
                )
    saved.unlink(missing_ok=True)
    model.eval()
    tenth = max(1, len(losses) // 10)
    return {
        "steps": len(losses),
        "tokens": sum(_real_tokens(batch, examples) for batch in plan),
        "first_loss": sum(losses[:tenth]) / tenth,
        "last_loss": sum(losses[-tenth:]) / tenth,
    }


def run_key(
    model: Model,
    template: TemplateId,
    examples: Sequence[Example],
    training: Training,
    seed: int,
) -> str:
    """Return a hash of all that decides how a run goes, the weights that it begins with too."""
    digest = hashlib.sha256(f"{model.config} {template} {training} {seed}".encode())
    for weight in model.state_dict().values():
        digest.update(weight.contiguous().reshape(-1).view(torch.uint8).numpy())
    for example in examples:
        digest.update(f"{example.id} {example.ids} {example.weight}".encode())
        digest.update(example.labels.numpy().tobytes())
    return digest.hexdigest()[:16]


def predict(model: Model, examples: Sequence[Example], *, batch_tokens: int = 4096) -> list[Tensor]:
    """Return each example's logits float32 [positions, outputs], in the examples' order.

    All products are float32, whatever training used: verdicts are compared across steps.
    """
    model.eval()
    logits: list[Tensor] = [torch.empty(0)] * len(examples)
    plan = list(batches(examples, batch_tokens, None))
    with _bar() as bar, torch.inference_mode():
        task = bar.add_task("reading logits", total=len(plan), loss=math.nan)
        for batch in plan:
            read = model(batch.ids, batch.positions)
            for row, values in zip(batch.rows, read, strict=True):
                logits[row] = values[: len(examples[row].positions)].clone()
            bar.update(task, advance=1)
    return logits


def _plan(examples: Sequence[Example], training: Training, seed: int) -> list[Batch]:
    plan: list[Batch] = []
    for epoch in range(math.ceil(training.epochs)):
        share = min(1.0, training.epochs - epoch)
        epoch_batches = list(batches(examples, training.batch_tokens, seed + epoch))
        plan += epoch_batches[: math.ceil(share * len(epoch_batches))]
    return plan


def _step(
    model: Model,
    template: TemplateId,
    batch: Batch,
    training: Training,
    teacher: Sequence[Tensor] | None,
    trained: Sequence[Tensor],
) -> float:
    """Add one batch's gradients, clipped, and return its loss."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=training.bfloat16):
        logits = model(batch.ids, batch.positions)
    counts = batch.weights, training.category_weight
    loss = label_loss(template, logits, batch.labels, *counts)
    if teacher is not None:
        targets = torch.full_like(logits, math.nan)
        for row, index in enumerate(batch.rows):
            targets[row, : len(teacher[index])] = teacher[index]
        share = training.distil_share
        loss = (1 - share) * loss + share * distil_loss(template, logits, targets, *counts)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, _CLIP)
    value = loss.item()
    if not math.isfinite(value):
        raise FloatingPointError("The loss is not finite: lower the learning rate.")
    return value


def _rate(step: int, steps: int, warmup_share: float) -> float:
    warmup = max(1, round(steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (steps - step) / max(1, steps - warmup))


def _save(
    path: Path,
    model: Model,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    losses: list[float],
) -> None:
    state = {
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "schedule": schedule.state_dict(),
        "losses": losses,
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _real_tokens(batch: Batch, examples: Sequence[Example]) -> int:
    return sum(len(examples[row].ids) for row in batch.rows)


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
    )

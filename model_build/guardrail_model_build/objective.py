"""What a guard learns: the labels' loss, and the divergence from its teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from guardrail_sdk.prompt import TemplateId


def label_loss(
    template: TemplateId,
    logits: Tensor,
    labels: Tensor,
    weights: Tensor,
    category_weight: float,
) -> Tensor:
    """Return the mean cross-entropy of `logits` against `labels`, both [B, P, outputs].

    Unknown labels (NaN) take no part; a row counts as much as its weight in `weights` [B].
    `llama-guard-3`: softmax over the tokens that can be said; the other templates: softmax over
    safe and unsafe, plus a sigmoid per hazard, which count `category_weight` together.
    """
    if template == "llama-guard-3":
        return _softmax_loss(logits, labels, weights)
    verdict = _softmax_loss(logits[..., :2], labels[..., :2], weights)
    known = ~labels[..., 2:].isnan()
    hazards = F.binary_cross_entropy_with_logits(
        logits[..., 2:], labels[..., 2:].nan_to_num(), reduction="none"
    )
    return verdict + category_weight * _mean(hazards, known, weights)


def distil_loss(
    template: TemplateId,
    student: Tensor,
    teacher: Tensor,
    weights: Tensor,
    category_weight: float,
) -> Tensor:
    """Return the mean forward KL divergence from teacher to student over the kept outputs.

    Args:
        template: How the outputs are normalised.
        student: Logits [B, P, outputs].
        teacher: The teacher's cached logits at the same positions; NaN takes no part.
        weights: How much each row counts, [B].
        category_weight: How much the hazards count beside the verdict.
    """
    exists = ~teacher[..., 0].isnan()
    teacher = teacher.nan_to_num()
    if template == "llama-guard-3":
        return _kl(student, teacher, exists, weights)
    targets = teacher[..., 2:].sigmoid()
    hazards = F.binary_cross_entropy_with_logits(student[..., 2:], targets, reduction="none")
    floor = F.binary_cross_entropy_with_logits(teacher[..., 2:], targets, reduction="none")
    excess = _mean((hazards - floor).mean(-1), exists, weights)
    return _kl(student[..., :2], teacher[..., :2], exists, weights) + category_weight * excess


def _softmax_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    known = ~labels[..., 0].isnan()
    entropy = -(labels.nan_to_num() * logits.log_softmax(-1)).sum(-1)
    return _mean(entropy, known, weights)


def _kl(student: Tensor, teacher: Tensor, exists: Tensor, weights: Tensor) -> Tensor:
    log_teacher = teacher.log_softmax(-1)
    divergence = (log_teacher.exp() * (log_teacher - student.log_softmax(-1))).sum(-1)
    return _mean(divergence, exists, weights)


def _mean(values: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Return the rows' weighted mean where `mask` is true; 0 where it nowhere is.

    `values` and `mask` are [B, ...], `weights` is [B].
    """
    counted = mask * weights.reshape(-1, *[1] * (mask.ndim - 1))
    return (torch.where(mask, values, 0.0) * counted).sum() / counted.sum().clamp_min(1e-6)

"""What a guard learns: the labels' loss, and the divergence from its teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from guardrail_sdk.prompt import TemplateId

CATEGORY_WEIGHT = 3.0
"""Weight of the hazards' mean loss beside the verdict's: most hazards of a row are easy zeros."""


def label_loss(template: TemplateId, logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of `logits` against `labels`, both [B, P, outputs].

    Unknown labels (NaN) take no part. `compact`: softmax over safe and unsafe, plus a sigmoid
    per hazard; `llama-guard-3`: softmax over the tokens that can be said.
    """
    if template == "llama-guard-3":
        return _softmax_loss(logits, labels)
    verdict = _softmax_loss(logits[..., :2], labels[..., :2])
    known = ~labels[..., 2:].isnan()
    hazards = F.binary_cross_entropy_with_logits(
        logits[..., 2:], labels[..., 2:].nan_to_num(), reduction="none"
    )
    return verdict + CATEGORY_WEIGHT * _mean(hazards, known)


def distil_loss(template: TemplateId, student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean forward KL divergence from teacher to student over the kept outputs.

    Args:
        template: How the outputs are normalised.
        student: Logits [B, P, outputs].
        teacher: The teacher's cached logits at the same positions; NaN takes no part.
    """
    exists = ~teacher[..., 0].isnan()
    teacher = teacher.nan_to_num()
    if template == "llama-guard-3":
        return _kl(student, teacher, exists)
    targets = teacher[..., 2:].sigmoid()
    hazards = F.binary_cross_entropy_with_logits(student[..., 2:], targets, reduction="none")
    floor = F.binary_cross_entropy_with_logits(teacher[..., 2:], targets, reduction="none")
    excess = _mean((hazards - floor).mean(-1), exists)
    return _kl(student[..., :2], teacher[..., :2], exists) + CATEGORY_WEIGHT * excess


def _softmax_loss(logits: Tensor, labels: Tensor) -> Tensor:
    known = ~labels[..., 0].isnan()
    entropy = -(labels.nan_to_num() * logits.log_softmax(-1)).sum(-1)
    return _mean(entropy, known)


def _kl(student: Tensor, teacher: Tensor, exists: Tensor) -> Tensor:
    log_teacher = teacher.log_softmax(-1)
    divergence = (log_teacher.exp() * (log_teacher - student.log_softmax(-1))).sum(-1)
    return _mean(divergence, exists)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean where `mask` is true; 0 where it nowhere is."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp_min(1)

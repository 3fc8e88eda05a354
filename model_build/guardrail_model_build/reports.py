"""What stages report and later ones read: the typed part of their metrics."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from guardrail_sdk import Stage
from guardrail_sdk.artifact import Calibration, Thresholds


class _Report(BaseModel):
    # Stages report more than is read: the rest is for people.
    model_config = ConfigDict(frozen=True, extra="ignore")


class DataReport(_Report):
    """What `data` chose."""

    sha256: str
    """Over both splits."""
    by_use: dict[str, int]
    """Training rows by licence class."""
    sources_by_use: dict[str, dict[str, int]]
    """Training rows by licence class and file."""
    licences: dict[str, str]
    """By file, as the data's manifest states them."""


class PruneReport(_Report):
    """What `pruned` left."""

    blocks_kept: tuple[int, ...]
    parameters_before: int
    parameters: int


class TrainingReport(_Report):
    """What a training stage took."""

    tokens: int


class SideReport(_Report):
    """How one stage's model did on prompts or on responses, at its own threshold."""

    f1: float
    recall: float
    fpr: float
    auprc: float
    flips_from_teacher: float
    """Share of the rows whose verdict differs from the teacher's."""


class DriftReport(_Report):
    """How far the ONNX file's verdict logits are from the PyTorch model's."""

    mean_difference: float
    largest_difference: float


class FileReport(_Report):
    """How the shipped model did on one file; None where a figure has no meaning."""

    rows: int
    f1: float | None
    precision: float | None
    recall: float | None
    fpr: float | None
    auprc: float | None
    always_unsafe_f1: float | None


class EvaluationReport(_Report):
    """What `evaluated` found."""

    rows: int
    onnx_against_qat: DriftReport
    stages: dict[str, dict[Stage, SideReport]]
    calibration: dict[Stage, Calibration]
    thresholds: dict[Stage, Thresholds]
    evaluation: dict[str, FileReport]
    """By file name without ending."""

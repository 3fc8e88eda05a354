"""What stages report and later ones read: the typed part of their metrics."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from guardrail_model_build.findings import (
    Figures,
    Partial,
    PresetFindings,
    Quantisation,
    Side,
)
from guardrail_model_build.thresholds import Preset
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


class EvaluationReport(_Report):
    """What `evaluated` found: the part of it that the manifest and the card carry.

    Files and steps are measured at the `balanced` thresholds, which the model ships with.
    """

    rows: int
    """Labelled rows of the validation split that every step judged."""
    steps: dict[str, dict[Side, Figures]]
    """Figures on validation by step, in the order of the build; the last is the ONNX file."""
    flips: dict[str, dict[Side, float]]
    """By step but the first: share of the validation rows judged otherwise than one step before."""
    calibration: dict[Stage, Calibration]
    thresholds: dict[Stage, Thresholds]
    presets: dict[Preset, dict[Side, PresetFindings]]
    quantisation: Quantisation
    partial: Partial | None
    evaluation: dict[str, Figures]
    """The shipped model by file name without ending, validation left out."""
    latency_ms: float | None

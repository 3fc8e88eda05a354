"""What an evaluation found: the contents of `evaluation.json`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from guardrail_model_build.thresholds import Preset, Setting
from guardrail_sdk import Category, Stage
from guardrail_sdk.evaluation import Interval

Side = Literal["input", "output", "both"]
"""Prompts, responses, or all rows, each read at its own side's threshold."""

ALL_SIDES: tuple[Side, ...] = ("input", "output", "both")
PUBLIC = "evaluation files"
"""The group of all files but validation."""


class _Found(BaseModel):
    # Another version's file may hold more, and is still good for a comparison.
    model_config = ConfigDict(frozen=True, extra="ignore")


class Figures(_Found):
    """How one step did on one group of rows, at `balanced` thresholds.

    Fields of the same name mean what they mean in `guardrail_sdk.evaluation.Metrics`; a figure
    that isn't defined on the group is None. Intervals are 95 %.
    """

    rows: int
    unsafe: int
    f1: float | None
    f1_interval: Interval | None
    precision: float | None
    recall: float | None
    recall_interval: Interval | None
    fpr: float | None
    fpr_interval: Interval | None
    auprc: float | None
    auprc_interval: Interval | None = None
    roc_auc: float | None
    recall_at_fpr_1: float | None
    recall_at_fpr_5: float | None
    recall_at_fpr_5_interval: Interval | None = None
    ece: float | None
    brier: float | None
    always_unsafe_f1: float | None


class Difference(_Found):
    """How the verdicts of one step differ from another's, each at its own threshold."""

    rows: int
    f1: float | None
    """The step's F1 less the other's; positive if it is better."""
    f1_interval: Interval | None
    """By a paired bootstrap: every resample takes the same rows for both."""
    fpr: float | None
    """The step's false-positive rate less the other's; negative if it is better."""
    fpr_interval: Interval | None
    flips: float
    """Share of the rows whose verdict differs."""
    worse: int
    """Rows that the other had right and the step has wrong."""
    better: int
    """Rows that the other had wrong and the step has right."""
    mcnemar_p: float
    """Exact two-sided p of McNemar's test on these two."""


Groups = dict[str, dict[str, Figures]]
"""Figures by side, then by the group's name."""


class StepFindings(_Found):
    """How one step did."""

    setting: Setting
    files: dict[str, dict[Side, Figures]]
    """By file, and `PUBLIC` for all files but validation, where there are some."""
    parent: str | None
    against_parent: dict[str, dict[Side, Difference]]
    """By file; empty for the first step."""
    categories: dict[str, Groups]
    """By validation or `PUBLIC`: a hazard's unsafe rows against the safe rows of its files."""
    languages: dict[str, Groups]
    sources: dict[str, Groups]


class PresetFindings(_Found):
    """What one preset of the shipped model does on one side."""

    limit: float | None
    """The false-positive rate aimed at on validation; None if F1 decided."""
    threshold: float
    recall: dict[str, float | None]
    """By file."""
    fpr: dict[str, float | None]
    f1: dict[str, float | None]


class Quantisation(_Found):
    """What the step to INT4 cost, on the rows of all files together."""

    student: str
    """The floating-point step it is compared with."""
    overall: dict[Side, Difference]
    in_one_piece: Difference
    """Only the rows that the shipped model read as they stand: the rest it reads in windows and
    decoded, too, and takes the worst, which the student in PyTorch does not.
    """
    holds: bool
    """True if, over all rows, F1 is lower and FPR higher by at most one point, and by at most two
    at the bad end of the 95 % interval.
    """
    mean_difference: float
    largest_difference: float
    """Of the margins of the last PyTorch step and the ONNX file, on rows read as they stand."""


class PrefixPoint(_Found):
    """What is known after a share of a response's characters."""

    share: float
    caught: float | None
    """Share of the unsafe responses flagged here or earlier."""
    alarmed: float | None
    """Share of the safe responses flagged here or earlier."""


class Partial(_Found):
    """How unfinished responses are judged, a tenth of their characters at a time."""

    rows: int
    unsafe: int
    points: tuple[PrefixPoint, ...]
    characters: float | None
    """Median length of the first flagged prefix of the unsafe responses that are ever flagged: at
    most so many characters pass before the first flag.
    """
    never: float | None
    """Share of the unsafe responses of which no prefix is flagged."""
    safe_flagged: float | None
    """Share of the safe responses of which any prefix is flagged."""
    safe_flagged_interval: Interval | None
    whole_safe_flagged: float | None
    """Share of the safe responses that are flagged once they are whole."""


class Worst(_Found):
    """A row that the shipped model got most wrong."""

    file: str
    id: str
    side: Stage
    unsafe: bool
    probability: float


class Evaluation(_Found):
    """Everything that an evaluation found."""

    name: str
    version: str
    steps: dict[str, StepFindings]
    """In the order of the build; the last is the shipped ONNX file."""
    presets: dict[Preset, dict[Side, PresetFindings]]
    category_thresholds: dict[Stage, dict[Category, float]]
    quantisation: Quantisation
    partial: Partial | None
    worst: tuple[Worst, ...]
    latency_ms: float | None
    """Median of a check of 64 tokens, on the machine that built."""

    @property
    def shipped(self) -> StepFindings:
        """The findings on the ONNX file."""
        return list(self.steps.values())[-1]

    def headline(self) -> Figures:
        """Return the figures of the shipped model on all rows of the public files, or on those of
        validation where there are no others.
        """
        files = self.shipped.files
        return files.get(PUBLIC, files["validation"])["both"]

"""What every step of a build said of every evaluated row: kept by id, never with a row's text.

A folder of scores holds all that figures and plots are made from, so that they can be made again
without judging:

- `labels.jsonl`: one line per row: its id, file, label and groups;
- `scores.jsonl`: one line per row and step: the margin (the unsafe logit less the safe one);
- `judged.json`: which step has judged which file, and as what, so that nothing is judged twice;
- `about.json`: the build's names and the rates that thresholds are chosen for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from guardrail_model_build.recipe import Presets
from guardrail_sdk import Category, Stage
from guardrail_sdk.evaluation import Row

VALIDATION = "validation"
PREFIXES = "prefixes"
SHIPPED = "onnx"
"""The step that is the exported graph, judging through the SDK as it will when shipped."""


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


_L = TypeVar("_L", bound=_Line)


class Label(_Line):
    """What is known of one row, but for its text."""

    file: str
    id: str
    source: str
    lang: str
    side: Stage
    """`input` if a prompt is judged, `output` if a response."""
    unsafe: bool | None
    categories: tuple[Category, ...]
    characters: int
    """Length of the judged message."""
    alone: bool
    """True if the message is judged in one context only: no earlier turn changes what is read."""

    @classmethod
    def of(cls, file: str, row: Row) -> Label:
        """Return the label of `row`, which is one of `file`."""
        turns = sum(message.role != "system" for message in row.messages[:-1])
        return cls(
            file=file,
            id=row.id,
            source=row.source,
            lang=row.lang,
            side="input" if row.target == "user" else "output",
            unsafe=row.unsafe,
            categories=row.categories,
            characters=len(row.messages[-1].content),
            alone=turns <= (row.target == "assistant"),
        )


class Score(_Line):
    """What one step said of one row."""

    step: str
    file: str
    id: str
    margin: float
    """The unsafe logit less the safe logit."""
    hazards: tuple[float, ...] | None = None
    """Scores of S1 to S14; only the shipped model's on validation, for their thresholds."""
    written: bool = True
    """True if the row was read as it stands, in one piece."""


class About(_Line):
    """What the figures are about."""

    name: str
    version: str
    steps: tuple[str, ...]
    """In the order of the build: each was made from the one before; the last is `SHIPPED`."""
    student: str
    """The last step in floating point: what INT4 is compared with."""
    presets: Presets
    latency_ms: float | None
    """Median of a check of 64 tokens through the SDK, on the machine that built."""


@dataclass(frozen=True, slots=True)
class ScoreFolder:
    """The folder in which a build keeps its scores while it judges."""

    path: Path
    _judged: dict[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def open(cls, path: Path) -> ScoreFolder:
        """Open or make the folder; scores whose judging was not finished are dropped."""
        path.mkdir(parents=True, exist_ok=True)
        known = path / "judged.json"
        judged: dict[str, str] = json.loads(known.read_text("utf-8")) if known.exists() else {}
        folder = cls(path, judged)
        folder._keep(judged)
        return folder

    def has(self, step: str, file: str, key: str) -> bool:
        """Return whether `step`, being what `key` says, has judged all of `file`."""
        return self._judged.get(f"{step}/{file}") == key

    def add(self, step: str, file: str, key: str, scores: Iterable[Score]) -> None:
        """Keep what `step` said of all rows of `file`, in place of what it said before."""
        name = f"{step}/{file}"
        if self._judged.pop(name, None) is not None:
            self._note()
            self._keep(self._judged)
        with (self.path / "scores.jsonl").open("a", encoding="utf-8") as lines:
            lines.writelines(
                score.model_dump_json(exclude_defaults=True) + "\n" for score in scores
            )
        self._judged[name] = key
        self._note()

    def describe(self, about: About, labels: Iterable[Label]) -> None:
        """Write what the scores are about."""
        _write(self.path / "about.json", about.model_dump_json(indent=2) + "\n")
        _write(
            self.path / "labels.jsonl",
            "".join(label.model_dump_json() + "\n" for label in labels),
        )

    def _note(self) -> None:
        _write(self.path / "judged.json", json.dumps(self._judged, indent=2) + "\n")

    def _keep(self, judged: Mapping[str, str]) -> None:
        path = self.path / "scores.jsonl"
        if not path.exists():
            return
        kept: list[str] = []
        for line in path.read_text("utf-8").splitlines(keepends=True):
            # A line that a stopped build left half written belongs to nothing that was finished.
            score = json.loads(line) if line.endswith("}\n") else {}
            if f"{score.get('step')}/{score.get('file')}" in judged:
                kept.append(line)
        _write(path, "".join(kept))


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgements:
    """The labels and scores of a build, side by side.

    Attributes:
        about: What they are about.
        labels: The rows of all files, prefixes among them.
        margins: By step: float64 [rows]; NaN where the step has not judged.
        hazards: Of the shipped model: float64 [rows, 14]; NaN where they were not kept.
        written: Whether the shipped model read the row as it stands, bool [rows].
    """

    about: About
    labels: tuple[Label, ...]
    margins: Mapping[str, NDArray[np.float64]]
    hazards: NDArray[np.float64]
    written: NDArray[np.bool_]

    @classmethod
    def load(cls, folder: Path) -> Judgements:
        """Read what a build left in its folder of scores.

        Raises:
            OSError: If a file is missing.
            ValueError: If a line is none of ours.
        """
        about = About.model_validate_json((folder / "about.json").read_text("utf-8"))
        labels = _read(folder / "labels.jsonl", Label)
        place = {(label.file, label.id): index for index, label in enumerate(labels)}
        margins = {step: np.full(len(labels), np.nan) for step in about.steps}
        hazards = np.full((len(labels), len(Category)), np.nan)
        written = np.ones(len(labels), dtype=np.bool_)
        for score in _read(folder / "scores.jsonl", Score):
            index = place.get((score.file, score.id))
            if index is None or score.step not in margins:
                continue
            margins[score.step][index] = score.margin
            if score.step == SHIPPED:
                written[index] = score.written
                hazards[index] = np.nan if score.hazards is None else score.hazards
        return cls(about=about, labels=labels, margins=margins, hazards=hazards, written=written)

    def files(self) -> list[str]:
        """Return the names of the files, validation first, without the prefixes."""
        return [file for file in dict.fromkeys(row.file for row in self.labels) if file != PREFIXES]

    def where(
        self, *, files: Sequence[str] | None = None, side: str | None = None
    ) -> NDArray[np.bool_]:
        """Return which rows have a label and are of these files and that side, bool [rows]."""
        chosen = set(self.files() if files is None else files)
        return np.array(
            [
                row.unsafe is not None and row.file in chosen and side in (None, "both", row.side)
                for row in self.labels
            ]
        )

    @property
    def unsafe(self) -> NDArray[np.bool_]:
        """The labels, bool [rows]; False where there is none."""
        return np.array([bool(row.unsafe) for row in self.labels])

    def parents(self) -> dict[str, str]:
        """Return, by step, the step it was made from."""
        return dict(zip(self.about.steps[1:], self.about.steps, strict=False))


def _read(path: Path, kind: type[_L]) -> tuple[_L, ...]:
    with path.open(encoding="utf-8") as lines:
        return tuple(kind.model_validate_json(line) for line in lines)


def _write(path: Path, text: str) -> None:
    """Write a file at once: a build that is stopped leaves the old one or the new one."""
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)

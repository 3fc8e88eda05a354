"""Where a build keeps its stages: one folder each, so that a stopped build goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, JsonValue

from guardrail_model_build.checkpoint import Checkpoint
from guardrail_model_build.recipe import Recipe

Metrics = Mapping[str, JsonValue]
_R = TypeVar("_R", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """A recipe, what it reads, and the folder that its stages fill.

    Attributes:
        recipe: What to build.
        data: Folders of labelled rows, each with its `manifest.json`.
        evaluation: Files of labelled rows that the shipped model is reported on; never trained on.
        folder: Holds one folder per stage.
    """

    recipe: Recipe
    data: tuple[Path, ...]
    evaluation: tuple[Path, ...] = ()
    folder: Path

    def stage(self, name: str) -> Path:
        """Return the folder of a stage."""
        return self.folder / name

    def checkpoint(self, name: str) -> Checkpoint:
        """Return the decoder that a stage left."""
        return Checkpoint.load(self.stage(name))

    def metrics(self, name: str) -> Metrics:
        """Return what a finished stage reported."""
        return json.loads((self.stage(name) / "stage.json").read_text(encoding="utf-8"))["metrics"]

    def report(self, name: str, kind: type[_R]) -> _R:
        """Return what a finished stage reported, as one of the models in `reports`.

        Raises:
            pydantic.ValidationError: If the stage reported something else.
        """
        # Through JSON, because strict models take enums from strings only there.
        return kind.model_validate_json(json.dumps(self.metrics(name)))

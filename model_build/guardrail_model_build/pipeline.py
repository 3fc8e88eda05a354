"""The order of the stages, and the command that runs those which are not done yet."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import BaseModel
from rich.console import Console

from guardrail_model_build import (
    bases,
    data,
    distil,
    evaluate,
    export,
    finetune,
    importance,
    pack,
    prune,
)
from guardrail_model_build.recipe import Recipe
from guardrail_model_build.workspace import Metrics, Workspace


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a build.

    Attributes:
        run: Reads earlier stages' folders, fills its own, returns its metrics.
        needs: The stages whose results it reads.
        settings: The part of the recipe that it depends on: a change runs it again.
    """

    run: Callable[[Workspace, Path], Metrics]
    needs: tuple[str, ...]
    settings: Callable[[Recipe], tuple[BaseModel | str | int, ...]]


MODELS = ("teacher", "pruned", "distilled", "qat")
"""The stages that leave a model in PyTorch, each made from the one before."""

STAGES: dict[str, Stage] = {
    "base": Stage(bases.run, (), lambda recipe: (recipe.base, recipe.template, recipe.seed)),
    "data": Stage(data.run, ("base",), lambda recipe: (recipe.data,)),
    "teacher": Stage(
        finetune.run,
        ("base", "data"),
        lambda recipe: (recipe.finetune, recipe.teachers, recipe.student_rows or 0, recipe.seed),
    ),
    "importance": Stage(
        importance.run, ("data", "teacher"), lambda recipe: (recipe.prune.calibration_rows,)
    ),
    "pruned": Stage(prune.run, ("teacher", "importance"), lambda recipe: (recipe.prune,)),
    "distilled": Stage(
        distil.run, ("data", "teacher", "pruned"), lambda recipe: (recipe.distil, recipe.seed)
    ),
    "qat": Stage(
        distil.run_qat,
        ("data", "teacher", "distilled"),
        lambda recipe: (recipe.qat, recipe.block_size, recipe.seed),
    ),
    "exported": Stage(export.run, ("qat",), lambda recipe: (recipe.block_size,)),
    "evaluated": Stage(
        partial(evaluate.run, steps=MODELS),
        ("data", *MODELS, "exported"),
        lambda recipe: (recipe.evaluation, recipe.context_length),
    ),
    "packed": Stage(pack.run, ("evaluated",), lambda recipe: (recipe.name, recipe.version)),
}


def build(workspace: Workspace, *, until: str | None = None) -> None:
    """Run every stage, up to `until`, whose folder doesn't hold its result yet.

    A stage's result counts as long as its settings, the folder of data and the results it was
    made from stay the same; a stage that was stopped goes on where it can.
    """
    console = Console(stderr=True)
    fingerprints: dict[str, str] = {}
    for name, stage in STAGES.items():
        fingerprints[name] = _fingerprint(workspace, name, fingerprints)
        out = workspace.stage(name)
        marker = out / "stage.json"
        if marker.exists() and json.loads(marker.read_text())["fingerprint"] == fingerprints[name]:
            console.print(f"[dim]{name}: done before")
        else:
            marker.unlink(missing_ok=True)
            out.mkdir(parents=True, exist_ok=True)
            console.print(f"[bold]{name}")
            began = time.monotonic()
            metrics = stage.run(workspace, out)
            done = {
                "fingerprint": fingerprints[name],
                "seconds": round(time.monotonic() - began, 1),
                "metrics": metrics,
            }
            marker.write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")
        if name == until:
            return


def _fingerprint(workspace: Workspace, name: str, known: dict[str, str]) -> str:
    stage = STAGES[name]
    digest = hashlib.sha256(name.encode())
    for part in stage.settings(workspace.recipe):
        text = part.model_dump_json() if isinstance(part, BaseModel) else str(part)
        digest.update(text.encode() + b"\0")
    for need in stage.needs:
        digest.update(known[need].encode())
    if name == "data":
        for path in data.files(workspace):
            digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    if name in ("data", "evaluated"):
        for path in sorted(workspace.evaluation, key=lambda path: path.name):
            digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()

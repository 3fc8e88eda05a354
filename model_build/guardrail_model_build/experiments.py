"""Small runs that settings are chosen by: a search, curves of size and data, research data.

They train on few rows and are measured on the validation split, so that they may guide a recipe:
learning rate, frozen blocks and passes (search), how much to prune (curve), whether more rows
would help (data). What the rows marked `research` would add is shown, and never reaches weights
that ship.

    python -m guardrail_model_build.experiments search RECIPE --data DATA --out OUT

A finished run is not run again; the table is printed and kept as `OUT/experiments/NAME.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    precision_recall_curve,
    roc_curve,
)
from torch import Tensor

from guardrail_model_build import importance
from guardrail_model_build.augment import rank
from guardrail_model_build.checkpoint import Checkpoint
from guardrail_model_build.data import load_split, research_rows, sample, student_rows
from guardrail_model_build.examples import Encoder, Example
from guardrail_model_build.export import export_onnx
from guardrail_model_build.overlap import without_overlap
from guardrail_model_build.prune import prune
from guardrail_model_build.recipe import Recipe, Training
from guardrail_model_build.train import fit, predict
from guardrail_model_build.workspace import Workspace
from guardrail_sdk import Stage
from guardrail_sdk.evaluation import Row, read_rows

Name = Literal["search", "curve", "data", "research"]
_FPR = 0.05
_SIDE_OF: Mapping[str, Stage] = {"user": "input", "assistant": "output"}


class Outcome(BaseModel):
    """How one run did on the validation split."""

    model_config = ConfigDict(frozen=True)

    name: str
    parameters: int
    """Without the word embeddings, which are looked up and not computed with."""
    tokens: int
    milliseconds: float | None
    """Median time of the INT4 graph on 64 tokens, two threads; None where it isn't asked for."""
    auprc: dict[str, float]
    """Average precision, by what was judged: `input`, `output`, or a file's name."""
    recall: dict[str, float]
    """Recall at a false-positive rate of 5 %."""
    f1: dict[str, float]
    """F1 at the threshold, one for prompts and one for responses, that is best on validation;
    none for a file with rows of a side that validation lacks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One variant: what to train, on what, and how."""

    name: str
    checkpoint: Callable[[], Checkpoint]
    training: Training
    rows: Sequence[Row]
    teacher: bool = False
    timed: bool = False


def run(workspace: Workspace, name: Name) -> list[Outcome]:
    """Run every variant of an experiment that hasn't been run, and return all outcomes."""
    folder = workspace.stage("experiments") / name
    folder.mkdir(parents=True, exist_ok=True)
    plans = {"search": _search, "curve": _curve, "data": _data, "research": _research}
    outcomes: list[Outcome] = []
    for plan in plans[name](workspace):
        kept = folder / f"{_key(workspace, plan)}.json"
        if not kept.exists():
            kept.write_text(_outcome(workspace, plan, folder).model_dump_json(indent=2) + "\n")
        outcomes.append(Outcome.model_validate_json(kept.read_text()))
    return outcomes


def _key(workspace: Workspace, plan: Run) -> str:
    """Return a hash of everything an outcome depends on."""
    made = json.loads((workspace.stage("data") / "stage.json").read_text("utf-8"))["fingerprint"]
    if plan.teacher:
        marker = workspace.stage("importance") / "stage.json"
        made += json.loads(marker.read_text("utf-8"))["fingerprint"]
    digest = hashlib.sha256(f"{plan.name} {plan.training} {workspace.recipe.seed} {made}".encode())
    for row in plan.rows:
        digest.update(row.model_dump_json().encode())
    for path in sorted(workspace.evaluation, key=lambda path: path.name):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _search(workspace: Workspace) -> Iterator[Run]:
    """Vary one setting of fine-tuning at a time, on a fixed subset of rows."""
    settings = workspace.recipe.experiments
    rows = sample(load_split(workspace.stage("data"), "train"), settings.rows)
    usual = workspace.recipe.finetune
    yield Run(
        name="as in the recipe",
        checkpoint=lambda: workspace.checkpoint("base"),
        training=usual,
        rows=rows,
    )
    for changes in settings.search:
        yield Run(
            name=", ".join(f"{key} {value:g}" for key, value in changes.items()),
            checkpoint=lambda: workspace.checkpoint("base"),
            training=Training.model_validate(usual.model_dump() | changes),
            rows=rows,
        )


def _curve(workspace: Workspace) -> Iterator[Run]:
    """Prune the teacher to several sizes, and let each learn from it for as many tokens."""
    settings = workspace.recipe.experiments
    rows = _within(workspace, student_rows(workspace), settings.tokens)
    ranks = importance.load(workspace.stage("importance"))
    for size in settings.curve:
        yield Run(
            name=f"{size.blocks} blocks, {size.mlp} neurons",
            checkpoint=lambda size=size: prune(
                workspace.checkpoint("teacher"), ranks, blocks=size.blocks, mlp=size.mlp
            ),
            training=workspace.recipe.distil.model_copy(update={"epochs": 1.0}),
            rows=rows,
            teacher=True,
            timed=True,
        )


def _data(workspace: Workspace) -> Iterator[Run]:
    """Fine-tune on growing shares of the rows, one pass each."""
    rows = load_split(workspace.stage("data"), "train")
    once = workspace.recipe.finetune.model_copy(update={"epochs": 1.0})
    for share in workspace.recipe.experiments.shares:
        yield Run(
            name=f"{share:.3g} of the rows",
            checkpoint=lambda: workspace.checkpoint("base"),
            training=once,
            rows=sample(rows, round(share * len(rows))),
        )


def _research(workspace: Workspace) -> Iterator[Run]:
    """Fine-tune on a subset of what may ship, and on the same with research rows beside it."""
    settings = workspace.recipe.experiments
    rows = sample(load_split(workspace.stage("data"), "train"), settings.rows)
    validation = load_split(workspace.stage("data"), "validation")
    more = sample(without_overlap(research_rows(workspace), validation), settings.rows)
    for name, chosen in (("may ship", rows), ("with research rows", [*rows, *more])):
        yield Run(
            name=name,
            checkpoint=lambda: workspace.checkpoint("base"),
            training=workspace.recipe.finetune,
            rows=chosen,
        )


def _within(workspace: Workspace, rows: Sequence[Row], tokens: int) -> list[Row]:
    encoder = _encoder(workspace)
    kept: list[Row] = []
    for row in sorted(rows, key=lambda row: rank("curve" + row.id)):
        tokens -= len(encoder.encode(row).ids)
        if tokens < 0:
            break
        kept.append(row)
    return kept


def _encoder(workspace: Workspace) -> Encoder:
    base = workspace.checkpoint("base")
    recipe = workspace.recipe
    return Encoder(base.template, base.tokenizer, recipe.context_length, recipe.data.weights())


def _outcome(workspace: Workspace, plan: Run, folder: Path) -> Outcome:
    """Train one variant and measure it."""
    encoder = _encoder(workspace)
    examples = [encoder.encode(row) for row in plan.rows]
    checkpoint = plan.checkpoint()
    model = checkpoint.model()
    taken = fit(
        model,
        checkpoint.template,
        examples,
        plan.training,
        teacher=_teacher(workspace, examples) if plan.teacher else None,
        folder=folder,
        seed=workspace.recipe.seed,
        title=plan.name,
    )
    auprc: dict[str, float] = {}
    recall: dict[str, float] = {}
    f1: dict[str, float] = {}
    thresholds: dict[Stage, float] = {}
    for group, rows in _measured(workspace).items():
        unsafe = np.array([bool(row.unsafe) for row in rows])
        logits = predict(model, [encoder.encode(row) for row in rows])
        margins = torch.stack([values[0, 1] - values[0, 0] for values in logits]).numpy()
        auprc[group] = round(float(average_precision_score(unsafe, margins)), 4)
        rates, found, _ = roc_curve(unsafe, margins)
        recall[group] = round(float(found[rates <= _FPR].max()), 4)
        sides: list[Stage] = [_SIDE_OF[row.target] for row in rows]
        if group in ("input", "output"):
            # Validation, which comes first: other files are measured at its thresholds.
            thresholds[sides[0]] = _best_threshold(unsafe, margins)
        if thresholds.keys() >= set(sides):
            flagged = margins >= np.array([thresholds[side] for side in sides])
            f1[group] = round(float(f1_score(unsafe, flagged)), 4)
    words = checkpoint.weights["model.embed_tokens.weight"].numel()
    total = sum(weight.numel() for weight in checkpoint.weights.values())
    timing = checkpoint.updated(model) if plan.timed else None
    return Outcome(
        name=plan.name,
        parameters=total - words,
        tokens=int(taken["tokens"]),
        milliseconds=timing and _milliseconds(timing, folder, workspace.recipe),
        auprc=auprc,
        recall=recall,
        f1=f1,
    )


def _best_threshold(unsafe: NDArray[np.bool_], margins: NDArray[np.float32]) -> float:
    precision, recall, thresholds = precision_recall_curve(unsafe, margins)
    with np.errstate(invalid="ignore"):
        f1 = np.nan_to_num(2 * precision * recall / (precision + recall))
    return float(thresholds[f1[:-1].argmax()])


def _teacher(workspace: Workspace, examples: Sequence[Example]) -> list[Tensor]:
    logits: dict[str, Tensor] = torch.load(workspace.stage("teacher") / "logits.pt")
    return [logits[example.id] for example in examples]


def _measured(workspace: Workspace) -> dict[str, list[Row]]:
    """Return the rows to measure on: validation by what is judged, then the given files."""
    validation = load_split(workspace.stage("data"), "validation")
    groups = {
        "input": [row for row in validation if row.target == "user"],
        "output": [row for row in validation if row.target == "assistant"],
        **{path.name.split(".")[0]: list(read_rows(path)) for path in workspace.evaluation},
    }
    labelled = {
        name: [row for row in rows if row.unsafe is not None] for name, rows in groups.items()
    }
    return {name: rows for name, rows in labelled.items() if len({row.unsafe for row in rows}) == 2}


def _milliseconds(checkpoint: Checkpoint, folder: Path, recipe: Recipe) -> float:
    import onnxruntime as ort

    path = folder / "timed.onnx"
    export_onnx(checkpoint.model(), path, recipe.block_size)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    session = ort.InferenceSession(path, options)
    feed: dict[str, NDArray[np.generic]] = {
        node.name: np.ones((1, 64), np.int64) for node in session.get_inputs()[:2]
    }
    for node in session.get_inputs()[2:]:
        feed[node.name] = np.zeros((1, node.shape[1], 0, node.shape[3]), np.float32)
    times: list[float] = []
    for _ in range(30):
        began = time.perf_counter()
        session.run(["logits"], feed)
        times.append((time.perf_counter() - began) * 1000)
    for made in (path, path.with_name(path.name + ".data")):
        made.unlink()
    return round(float(np.median(times)), 1)


def table(name: Name, outcomes: Sequence[Outcome]) -> Table:
    """Return the outcomes as a table."""
    shown = Table(title=name)
    groups = list(outcomes[0].auprc)
    measures = ("AUPRC", "recall", "F1")
    columns = ("run", "parameters", "tokens", "ms", *(f"{g} {m}" for m in measures for g in groups))
    for column in columns:
        shown.add_column(column)
    for outcome in outcomes:
        shown.add_row(
            outcome.name,
            f"{outcome.parameters / 1e6:.1f} M",
            f"{outcome.tokens / 1e6:.2f} M",
            "" if outcome.milliseconds is None else f"{outcome.milliseconds:g}",
            *(f"{outcome.auprc[group]:.3f}" for group in groups),
            *(f"{outcome.recall[group]:.3f}" for group in groups),
            *(f"{outcome.f1[group]:.3f}" if group in outcome.f1 else "" for group in groups),
        )
    return shown


def main(argv: list[str] | None = None) -> None:
    """Run an experiment and print its table."""
    parser = argparse.ArgumentParser(prog="python -m guardrail_model_build.experiments")
    parser.add_argument("name", choices=get_args(Name))
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of a build")
    parser.add_argument("--eval", type=Path, nargs="*", default=[], help="files to report on, too")
    arguments = parser.parse_args(argv)
    workspace = Workspace(
        recipe=Recipe.load(arguments.recipe),
        data=tuple(arguments.data),
        evaluation=tuple(arguments.eval),
        folder=arguments.out,
    )
    outcomes = run(workspace, arguments.name)
    path = workspace.stage("experiments") / f"{arguments.name}.json"
    path.write_text(json.dumps([one.model_dump() for one in outcomes], indent=2) + "\n")
    Console().print(table(arguments.name, outcomes))
    Console().print("Recall is at a false-positive rate of 5 %, F1 at validation's best threshold.")


if __name__ == "__main__":
    main()

"""Renders an evaluation: `evaluation.json` with all figures, and `report.html` with plots.

    python -m guardrail_model_build.report SCORES_FOLDER OUT [--compare evaluation.json ...]

makes both again from the scores that a build kept, without judging anything.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from guardrail_model_build import figures
from guardrail_model_build.comparison import Step, evaluate_scores, read_step, scopes
from guardrail_model_build.findings import PUBLIC, Evaluation, Figures
from guardrail_model_build.page import Plots, page
from guardrail_model_build.scores import SHIPPED, VALIDATION, Judgements
from guardrail_model_build.thresholds import PRESETS, SIDES, Preset
from guardrail_sdk import Category, Stage

_TITLES: Mapping[Stage, str] = {"input": "Prompts", "output": "Responses"}


def main(argv: list[str] | None = None) -> None:
    """Render the scores of a build again."""
    parser = argparse.ArgumentParser(
        prog="python -m guardrail_model_build.report",
        description="Make evaluation.json and report.html from kept scores, judging nothing.",
    )
    parser.add_argument("scores", type=Path, help="a build's folder evaluated/scores")
    parser.add_argument("out", type=Path, help="folder for the two files")
    parser.add_argument(
        "--compare",
        type=Path,
        nargs="*",
        default=[],
        metavar="JSON",
        help="evaluation.json files of other models, for the plot of F1 against latency",
    )
    arguments = parser.parse_args(argv)
    write_report(arguments.scores, arguments.out, compare=arguments.compare)


def write_report(scores: Path, out: Path, *, compare: Sequence[Path] = ()) -> Evaluation:
    """Write `evaluation.json` and `report.html` into `out` and return the findings.

    Args:
        scores: A folder that `scores.ScoreFolder` filled.
        out: Where to write; made if it isn't there.
        compare: `evaluation.json` files of other models.

    Raises:
        OSError: If a file can't be read or written.
        ValueError: If the scores don't suffice, or a file is not what it should be.
    """
    judged = Judgements.load(scores)
    found = evaluate_scores(judged)
    others = [Evaluation.model_validate_json(path.read_text("utf-8")) for path in compare]
    out.mkdir(parents=True, exist_ok=True)
    text = found.model_dump_json(indent=1) + "\n"
    (out / "evaluation.json").write_text(text, encoding="utf-8")
    html = page(found, others, draw(judged, found, others))
    (out / "report.html").write_text(html, encoding="utf-8")
    return found


def draw(judged: Judgements, found: Evaluation, others: Sequence[Evaluation]) -> Plots:
    """Return the plots of a report."""
    step = read_step(judged, SHIPPED)
    groups = [name for name in (VALIDATION, PUBLIC) if name in found.shipped.files]
    return Plots(
        curves={side: plot for side in SIDES if (plot := _curves(judged, step, side))},
        reliability=figures.reliability(
            {_TITLES[side]: _series(judged, step, side, groups) for side in SIDES}
        ),
        categories=_categories(found, groups),
        languages=_languages(found, groups),
        steps=figures.steps(
            found,
            {group.capitalize(): partial(_of_step, found, group) for group in groups},
        ),
        prefixes=figures.prefix_curve(found.partial) if found.partial else None,
        latency=_latency([found, *others]),
    )


def _of_step(found: Evaluation, group: str, name: str) -> Mapping[str, Figures]:
    return {str(side): row for side, row in found.steps[name].files[group].items()}


def _series(
    judged: Judgements, step: Step, side: Stage, names: Sequence[str]
) -> list[figures.Series]:
    """Return the rows of one side by file or group of files, where there are some."""
    chosen = scopes(judged)
    masks = {name: judged.where(files=chosen[name], side=side) for name in names}
    return [
        figures.Series(
            name=name, unsafe=judged.unsafe[mask], probabilities=step.probabilities[mask]
        )
        for name, mask in masks.items()
        if mask.any()
    ]


def _curves(judged: Judgements, step: Step, side: Stage) -> str | None:
    series = _series(judged, step, side, judged.files())
    if not any(one.has_both for one in series):
        return None
    thresholds: dict[Preset, float] = {
        preset: step.setting.thresholds[preset][side] for preset in PRESETS
    }
    return figures.curves(side, _TITLES[side], series, thresholds)


def _categories(found: Evaluation, names: Sequence[str]) -> str | None:
    by_group = {name: found.shipped.categories[name].get("both", {}) for name in names}
    codes = [code for code in Category if any(code in one for one in by_group.values())]
    if not codes:
        return None
    return figures.bars(
        "categories",
        [f"{code} {code.label}" for code in codes],
        {
            name: [
                (one.recall, one.recall_interval)
                if (one := by_group[name].get(code)) and one.recall is not None
                else None
                for code in codes
            ]
            for name in names
        },
        "recall at the balanced thresholds",
    )


def _languages(found: Evaluation, names: Sequence[str]) -> str | None:
    by_group = {name: found.shipped.languages[name].get("both", {}) for name in names}
    codes = sorted({code for one in by_group.values() for code in one})
    measured = [
        code
        for code in codes
        if any(code in one and one[code].recall_at_fpr_5 is not None for one in by_group.values())
    ]
    if not measured:
        return None
    return figures.bars(
        "languages",
        measured,
        {
            name: [
                (one.recall_at_fpr_5, one.recall_at_fpr_5_interval)
                if (one := by_group[name].get(code)) and one.recall_at_fpr_5 is not None
                else None
                for code in measured
            ]
            for name in names
        },
        "recall at a false-positive rate of 5 %",
    )


def _latency(models: Sequence[Evaluation]) -> str | None:
    points = {
        f"{model.name} {model.version}": (model.latency_ms, best.f1, best.f1_interval)
        for model in models
        if (best := model.headline()).f1 is not None and model.latency_ms is not None
    }
    return figures.latency(points) if points else None


if __name__ == "__main__":
    main()

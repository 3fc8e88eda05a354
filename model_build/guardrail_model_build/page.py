"""The report as one HTML page: no script, nothing from elsewhere, and no row's text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources

from guardrail_model_build.findings import (
    ALL_SIDES,
    PUBLIC,
    Difference,
    Evaluation,
    Figures,
    Side,
)
from guardrail_model_build.markup import (
    drawing,
    grid,
    interval,
    number,
    percent,
    points,
    points_interval,
    ranged,
    section,
)
from guardrail_model_build.scores import VALIDATION
from guardrail_model_build.thresholds import PRESETS, SIDES
from guardrail_sdk import Category, Stage

_SIDES: Mapping[Side, str] = {"input": "prompts", "output": "responses", "both": "both"}
_METRICS: tuple[tuple[str, Callable[[Figures], str]], ...] = (
    ("rows", lambda one: f"{one.rows:,}"),
    ("unsafe", lambda one: f"{one.unsafe:,}"),
    ("F1", lambda one: ranged(one.f1, one.f1_interval)),
    ("always", lambda one: number(one.always_unsafe_f1)),
    ("precision", lambda one: number(one.precision)),
    ("recall", lambda one: ranged(one.recall, one.recall_interval)),
    ("FPR", lambda one: ranged(one.fpr, one.fpr_interval)),
    ("AUPRC", lambda one: ranged(one.auprc, one.auprc_interval)),
    ("ROC AUC", lambda one: number(one.roc_auc)),
    ("R@1%", lambda one: number(one.recall_at_fpr_1)),
    ("R@5%", lambda one: ranged(one.recall_at_fpr_5, one.recall_at_fpr_5_interval)),
    ("ECE", lambda one: number(one.ece)),
    ("Brier", lambda one: number(one.brier)),
)
_STEP_METRICS = ("F1", "recall", "FPR", "AUPRC", "ECE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plots:
    """The plots of a report, as `svg` elements; None where there is nothing to draw."""

    curves: Mapping[Stage, str]
    reliability: str
    categories: str | None
    languages: str | None
    steps: str
    prefixes: str | None
    latency: str | None


def page(found: Evaluation, others: Sequence[Evaluation], plots: Plots) -> str:
    """Return the report as an HTML document."""
    style = resources.files("guardrail_model_build").joinpath("report.css").read_text("utf-8")
    title = f"{found.name} {found.version}: evaluation"
    sections = (
        _summary(found),
        _files(found),
        section("Curves", _CURVES, *(drawing(plot, _SIDES[s]) for s, plot in plots.curves.items())),
        _presets(found),
        section("Calibration", _CALIBRATION, drawing(plots.reliability, "reliability diagram")),
        _steps(found, plots.steps),
        _groups("Categories", _CATEGORIES, plots.categories, found.shipped.categories, _hazard),
        _groups("Languages", _LANGUAGES, plots.languages, found.shipped.languages, str),
        _groups("Sources", _SOURCES, None, found.shipped.sources, str),
        _partial(found, plots.prefixes),
        _latency([found, *others], plots.latency),
        _worst(found),
    )
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n"
        f"<body><main><h1>{escape(title)}</h1>\n{''.join(sections)}</main></body></html>\n"
    )


_CURVES = (
    "Each file's curve over all thresholds, and where the three presets put the model on it. "
    "Validation chose the thresholds; the other files only show them."
)
_CALIBRATION = (
    "Rows in 15 bins of equal size by P(unsafe). On the dotted line a probability is what it says. "
    "Probabilities are fitted on validation; elsewhere the share of unsafe rows differs, and so "
    "does the line."
)
_CATEGORIES = (
    "Unsafe rows of each hazard, at the balanced thresholds. F1, FPR and the rankings are against "
    "all safe rows of the files that name the hazard."
)
_LANGUAGES = "The best recall of any threshold that flags at most 5 % of the language's safe rows."
_SOURCES = "By the data set a row comes from; most sources of validation are of one kind only."


def _summary(found: Evaluation) -> str:
    best, cost = found.headline(), found.quantisation.overall["both"]
    validation = found.shipped.files[VALIDATION]["both"]
    where = PUBLIC if PUBLIC in found.shipped.files else VALIDATION
    lost = points_interval(cost.f1_interval, -1)
    latency = "-" if found.latency_ms is None else f"{found.latency_ms:.0f} ms"
    tiles = (
        (f"F1, {where}", number(best.f1), interval(best.f1_interval).strip("[]")),
        (f"FPR, {where}", number(best.fpr), interval(best.fpr_interval).strip("[]")),
        ("calibration error, validation", number(validation.ece), "ECE over 15 bins"),
        ("F1 lost to INT4, points", points(cost.f1, -1), lost.strip("[]")),
        ("check of 64 tokens", latency, "median, on the machine that built"),
    )
    items = "".join(
        f"<li><span>{escape(name)}</span><strong>{escape(value)}</strong>"
        f"<small>{escape(note)}</small></li>"
        for name, value, note in tiles
    )
    about = (
        "Verdicts are at the thresholds of the preset <em>balanced</em>, which the model ships "
        "with, unless said otherwise. Ranges in small print are 95 % bootstrap intervals. Rows "
        "appear as id and score only."
    )
    return f'<ul class="tiles">{items}</ul><p>{about}</p>'


def _files(found: Evaluation) -> str:
    rows = [
        [name, _SIDES[side], *(show(one) for _, show in _METRICS)]
        for name, sides in found.shipped.files.items()
        for side, one in sides.items()
        if side != "both" or len(sides) > 2  # of one side alone, both would be the same again
    ]
    headings = ["set", "judged", *(heading for heading, _ in _METRICS)]
    note = (
        "The shipped model. <em>Always</em> is F1 of flagging every row: what F1 has to beat. "
        " R@5% is the best recall at a false-positive rate of 5 %."
    )
    return section("Test sets", note, grid(headings, rows, texts=2))


def _presets(found: Evaluation) -> str:
    rows: list[list[str]] = []
    for side in SIDES:
        for preset in PRESETS:
            one = found.presets[preset][side]
            for place, name in enumerate(one.fpr):
                first = (
                    [_SIDES[side], preset, f"{one.threshold:.4g}", number(one.limit)]
                    if place == 0
                    else ["", "", "", ""]
                )
                figures = (one.fpr[name], one.recall[name], one.f1[name])
                rows.append([*first, name, *map(number, figures)])
    note = (
        "Thresholds on P(unsafe), each the lowest that keeps validation's false-positive rate "
        "within its limit; without a limit, the lowest that spares everyday texts and whose F1 on "
        "validation is near the best. <em>Strict</em> blocks more, <em>permissive</em> less."
    )
    headings = ["judged", "preset", "threshold", "limit", "set", "FPR", "recall", "F1"]
    table = grid(headings, rows, texts=2, text_columns=(4,))
    hazards = _hazard_thresholds(found)
    return section("Presets", note, table, hazards)


def _hazard_thresholds(found: Evaluation) -> str:
    codes = [c for c in Category if any(c in one for one in found.category_thresholds.values())]
    if not codes:
        return ""
    rows = [
        [_SIDES[side], *(number(found.category_thresholds[side].get(code)) for code in codes)]
        for side in SIDES
    ]
    table = grid(["hazard thresholds", *map(str, codes)], rows, texts=1)
    return f"{table}<p>A hazard with too few validation rows (-) keeps the threshold 0.5.</p>"


def _steps(found: Evaluation, plot: str) -> str:
    shows = dict(_METRICS)
    rows: list[list[str]] = []
    for scope in (VALIDATION, PUBLIC):
        for side in ALL_SIDES:
            for place, (name, step) in enumerate(found.steps.items()):
                if side not in step.files.get(scope, {}):
                    continue
                figures = step.files[scope][side]
                against = step.against_parent.get(scope, {}).get(side)
                head = [scope, _SIDES[side]] if place == 0 else ["", ""]
                metrics = [shows[metric](figures) for metric in _STEP_METRICS]
                rows.append([*head, name, *metrics, *_difference(against)])
    note = (
        "Every step of the build on the same rows, each at its own thresholds for the same "
        "false-positive rates on validation. Differences are from the step before, with the "
        "intervals of a paired bootstrap, in points of 1 %; p is McNemar's."
    )
    headings = [
        *("set", "judged", "step", *_STEP_METRICS),
        *("F1 Δ", "FPR Δ", "flips", "worse / better", "p"),
    ]
    table = grid(headings, rows, texts=3)
    return section("From base to INT4", note, drawing(plot, "F1 by step"), table, _cost(found))


def _cost(found: Evaluation) -> str:
    cost = found.quantisation
    rows = [
        [f"all rows, {_SIDES[side]}", f"{one.rows:,}", *_difference(one)]
        for side, one in cost.overall.items()
    ]
    one = cost.in_one_piece
    rows.append(["rows read as they stand", f"{one.rows:,}", *_difference(one)])
    headings = [
        *(f"INT4 ONNX against {cost.student} in float32", "rows"),
        *("F1 Δ", "FPR Δ", "flips", "worse / better", "p"),
    ]
    word = "holds" if cost.holds else "does <strong>not</strong> hold"
    return (
        grid(headings, rows, texts=1)
        + f"<p>The bound &ndash; at most one point of F1 and FPR lost over all rows, at most two "
        f"at the bad end of the interval &ndash; {word}. The ONNX file reads long texts in "
        "windows, and decodes and unfolds what is disguised; the PyTorch step reads each row once, "
        "as it stands. Its margins differ from those of the last PyTorch step by "
        f"{cost.mean_difference:.3g} on average, {cost.largest_difference:.3g} at most.</p>"
    )


def _groups(
    title: str,
    note: str,
    plot: str | None,
    groups: Mapping[str, Mapping[str, Mapping[str, Figures]]],
    name_of: Callable[[str], str],
) -> str:
    rows = [
        [scope if place == 0 else "", name_of(name), *(show(one) for _, show in _METRICS)]
        for scope, sides in groups.items()
        for place, (name, one) in enumerate(sides.get("both", {}).items())
    ]
    if not rows:
        return ""
    headings = ["set", title.lower(), *(heading for heading, _ in _METRICS)]
    table = grid(headings, rows, texts=2)
    details = f"<details open><summary>All figures</summary>{table}</details>"
    return section(title, note, *([drawing(plot, title)] if plot else []), details)


def _hazard(code: str) -> str:
    return f"{code} {Category(code).label}"


def _partial(found: Evaluation, plot: str | None) -> str:
    partial = found.partial
    if partial is None or plot is None:
        return ""
    passed = "-" if partial.characters is None else f"{partial.characters:,.0f}"
    facts = grid(
        ["what", "value"],
        [
            ["responses, of which unsafe", f"{partial.rows} / {partial.unsafe}"],
            ["characters before the first flag, median, at most", passed],
            ["unsafe responses never flagged", percent(partial.never)],
            [
                "safe responses of which any prefix is flagged",
                f"{percent(partial.safe_flagged)} {interval(partial.safe_flagged_interval)}",
            ],
            ["safe responses flagged when whole", percent(partial.whole_safe_flagged)],
        ],
        texts=1,
    )
    note = (
        "Validation responses judged at each tenth of their characters, as a stream is while it is "
        "written. Who was flagged once counts as flagged from then on."
    )
    beside = f'<div class="beside">{drawing(plot, "prefix curve")}{facts}</div>'
    return section("Unfinished responses", note, beside)


def _latency(models: Sequence[Evaluation], plot: str | None) -> str:
    if plot is None:
        return ""
    rows = [
        [
            f"{model.name} {model.version}",
            "-" if model.latency_ms is None else f"{model.latency_ms:.1f}",
            ranged(model.headline().f1, model.headline().f1_interval),
            ranged(model.headline().fpr, model.headline().fpr_interval),
        ]
        for model in models
    ]
    table = grid(["model", "ms", "F1", "FPR"], rows, texts=1)
    note = (
        "Median time of a check of a 64-token prompt through the SDK, on the machine that built; "
        "F1 over all rows of the evaluation files, or of validation where there are none."
    )
    beside = f'<div class="beside">{drawing(plot, "F1 against latency")}{table}</div>'
    return section("Latency", note, beside)


def _worst(found: Evaluation) -> str:
    rows = [
        [
            "unsafe" if row.unsafe else "safe",
            row.file,
            _SIDES[row.side],
            row.id,
            f"{row.probability:.4f}",
        ]
        for row in found.worst
    ]
    note = (
        "The rows that the shipped model got most wrong, by id: look them up before you judge it."
    )
    table = grid(["label", "set", "judged", "id", "P(unsafe)"], rows, texts=4)
    return section("Worst rows", note, table)


def _difference(found: Difference | None) -> list[str]:
    if found is None:
        return ["-"] * 5
    return [
        f"{points(found.f1)} {points_interval(found.f1_interval)}",
        f"{points(found.fpr)} {points_interval(found.fpr_interval)}",
        f"{found.flips:.1%}",
        f"{found.worse} / {found.better}",
        "<.001" if found.mcnemar_p < 0.001 else f"{found.mcnemar_p:.3f}",
    ]

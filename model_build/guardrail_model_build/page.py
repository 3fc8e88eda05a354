"""The report as one HTML page: no script, nothing from elsewhere, and no row's text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
from guardrail_model_build.scores import VALIDATION
from guardrail_model_build.thresholds import PRESETS, SIDES
from guardrail_sdk import Category, Stage
from guardrail_sdk.evaluation import Interval

_SIDES: Mapping[Side, str] = {"input": "prompts", "output": "responses", "both": "both"}
_METRICS: tuple[tuple[str, Callable[[Figures], str]], ...] = (
    ("rows", lambda one: f"{one.rows:,}"),
    ("unsafe", lambda one: f"{one.unsafe:,}"),
    ("F1", lambda one: _ranged(one.f1, one.f1_interval)),
    ("always", lambda one: _number(one.always_unsafe_f1)),
    ("precision", lambda one: _number(one.precision)),
    ("recall", lambda one: _ranged(one.recall, one.recall_interval)),
    ("FPR", lambda one: _ranged(one.fpr, one.fpr_interval)),
    ("AUPRC", lambda one: _ranged(one.auprc, one.auprc_interval)),
    ("ROC AUC", lambda one: _number(one.roc_auc)),
    ("R@1%", lambda one: _number(one.recall_at_fpr_1)),
    ("R@5%", lambda one: _ranged(one.recall_at_fpr_5, one.recall_at_fpr_5_interval)),
    ("ECE", lambda one: _number(one.ece)),
    ("Brier", lambda one: _number(one.brier)),
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
    style = resources.files(__package__).joinpath("report.css").read_text("utf-8")
    title = f"{found.name} {found.version}: evaluation"
    sections = (
        _summary(found),
        _files(found),
        _section("Curves", _CURVES, *(_plot(plot, _SIDES[s]) for s, plot in plots.curves.items())),
        _presets(found),
        _section("Calibration", _CALIBRATION, _plot(plots.reliability, "reliability diagram")),
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
    lost = _points_interval(cost.f1_interval, -1)
    latency = "-" if found.latency_ms is None else f"{found.latency_ms:.0f} ms"
    tiles = (
        (f"F1, {where}", _number(best.f1), _interval(best.f1_interval).strip("[]")),
        (f"FPR, {where}", _number(best.fpr), _interval(best.fpr_interval).strip("[]")),
        ("calibration error, validation", _number(validation.ece), "ECE over 15 bins"),
        ("F1 lost to INT4, points", _points(cost.f1, -1), lost.strip("[]")),
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
    return _section("Test sets", note, _table(headings, rows, texts=2))


def _presets(found: Evaluation) -> str:
    rows: list[list[str]] = []
    for side in SIDES:
        for preset in PRESETS:
            one = found.presets[preset][side]
            for place, name in enumerate(one.fpr):
                first = (
                    [_SIDES[side], preset, f"{one.threshold:.4g}", _number(one.limit)]
                    if place == 0
                    else ["", "", "", ""]
                )
                figures = (one.fpr[name], one.recall[name], one.f1[name])
                rows.append([*first, name, *map(_number, figures)])
    note = (
        "Thresholds on P(unsafe), each the lowest that keeps validation's false-positive rate "
        "within its limit. <em>Strict</em> blocks more, <em>permissive</em> less."
    )
    headings = ["judged", "preset", "threshold", "limit", "set", "FPR", "recall", "F1"]
    table = _table(headings, rows, texts=2, text_columns=(4,))
    hazards = _hazard_thresholds(found)
    return _section("Presets", note, table, hazards)


def _hazard_thresholds(found: Evaluation) -> str:
    codes = [c for c in Category if any(c in one for one in found.category_thresholds.values())]
    if not codes:
        return ""
    rows = [
        [_SIDES[side], *(_number(found.category_thresholds[side].get(code)) for code in codes)]
        for side in SIDES
    ]
    table = _table(["hazard thresholds", *map(str, codes)], rows, texts=1)
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
        *("F1 &Delta;", "FPR &Delta;", "flips", "worse / better", "p"),
    ]
    table = _table(headings, rows, texts=3, escaped=True)
    return _section("From base to INT4", note, _plot(plot, "F1 by step"), table, _cost(found))


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
        *("F1 &Delta;", "FPR &Delta;", "flips", "worse / better", "p"),
    ]
    word = "holds" if cost.holds else "does <strong>not</strong> hold"
    return (
        _table(headings, rows, texts=1, escaped=True)
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
    table = _table(headings, rows, texts=2)
    details = f"<details open><summary>All figures</summary>{table}</details>"
    return _section(title, note, *([_plot(plot, title)] if plot else []), details)


def _hazard(code: str) -> str:
    return f"{code} {Category(code).label}"


def _partial(found: Evaluation, plot: str | None) -> str:
    partial = found.partial
    if partial is None or plot is None:
        return ""
    passed = "-" if partial.characters is None else f"{partial.characters:,.0f}"
    facts = _table(
        ["what", "value"],
        [
            ["responses, of which unsafe", f"{partial.rows} / {partial.unsafe}"],
            ["characters before the first flag, median, at most", passed],
            ["unsafe responses never flagged", _percent(partial.never)],
            [
                "safe responses of which any prefix is flagged",
                f"{_percent(partial.safe_flagged)} {_interval(partial.safe_flagged_interval)}",
            ],
            ["safe responses flagged when whole", _percent(partial.whole_safe_flagged)],
        ],
        texts=1,
    )
    note = (
        "Validation responses judged at each tenth of their characters, as a stream is while it is "
        "written. Who was flagged once counts as flagged from then on."
    )
    beside = f'<div class="beside">{_plot(plot, "prefix curve")}{facts}</div>'
    return _section("Unfinished responses", note, beside)


def _latency(models: Sequence[Evaluation], plot: str | None) -> str:
    if plot is None:
        return ""
    rows = [
        [
            f"{model.name} {model.version}",
            "-" if model.latency_ms is None else f"{model.latency_ms:.1f}",
            _ranged(model.headline().f1, model.headline().f1_interval),
            _ranged(model.headline().fpr, model.headline().fpr_interval),
        ]
        for model in models
    ]
    table = _table(["model", "ms", "F1", "FPR"], rows, texts=1)
    note = (
        "Median time of a check of a 64-token prompt through the SDK, on the machine that built; "
        "F1 over all rows of the evaluation files, or of validation where there are none."
    )
    beside = f'<div class="beside">{_plot(plot, "F1 against latency")}{table}</div>'
    return _section("Latency", note, beside)


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
    table = _table(["label", "set", "judged", "id", "P(unsafe)"], rows, texts=4)
    return _section("Worst rows", note, table)


def _section(title: str, note: str, *parts: str) -> str:
    """Return a section; `note` and `parts` are HTML."""
    return f"<section><h2>{escape(title)}</h2><p>{note}</p>{''.join(parts)}</section>\n"


def _plot(svg: str, label: str) -> str:
    named = svg.replace("<svg ", f'<svg aria-label="{escape(label)}" ', 1)
    return f"<figure>{named}</figure>"


def _table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    texts: int,
    text_columns: Sequence[int] = (),
    escaped: bool = False,
) -> str:
    """Return a table whose first `texts` columns, and `text_columns`, are words, not numbers."""
    kinds = [
        ' class="text"' if place < texts or place in text_columns else ""
        for place in range(len(headings))
    ]
    shown = headings if escaped else [escape(heading) for heading in headings]
    head = "".join(f"<th{kind}>{cell}</th>" for kind, cell in zip(kinds, shown, strict=True))
    body = "".join(
        f"<tr{' class=first' if row[0] else ''}>"
        + "".join(f"<td{kind}>{_cell(cell)}</td>" for kind, cell in zip(kinds, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(text: str) -> str:
    """Return a cell's HTML: an interval in brackets is set smaller and without them."""
    value, _, ends = text.partition(" [")
    return f"{escape(value)} <small>{escape(ends.rstrip(']'))}</small>" if ends else escape(value)


def _difference(found: Difference | None) -> list[str]:
    if found is None:
        return ["-"] * 5
    return [
        f"{_points(found.f1)} {_points_interval(found.f1_interval)}",
        f"{_points(found.fpr)} {_points_interval(found.fpr_interval)}",
        f"{found.flips:.1%}",
        f"{found.worse} / {found.better}",
        f"{found.mcnemar_p:.2g}",
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _ranged(value: float | None, ends: Interval | None) -> str:
    return f"{_number(value)} {_interval(ends)}".strip()


def _interval(ends: Interval | None) -> str:
    if ends is None:
        return ""
    low, high = (f"{end:.3f}".removeprefix("0") for end in ends)
    return f"[{low}–{high}]"


def _points(value: float | None, sign: int = 1) -> str:
    """Return a difference in hundredths."""
    return "-" if value is None else f"{100 * sign * value + 0.0:+.1f}"


def _points_interval(ends: Interval | None, sign: int = 1) -> str:
    if ends is None:
        return ""
    low, high = sorted(100 * sign * end + 0.0 for end in ends)
    return f"[{low:+.1f} to {high:+.1f}]"

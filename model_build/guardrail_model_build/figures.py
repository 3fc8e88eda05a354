"""The report's plots, as inline SVG whose colours are the page's own variables.

matplotlib draws with stand-in colours, which are then replaced by CSS variables: one drawing reads
well on a light page, on a dark one and on paper. Text stays text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from guardrail_model_build.findings import Evaluation, Figures, Partial
from guardrail_model_build.thresholds import Bools, Floats, Preset
from guardrail_sdk.evaluation import Interval

_INK, _FAINT = "#010101", "#020202"
_SERIES = tuple(f"#0300{number:02x}" for number in range(1, 9))
_VARIABLES = {
    _INK: "var(--ink)",
    _FAINT: "var(--faint)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(_SERIES, start=1)},
}
_MARKERS: Mapping[Preset, str] = {"strict": "^", "balanced": "o", "permissive": "v"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "text.color": _INK,
    "text.parse_math": False,  # names of files and models are no formulas
    "xtick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.color": _FAINT,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
}
_BINS = 15
_NEAR = 0.2
_DASHES = ("-", "--", ":")
_PERCENT = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One group of rows with their labels and P(unsafe)."""

    name: str
    unsafe: Bools
    probabilities: Floats

    @property
    def has_both(self) -> bool:
        """True if there are safe and unsafe rows."""
        return bool(self.unsafe.any() and not self.unsafe.all())


def curves(
    name: str, title: str, series: Sequence[Series], thresholds: Mapping[Preset, float]
) -> str:
    """Return the precision-recall and ROC curves of one side, with the presets marked on them."""
    drawn = [one for one in series if one.has_both]

    def draw(figure: Figure) -> None:
        left, right, near = figure.subplots(1, 3)
        for number, one in enumerate(drawn):
            colour = _SERIES[number % len(_SERIES)]
            dashes = _DASHES[number // len(_SERIES) % len(_DASHES)]
            precision, recall, _ = precision_recall_curve(one.unsafe, one.probabilities)
            left.step(recall, precision, dashes, where="post", color=colour, label=one.name)
            fpr, tpr, _ = roc_curve(one.unsafe, one.probabilities)
            right.plot(fpr, tpr, dashes, color=colour)
            near.plot(fpr, tpr, dashes, color=colour)
            for preset, cut in thresholds.items():
                at = _point(one, cut)
                for axes, x, y in (
                    (left, at[1], at[0]),
                    (right, at[2], at[1]),
                    (near, at[2], at[1]),
                ):
                    axes.plot(x, y, _MARKERS[preset], color=colour, ms=6, mec=_INK, mew=0.6)
        for preset, marker in _MARKERS.items():
            right.plot([], [], marker, color=_FAINT, ms=6, mec=_INK, mew=0.6, label=preset)
        right.plot(_PERCENT, _PERCENT, ":", color=_FAINT, lw=1)
        _unit(left, "recall", "precision", f"{title}: precision and recall")
        _unit(right, "false-positive rate", "recall", f"{title}: ROC")
        _unit(near, "false-positive rate", "recall", "ROC, where few safe rows are flagged")
        near.set_xlim(-0.002, _NEAR)
        right.legend(loc="lower right")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=6)

    return _svg(f"curves-{name}", 11.2, 4.0, draw)


def reliability(panels: Mapping[str, Sequence[Series]]) -> str:
    """Return, a panel for each side, how often a text of some P(unsafe) was unsafe."""

    def draw(figure: Figure) -> None:
        for axes, (title, series) in zip(_panels(figure, len(panels)), panels.items(), strict=True):
            axes.plot(_PERCENT, _PERCENT, ":", color=_FAINT, lw=1)
            for colour, one in zip(cycle(_SERIES), series, strict=False):
                said, true = _bins(one)
                axes.plot(said, true, "o-", color=colour, ms=4, label=one.name)
            _unit(axes, "P(unsafe), mean of a bin", "share of unsafe rows", title)
            axes.legend(loc="upper left")

    return _svg("reliability", 9.0, 4.0, draw)


def bars(
    name: str,
    groups: Sequence[str],
    series: Mapping[str, Sequence[tuple[float, Interval | None] | None]],
    label: str,
) -> str:
    """Return horizontal bars with intervals, one per group and series; None leaves a bar out.

    Args:
        name: Tells this drawing's parts from others' on the same page.
        groups: What the bars are about, from the top down.
        series: Values by series, in the order of `groups`.
        label: What the values are.
    """
    height = 0.8 / max(1, len(series))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for number, (colour, (title, values)) in enumerate(
            zip(cycle(_SERIES), series.items(), strict=False)
        ):
            places = np.arange(len(groups)) + (number - (len(series) - 1) / 2) * height
            known = [(place, at) for place, at in zip(places, values, strict=True) if at]
            axes.barh(
                [place for place, _ in known],
                [at[0] for _, at in known],
                height * 0.9,
                color=colour,
                alpha=0.7,
                label=title,
            )
            for place, (_, ends) in known:
                if ends is not None:
                    axes.plot(ends, [place, place], color=_INK, lw=1.3)
        axes.set_yticks(range(len(groups)), groups)
        axes.set(xlim=(0, 1.01), ylim=(len(groups) - 0.45, -0.55), xlabel=label)
        axes.grid(visible=False, axis="y")
        if len(series) > 1:
            figure.legend(loc="outside upper right", ncols=len(series))

    lines = len(groups) * (0.16 + 0.14 * len(series))
    return _svg(name, 9.0, 1.2 + lines, draw)


def steps(found: Evaluation, panels: Mapping[str, Callable[[str], Mapping[str, Figures]]]) -> str:
    """Return F1 and FPR of each step with intervals, a panel for each group of rows.

    Args:
        found: Gives the steps.
        panels: By title: what returns the figures of a step, by side.
    """
    names = list(found.steps)

    def draw(figure: Figure) -> None:
        for axes, (title, figures_of) in zip(
            _panels(figure, len(panels)), panels.items(), strict=True
        ):
            for number, (side, key) in enumerate(
                (side, key) for side in ("input", "output") for key in ("f1", "fpr")
            ):
                known = [
                    (place, figures_of(name)[side])
                    for place, name in enumerate(names)
                    if side in figures_of(name) and getattr(figures_of(name)[side], key) is not None
                ]
                if not known:
                    continue
                colour = _SERIES[number // 2]
                spread = [place + 0.12 * (number // 2) - 0.06 for place, _ in known]
                label = f"{key.upper()}, {'prompts' if side == 'input' else 'responses'}"
                axes.plot(
                    spread,
                    [getattr(one, key) for _, one in known],
                    "o-" if key == "f1" else "s--",
                    color=colour,
                    ms=4,
                    label=label,
                )
                for place, (_, one) in zip(spread, known, strict=True):
                    ends: Interval = getattr(one, f"{key}_interval")
                    axes.plot([place, place], ends, color=colour, lw=1)
            axes.set_xticks(range(len(names)), names)
            axes.set(ylim=(0, 1), title=title)
        handles = figure.axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=4)

    return _svg("steps", 11.2, 3.6, draw)


def prefix_curve(partial: Partial) -> str:
    """Return the share of unsafe and safe responses flagged by each share of their characters."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        shares = [point.share for point in partial.points]
        for colour, values, label in (
            (_SERIES[0], [point.caught for point in partial.points], "unsafe responses"),
            (_SERIES[1], [point.alarmed for point in partial.points], "safe responses"),
        ):
            known = [(x, y) for x, y in zip(shares, values, strict=True) if y is not None]
            axes.plot([x for x, _ in known], [y for _, y in known], "o-", color=colour, label=label)
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
        axes.set(xlabel="share of the characters read", ylabel="flagged by then")
        axes.legend(loc="center right")

    return _svg("prefixes", 5.2, 3.4, draw)


def latency(points: Mapping[str, tuple[float, float, Interval | None]]) -> str:
    """Return F1 against latency: by model, its milliseconds, its F1 and that one's interval."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for colour, (name, (x, y, ends)) in zip(cycle(_SERIES), points.items(), strict=False):
            if ends is not None:
                axes.plot([x, x], ends, color=colour, lw=1)
            axes.plot(x, y, "o", color=colour, ms=7)
            axes.annotate(name, (x, y), (7, 5), textcoords="offset points", fontsize=8)
        most = max(x for x, _, _ in points.values())
        axes.set(xlim=(0, most * 1.6), ylim=(0, 1))
        axes.set(xlabel="median of a 64-token check, ms", ylabel="F1")

    return _svg("latency", 5.2, 3.4, draw)


def _point(one: Series, cut: float) -> tuple[float, float, float]:
    """Return precision, recall and FPR at a threshold; precision is 1 if nothing is flagged."""
    flagged = one.probabilities >= cut
    precision = one.unsafe[flagged].mean() if flagged.any() else 1.0
    return float(precision), float(flagged[one.unsafe].mean()), float(flagged[~one.unsafe].mean())


def _bins(one: Series) -> tuple[list[float], list[float]]:
    """Return the mean probability and the share of unsafe rows of bins of equal mass."""
    order = np.argsort(one.probabilities, kind="stable")
    parts = np.array_split(order, min(_BINS, len(order)))
    said = [float(one.probabilities[part].mean()) for part in parts]
    return said, [float(one.unsafe[part].mean()) for part in parts]


def _panels(figure: Figure, count: int) -> list[Axes]:
    return list(figure.subplots(1, max(1, count), squeeze=False)[0])


def _unit(axes: Axes, across: str, up: str, title: str) -> None:
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), xlabel=across, ylabel=up, title=title)


def _svg(name: str, width: float, height: float, draw: Callable[[Figure], None]) -> str:
    """Draw and return an `svg` element whose ids start with `name`."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_alpha(0)
        FigureCanvasSVG(figure)
        draw(figure)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        drawn = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(drawn, format="svg", metadata=nothing)
    text = drawn.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r"font: (.*?)'?DejaVu Sans.*?(?=[;\"])", r"font: \1var(--font)", text)
    size = f'style="max-width: {100 * width:.0f}px"'
    return text.replace("<svg ", f'<svg role="img" {size} ', 1)

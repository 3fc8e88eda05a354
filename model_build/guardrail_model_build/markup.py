"""Pieces of the report's page: sections, drawings, tables, and numbers as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from guardrail_sdk.evaluation import Interval


def section(title: str, note: str, *parts: str) -> str:
    """Return a section; `note` and `parts` are HTML."""
    return f"<section><h2>{escape(title)}</h2><p>{note}</p>{''.join(parts)}</section>\n"


def drawing(svg: str, label: str) -> str:
    """Return a drawing with a name for those who can't see it."""
    named = svg.replace("<svg ", f'<svg aria-label="{escape(label)}" ', 1)
    return f"<figure>{named}</figure>"


def grid(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    texts: int,
    text_columns: Sequence[int] = (),
) -> str:
    """Return a table whose first `texts` columns, and `text_columns`, are words, not numbers."""
    kinds = [
        ' class="text"' if place < texts or place in text_columns else ""
        for place in range(len(headings))
    ]
    head = "".join(
        f"<th{kind}>{escape(cell)}</th>" for kind, cell in zip(kinds, headings, strict=True)
    )
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


def number(value: float | None) -> str:
    """Return a figure, `-` if it isn't defined."""
    return "-" if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    """Return a share, `-` if it isn't defined."""
    return "-" if value is None else f"{value:.1%}"


def ranged(value: float | None, ends: Interval | None) -> str:
    """Return a figure with its interval in brackets."""
    return f"{number(value)} {interval(ends)}".strip()


def interval(ends: Interval | None) -> str:
    """Return an interval in brackets, nothing if there is none."""
    if ends is None:
        return ""
    low, high = (f"{end:.3f}".removeprefix("0") for end in ends)
    return f"[{low}–{high}]"


def points(value: float | None, sign: int = 1) -> str:
    """Return a difference in hundredths."""
    return "-" if value is None else f"{100 * sign * value + 0.0:+.1f}"


def points_interval(ends: Interval | None, sign: int = 1) -> str:
    """Return the interval of a difference in hundredths, in brackets."""
    if ends is None:
        return ""
    low, high = sorted(100 * sign * end + 0.0 for end in ends)
    return f"[{low:+.1f} to {high:+.1f}]"

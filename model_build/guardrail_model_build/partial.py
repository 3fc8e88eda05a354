"""Partial text: how early an unsafe response is noticed, and how often a safe one is stopped.

A stream is judged while it is written, so that a verdict is often one on unfinished text. Some
validation responses are therefore judged at each tenth of their characters. The id of a prefix is
its row's, `@` and the percentage of the characters it holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from guardrail_model_build.findings import Partial, PrefixPoint
from guardrail_model_build.scores import PREFIXES, Judgements
from guardrail_model_build.thresholds import Bools
from guardrail_sdk.evaluation import measure

TENTHS = range(1, 11)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Course:
    """One response: which of its prefixes are flagged, and how long they are."""

    unsafe: bool
    flagged: Bools
    characters: tuple[int, ...]

    @property
    def first(self) -> int | None:
        """Index of the first flagged prefix."""
        return int(self.flagged.argmax()) if self.flagged.any() else None


def partial_text(judged: Judgements, flagged: Bools) -> Partial | None:
    """Return how the shipped model judged unfinished responses; None if it was asked of none.

    Args:
        judged: Holds the prefixes among its rows.
        flagged: The shipped model's verdicts at `balanced` thresholds, bool [rows].
    """
    courses = _courses(judged, flagged)
    if not courses:
        return None
    unsafe = [course for course in courses if course.unsafe]
    safe = [course for course in courses if not course.unsafe]
    lengths = [c.characters[c.first] for c in unsafe if c.first is not None]
    stopped = [course.first is not None for course in safe]
    alarms = measure([False] * len(safe), [float(alarm) for alarm in stopped], stopped)
    return Partial(
        rows=len(courses),
        unsafe=len(unsafe),
        points=tuple(
            PrefixPoint(
                share=tenth / 10,
                caught=_share([bool(course.flagged[:tenth].any()) for course in unsafe]),
                alarmed=_share([bool(course.flagged[:tenth].any()) for course in safe]),
            )
            for tenth in TENTHS
        ),
        characters=float(np.median(lengths)) if lengths else None,
        never=_share([course.first is None for course in unsafe]),
        safe_flagged=alarms.fpr,
        safe_flagged_interval=alarms.fpr_interval,
        whole_safe_flagged=_share([bool(course.flagged[-1]) for course in safe]),
    )


def _courses(judged: Judgements, flagged: Bools) -> list[_Course]:
    by_row: dict[str, list[int]] = {}
    for place, row in enumerate(judged.labels):
        if row.file == PREFIXES:
            by_row.setdefault(row.id.rpartition("@")[0], []).append(place)
    courses: list[_Course] = []
    for places in by_row.values():
        places.sort(key=lambda place: int(judged.labels[place].id.rpartition("@")[2]))
        courses.append(
            _Course(
                unsafe=bool(judged.labels[places[0]].unsafe),
                flagged=flagged[places],
                characters=tuple(judged.labels[place].characters for place in places),
            )
        )
    return courses


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None

"""Finds training rows that repeat rows kept for evaluation, word for word or nearly."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from guardrail_sdk.evaluation import Row

_WORDS = 4
"""Words of a shingle. A word is a run of letters and digits, so Thai clauses count as words."""
_LEAST = 2
_SHARE = 0.5
"""From this share of a row's shingles in one other row on, the two overlap."""


def without_overlap(rows: Sequence[Row], evaluated: Iterable[Row]) -> list[Row]:
    """Return the rows whose judged message overlaps with none of the judged messages `evaluated`.

    Two messages overlap if they are the same words, or if at least two, and half, of the
    four-word shingles of either are in the other.
    """
    places: defaultdict[tuple[str, ...], set[int]] = defaultdict(set)
    sizes: list[int] = []
    whole: set[tuple[str, ...]] = set()
    for index, other in enumerate(evaluated):
        words = _words(other)
        whole.add(words)
        found = _shingles(words)
        sizes.append(len(found))
        for shingle in found:
            places[shingle].add(index)
    return [
        row
        for row in rows
        if (words := _words(row)) not in whole and not _overlaps(words, places, sizes)
    ]


def _overlaps(
    words: tuple[str, ...],
    places: defaultdict[tuple[str, ...], set[int]],
    sizes: Sequence[int],
) -> bool:
    own = _shingles(words)
    shared: defaultdict[int, int] = defaultdict(int)
    for shingle in own:
        for index in places.get(shingle, ()):
            shared[index] += 1
    return any(
        count >= max(_LEAST, _SHARE * min(len(own), sizes[index]))
        for index, count in shared.items()
    )


def _words(row: Row) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", row.messages[-1].content.lower()))


def _shingles(words: tuple[str, ...]) -> set[tuple[str, ...]]:
    return {words[start : start + _WORDS] for start in range(len(words) - _WORDS + 1)}

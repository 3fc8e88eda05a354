"""Edits to a text, and the way back from the edited text's positions to the original's."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Edit(NamedTuple):
    """`text` in place of the characters `[start, end)`, which are never none."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Offsets:
    """Where the characters of an edited text come from.

    Between two neighbouring points lies either text that moved as it was, or one edit that
    changed its length: the size is that of the edits, not of the text.

    Attributes:
        edited: The points' positions in the edited text, rising, from 0 to its length.
        original: The same points' positions in the original.
    """

    edited: array[int]
    original: array[int]

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return the original's range for `[start, end)`, which lies within the edited text.

        An edit that changed the length counts as one piece: its range is never split.
        """
        first = bisect_right(self.edited, start) - 1
        if end <= start:
            position = self._at(first, start) if start < self.edited[-1] else self.original[-1]
            return position, position
        last = bisect_left(self.edited, end) - 1
        stop = self._at(last, end) if self._moved(last) else self.original[last + 1]
        return self._at(first, start), stop

    def _moved(self, index: int) -> bool:
        """Return True if the piece after this point is as long as it was."""
        edited = self.edited[index + 1] - self.edited[index]
        return edited == self.original[index + 1] - self.original[index]

    def _at(self, index: int, position: int) -> int:
        inside = position - self.edited[index] if self._moved(index) else 0
        return self.original[index] + inside


def apply(text: str, edits: Sequence[Edit]) -> tuple[str, Offsets]:
    """Return `text` after `edits`, which are in order and don't overlap, and the way back."""
    pieces: list[str] = []
    edited, original = array("q", [0]), array("q", [0])
    done = length = 0
    for start, end, replacement in edits:
        pieces += (text[done:start], replacement)
        length += start - done + len(replacement)
        done = end
        if len(replacement) != end - start:
            edited.extend((length - len(replacement), length))
            original.extend((start, end))
    pieces.append(text[done:])
    edited.append(length + len(text) - done)
    original.append(len(text))
    return "".join(pieces), Offsets(edited, original)

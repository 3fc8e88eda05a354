"""The readings of a text: as written, without its disguises, and decoded."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from guardrail_sdk._decode import base64_edits, hex_edits, rot13_edits
from guardrail_sdk._fold import fold
from guardrail_sdk._offsets import Edit, Offsets, apply
from guardrail_sdk._types import Span

_SURROGATE = re.compile("[\ud800-\udfff]")
_DECODERS: Mapping[str, Callable[[str], list[Edit]]] = {
    "base64": base64_edits,
    "hex": hex_edits,
    "rot13": rot13_edits,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One way to read a message.

    Attributes:
        name: `written`, `folded`, `base64`, `hex` or `rot13`.
        text: What the message says when it is read this way.
        offsets: The way back to the message as it was given, last step last.
    """

    name: str
    text: str = field(repr=False)
    offsets: tuple[Offsets, ...] = field(default=(), repr=False)

    def original_span(self, start: int, end: int) -> Span:
        """Return the part of the original message that `text[start:end]` comes from.

        A range beyond the text is clamped to it; a range that isn't empty stays so, unless the
        text is empty.
        """
        size = len(self.text)
        if start < end:
            start = max(0, min(start, size - 1))
            end = max(min(end, size), min(start + 1, size))
        else:
            start = end = max(0, min(start, size))
        for offsets in reversed(self.offsets):
            start, end = offsets.span(start, end)
        return Span(start=start, end=end)


def readings(text: str) -> list[Reading]:
    """Return `text` as written, and every other reading that says something else.

    The readings are `written`, in which U+FFFD stands for each lone surrogate; `folded`,
    without invisible characters, styled letters, look-alikes and spaced-out words; `base64`,
    `hex` and `rot13`, in which what is encoded is decoded, once. Ordinary text in any language
    has one reading only. The time taken is linear in the length of `text`.
    """
    written = text if text.isascii() else _SURROGATE.sub("\ufffd", text)
    found = [Reading(name="written", text=written)]
    folded, steps = fold(written)
    if folded and folded != written:
        found.append(Reading(name="folded", text=folded, offsets=steps))
    for name, edits_of in _DECODERS.items():
        if edits := edits_of(folded):
            decoded, offsets = apply(folded, edits)
            found.append(Reading(name=name, text=decoded, offsets=(*steps, offsets)))
    return found

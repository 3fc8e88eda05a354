"""Finds runs of base64, hex and rot13 in a text, and reads what they say: once, within a bound."""

from __future__ import annotations

import binascii
import codecs
import re
from collections.abc import Callable

from guardrail_sdk._offsets import Edit

MAX_RUNS = 64
"""How many runs of one encoding are decoded in a text; the rest stays as written."""
MAX_DECODED_BYTES = 64 * 1024
"""How many bytes the runs of one encoding may decode to altogether."""
MIN_PRINTABLE = 0.9
"""The share of printable characters from which decoded bytes count as text."""
MIN_ENGLISH_WORDS = 2
"""How many different common words a sentence must hold after rot13 to be read that way."""

_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{16,}(?:\r?\n[A-Za-z0-9+/_-]{16,})*={0,2}")
_WORDS = re.compile(r"[A-Z]?[a-z]+(?:[-/_][A-Z]?[a-z]+)*")
_HEX = re.compile(
    r"(?<![0-9a-z])(?:\\x|0x|%)?[0-9a-f]{2}"
    r"(?:[ ,:;-]{0,2}(?:\\x|0x|%)?[0-9a-f]{2}){7,}(?![0-9a-z])",
    re.IGNORECASE | re.ASCII,
)
_HEX_DECORATION = re.compile(r"\\x|0x|[^0-9a-f]", re.IGNORECASE | re.ASCII)
_URL_SAFE = str.maketrans("-_", "+/", "=\r\n")

_ROT13 = str.maketrans(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
    "NOPQRSTUVWXYZABCDEFGHIJKLMnopqrstuvwxyzabcdefghijklm",
)
_SENTENCE = re.compile(r'[^.!?:;"\n]+')
_WORD = re.compile(r"[a-z]+")
# Without a, I, an, at, be, he, in, no, on and or: rotated, they are words of some language.
_COMMON_WORDS = frozenset(
    _WORD.findall(
        "the and for you how what are with that this from have was not can your will who why "
        "where when which their they there all any out make get use give tell want need should "
        "about into without someone of to is it my me by do if so"
    )
)
_ROTATED_WORDS = frozenset(word.translate(_ROT13) for word in _COMMON_WORDS)


def as_text(data: bytes) -> str | None:
    """Return what `data` says if it is UTF-8 text, possibly cut off at its end, else None."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return None
    printable = sum(character.isprintable() or character in "\t\r\n" for character in text)
    return text if text and printable >= MIN_PRINTABLE * len(text) else None


def base64_edits(text: str) -> list[Edit]:
    """Return the base64 runs of 16 characters or more that hold text, with that text.

    Both alphabets count, with or without padding, and lines of a wrapped block are one run.
    """
    return _edits(text, _BASE64, _base64_bytes)


def hex_edits(text: str) -> list[Edit]:
    r"""Return the runs of 16 hex digits or more that hold text, with that text.

    Pairs of digits may follow each other directly, after `0x`, `\x` or `%`, or be separated.
    """
    return _edits(text, _HEX, _hex_bytes)


def rot13_edits(text: str) -> list[Edit]:
    """Return the sentences that are clearly more English after rot13, rotated."""
    if _count(_ROTATED_WORDS, text) < MIN_ENGLISH_WORDS:
        return []
    edits: list[Edit] = []
    for match in _SENTENCE.finditer(text):
        found = _count(_ROTATED_WORDS, match[0])
        if found >= MIN_ENGLISH_WORDS and found > 2 * _count(_COMMON_WORDS, match[0]):
            edits.append(Edit(*match.span(), match[0].translate(_ROT13)))
    return edits


def _edits(
    text: str, pattern: re.Pattern[str], to_bytes: Callable[[str, int], bytes]
) -> list[Edit]:
    edits: list[Edit] = []
    left = MAX_DECODED_BYTES
    for match in pattern.finditer(text):
        data = to_bytes(match[0], left)
        content = as_text(data)
        if content is None:
            continue
        edits.append(Edit(*match.span(), content))
        left -= len(data)
        if len(edits) == MAX_RUNS or left <= 0:
            break
    return edits


def _base64_bytes(run: str, limit: int) -> bytes:
    if _WORDS.fullmatch(run):  # a long word decodes to printable bytes now and then
        return b""
    digits = run.translate(_URL_SAFE)[: (limit + 2) // 3 * 4]
    if len(digits) % 4 == 1:  # no byte ends here: the last character belongs to something else
        digits = digits[:-1]
    return binascii.a2b_base64(digits + "=" * (-len(digits) % 4))[:limit]


def _hex_bytes(run: str, limit: int) -> bytes:
    return bytes.fromhex(_HEX_DECORATION.sub("", run)[: 2 * limit])


def _count(words: frozenset[str], text: str) -> int:
    """Return how many different ones of `words` occur in `text`."""
    return len(words.intersection(_WORD.findall(text.lower())))

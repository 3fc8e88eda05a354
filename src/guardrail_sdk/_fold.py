"""Folds the disguises of a text away: invisible characters, styled letters, look-alikes.

Every rule spares what ordinary text in any language is written with. That's why this isn't
plain NFKC, which takes apart Thai and Lao AM and Indic letters with nukta, and rewrites Korean
letters, CJK punctuation, ellipses and no-break spaces: only ranges that serve to dress up
Latin letters are normalised.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from guardrail_sdk._decode import as_text
from guardrail_sdk._lookalikes import CYRILLIC, FOREIGN, STYLED
from guardrail_sdk._offsets import Edit, Offsets, apply

MAX_PASSES = 4
"""How often a text is folded again because folding brought out more to fold."""
MAX_MARKS = 3
"""How many combining marks one letter may bear; more is decoration, and all of them go."""

_Stage = Callable[[str], list[Edit]]


def fold(text: str) -> tuple[str, tuple[Offsets, ...]]:
    """Return `text` without its disguises, and the way back, last step last.

    There are no steps if there is nothing to fold.
    """
    steps: list[Offsets] = []
    for _ in range(MAX_PASSES):
        before = text
        for stage in _ASCII_STAGES if text.isascii() else _STAGES:
            if edits := stage(text):
                text, offsets = apply(text, edits)
                steps.append(offsets)
        if text == before:
            break
    return text, tuple(steps)


# Characters that don't show, or that only change how others show.
_INVISIBLE = (
    r"\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u180b-\u180f\u200b-\u200f"
    r"\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    r"\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
# Scripts whose letters are joined or kept apart by ZWJ and ZWNJ: Arabic, Indic, Mongolian ...
_JOINING = (
    r"\u0600-\u07ff\u0840-\u0dff\u0f00-\u109f\u1780-\u18af\u1a20-\u1aaf\u1b00-\u1bff\ua800-\ua8ff"
    r"\ua980-\uaadf\uabc0-\uabff\ufb50-\ufdff\ufe70-\ufefc\U00010a00-\U00011fff\U0001e900-\U0001e95f"
)
# Scripts without spaces, where ZWSP says where a line may break: Thai, Lao, Burmese, Khmer ...
_UNSPACED = r"\u0e00-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf"
_EMOJI = r"\u203c-\u3299\U0001f000-\U0001faff"
# What a variation selector may follow: symbols, ideographs and a few letters.
_VARIABLE = (
    r"\xa9\xae\u1000-\u109f\u2010-\u2bff\u2e80-\u9fff\ua840-\ua877\uf900-\ufaff\uff01-\uff0f"
    r"\U0001f000-\U0001faff\U00020000-\U0003ffff"
)
_FLAGS = "|".join(  # England, Scotland, Wales: the only flags that are spelt in tags
    "".join(chr(0xE0000 + ord(letter)) for letter in region)
    for region in ("gbeng", "gbsct", "gbwls")
)
_MEANT = (
    rf"(?:[\u200c\u200d](?:(?<=[{_JOINING}].)|(?=[{_JOINING}]))"
    rf"|\u200b(?:(?<=[{_UNSPACED}].)|(?=[{_UNSPACED}]))"
    rf"|\u200d(?<=[{_EMOJI}].)(?=[{_EMOJI}])|\ufe0f\u200d(?<=[{_EMOJI}]..)(?=[{_EMOJI}])"
    rf"|[\ufe00-\ufe0f\U000e0100-\U000e01ef](?<=[{_VARIABLE}].)"
    r"|\ufe0f(?<=[#*0-9].)(?=\u20e3)"
    rf"|(?:{_FLAGS})\U000e007f(?<=\U0001f3f4.{{6}})"
    r"|[\u180b-\u180f](?<=[\u1800-\u18af].)"
    r"|[\u115f\u1160](?:(?<=[\u1100-\u11ff].)|(?=[\u1100-\u11ff])))"
)
# Marks of direction belong between words of right-to-left text, not inside other words.
_RIGHT_TO_LEFT = (
    r"\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff"
)
_RIGHT_TO_LEFT_LETTER = re.compile(f"[{_RIGHT_TO_LEFT}]")
_DIRECTIONS = r"[\u061c\u200e\u200f\u202a-\u202c\u2066-\u2069]{1,3}"
_DIRECTED = rf"(?:(?<![^\W{_RIGHT_TO_LEFT}]){_DIRECTIONS}|{_DIRECTIONS}(?![^\W{_RIGHT_TO_LEFT}]))"
_INVISIBLE_RUN = re.compile(
    rf"(?P<meant>{_MEANT}(?![{_INVISIBLE}]))|(?P<directed>{_DIRECTED}(?![{_INVISIBLE}]))"
    rf"|[{_INVISIBLE}]+",
    re.DOTALL,
)


def _invisible(text: str) -> list[Edit]:
    """Remove what doesn't show, unless its script needs it there, or reveal what it spells."""
    edits: list[Edit] = []
    bidirectional: bool | None = None
    for match in _INVISIBLE_RUN.finditer(text):
        kind = match.lastgroup
        if kind == "directed" and bidirectional is None:
            bidirectional = _RIGHT_TO_LEFT_LETTER.search(text) is not None
        if kind != "meant" and not (kind == "directed" and bidirectional):
            edits.append(Edit(*match.span(), _smuggled(match[0])))
    return edits


def _smuggled(run: str) -> str:
    """Return the text that invisible characters spell: as tags, or as bytes in selectors."""
    if max(run) < "\ufe00":  # by far the most common case
        return ""
    tags = "".join(chr(ord(c) - 0xE0000) for c in run if 0xE0020 <= ord(c) <= 0xE007E)
    if tags:
        return tags
    selectors = bytes(
        ord(c) - 0xFE00 if ord(c) <= 0xFE0F else ord(c) - 0xE0100 + 16
        for c in run
        if 0xFE00 <= ord(c) <= 0xFE0F or 0xE0100 <= ord(c) <= 0xE01EF
    )
    return (as_text(selectors) or "") if len(selectors) > 1 else ""


_FULL_WIDTH_LETTER = r"[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a]"
_COMPATIBLE = re.compile(
    rf"{_FULL_WIDTH_LETTER}(?:[\uff01-\uff5e\u3000]*{_FULL_WIDTH_LETTER})?"
    r"|[\ufb00-\ufb06]+"  # Latin ligatures
    r"|[\U0001d400-\U0001d7ff]+"  # mathematical alphabets
    r"|[\u2102\u210a-\u2112\u2115\u2119-\u211d\u2124\u2128\u212a\u212c\u212d\u212f-\u2134"
    r"\u2145-\u2149]+"  # their letters among the letter-like symbols
    r"|[\u02b0-\u02b8\u02e1-\u02e3\u1d2c-\u1d6a\u2071\u207f\u2090-\u209c]{2,}"  # raised, lowered
    # shapes of Arabic letters
    r"|[\ufb50-\ufbb1\ufbd3-\ufc5d\ufc64-\ufcf1\ufcf5-\ufd3d\ufd50-\ufdc7\ufe80-\ufefc]+"
)
# An odd number of regional indicators is no row of flags: they are meant as letters.
_INDICATOR = r"[\U0001f1e6-\U0001f1ff]"
_LETTERS_OF_FLAGS = re.compile(
    rf"(?<!{_INDICATOR}){_INDICATOR}(?:{_INDICATOR}{_INDICATOR})*(?!{_INDICATOR})"
)
_INDICATORS = {0x1F1E6 + i: chr(ord("A") + i) for i in range(26)}


def _compatible(text: str) -> list[Edit]:
    """Turn styled letters, full-width ASCII and Arabic shapes into the letters they stand for."""
    return _replacements(text, _COMPATIBLE, lambda run: unicodedata.normalize("NFKC", run))


def _letters_of_flags(text: str) -> list[Edit]:
    """Turn regional indicators that are no flags into letters."""
    return _replacements(text, _LETTERS_OF_FLAGS, lambda run: run.translate(_INDICATORS))


_MARKS = r"\u0300-\u036f\u20d0-\u20df\u20e1\u20e5-\u20f0\u3099\u309a"
_MARK = re.compile(f"[{_MARKS}]")
_MARKED = re.compile(rf"[^{_MARKS}]?[{_MARKS}]+")
_OVERLAYS = str.maketrans("", "", "\u0334\u0335\u0336\u0337\u0338\u20d2\u20d3\u20d8\u20e5\u20eb")
_JAMO = re.compile(r"[\uac00-\ud7a3]?[\u1100-\u11ff]+")


def _marks(text: str) -> list[Edit]:
    """Compose letters with their combining marks; drop strokes through letters, and heaps."""
    return _replacements(text, _MARKED, _composed)


def _composed(run: str) -> str:
    # Heaps never reach normalize(), which takes quadratic time to sort them.
    base = "" if _MARK.match(run) else run[:1]
    marks = run[len(base) :]
    if len(marks) > MAX_MARKS:
        return base
    return unicodedata.normalize("NFC", base + marks.translate(_OVERLAYS))


def _hangul(text: str) -> list[Edit]:
    """Compose Korean syllables that came in pieces."""
    return _replacements(text, _JAMO, lambda run: unicodedata.normalize("NFC", run))


_STYLED_LETTERS = "".join(chr(code) for code in STYLED if code < 0x10000) + (
    r"\U0001f110-\U0001f129\U0001f130-\U0001f149\U0001f150-\U0001f169\U0001f170-\U0001f189"
)
_WORD = re.compile(rf"(?:[^\W_]|[{_STYLED_LETTERS}]\ufe0f?|[{_MARKS}])+")
_STYLED_LETTER = re.compile(f"[{_STYLED_LETTERS}]")
_LATIN_LETTER = re.compile(rf"[A-Za-z{_STYLED_LETTERS}]")
_NOT_STYLED = str.maketrans({**STYLED, 0xFE0F: ""})
_ANY_LATIN = re.compile(r"[A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff]")
_GREEK_LETTER = re.compile(r"[\u0370-\u03ff]")
_CYRILLIC_LETTER = re.compile(r"[\u0400-\u052f]")
_FOREIGN_LETTER = re.compile(r"[\u0370-\u03ff\u0400-\u052f\u0531-\u0587\u13a0-\u13fd\u1f00-\u1fff]")


def _words(text: str) -> list[Edit]:
    """Turn styled letters, and look-alikes in words that mix scripts, into plain letters."""
    mixed = _ANY_LATIN.search(text) and _FOREIGN_LETTER.search(text)
    if not mixed and not _STYLED_LETTER.search(text):
        return []
    return _replacements(text, _WORD, _plain)


def _plain(word: str) -> str:
    if word.isascii():
        return word
    # One styled letter alone is a symbol: an emoji, a list's label, a numeral.
    if _STYLED_LETTER.search(word) and len(_LATIN_LETTER.findall(word)) > 1:
        word = word.translate(_NOT_STYLED)
    foreign = _FOREIGN_LETTER.findall(word)
    if not foreign or not _ANY_LATIN.search(word):
        return word
    if len(word) < 3 and _GREEK_LETTER.search(word):  # a formula
        return word
    # Letters that pass for Latin ones all through the word, not an ending after a Latin stem.
    if all(ord(letter) in FOREIGN for letter in foreign):
        return word.translate(FOREIGN)
    latin = _ANY_LATIN.findall(word)
    if all(_CYRILLIC_LETTER.match(c) for c in foreign) and all(ord(c) in CYRILLIC for c in latin):
        return word.translate(CYRILLIC)
    return word


_SPACE = r"[ \xa0\u2000-\u200a\u202f\u3000]"
_SEPARATOR = r"[.\-_*~\xb7\u2010-\u2015\u2022]"
_LATIN = r"[A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f]"
_OTHER = r"[\u0370-\u03ff\u0400-\u052f]"
_SPACED = re.compile(
    rf"(?<!\w)(?:{_LATIN}(?:({_SPACE}){_LATIN}(?:\1{_LATIN})+|({_SEPARATOR}){_LATIN}(?:\2{_LATIN})*)"
    rf"|{_OTHER}({_SPACE}|{_SEPARATOR}){_OTHER}(?:\3{_OTHER}){{3,}})(?!\w)"
)
_SPACED_WORD = 7
"""The length of four letters with separators: shorter runs alone are taken for initials."""


def _spaced(text: str) -> list[Edit]:
    """Join words whose letters are spaced out, in texts where one of them has four or more.

    Shorter words count only along with such a word, since U.S.A. is three letters, too, and two
    letters with a space between them never do. Cyrillic and Greek words count from five letters
    on: Russian has words of one letter.
    """
    runs = [match.span() for match in _SPACED.finditer(text)]
    if not any(end - start >= _SPACED_WORD for start, end in runs):
        return []
    return [Edit(start, end, text[start:end:2]) for start, end in runs]


def _replacements(text: str, pattern: re.Pattern[str], replace: Callable[[str], str]) -> list[Edit]:
    """Return an edit for every match that `replace` changes."""
    edits: list[Edit] = []
    for match in pattern.finditer(text):
        replacement = replace(match[0])
        if replacement != match[0]:
            edits.append(Edit(*match.span(), replacement))
    return edits


_ASCII_STAGES: tuple[_Stage, ...] = (_invisible, _spaced)
_STAGES: tuple[_Stage, ...] = (
    _invisible,
    _compatible,
    _letters_of_flags,
    _marks,
    _hangul,
    _words,
    _spaced,
)

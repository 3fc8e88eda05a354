"""Characters that look like Latin letters, by script: a short list of what people abuse."""

from __future__ import annotations

from collections.abc import Mapping

_CYRILLIC: Mapping[str, str] = {
    "A": "\u0410",
    "B": "\u0412",
    "C": "\u0421",
    "E": "\u0415",
    "G": "\u050c",
    "H": "\u041d",
    "I": "\u0406\u04c0",
    "J": "\u0408",
    "K": "\u041a",
    "M": "\u041c",
    "O": "\u041e",
    "P": "\u0420",
    "Q": "\u051a",
    "S": "\u0405",
    "T": "\u0422",
    "W": "\u051c",
    "X": "\u0425",
    "Y": "\u0423\u04ae",
    "a": "\u0430",
    "b": "\u0432\u044c",
    "c": "\u0441",
    "d": "\u0501",
    "e": "\u0435\u0451",
    "h": "\u043d\u04bb",
    "i": "\u0456\u0457",
    "j": "\u0458",
    "k": "\u043a",
    "l": "\u04cf",
    "m": "\u043c",
    "o": "\u043e",
    "p": "\u0440",
    "q": "\u051b",
    "s": "\u0455",
    "t": "\u0442",
    "v": "\u0475",
    "w": "\u051d",
    "x": "\u0445",
    "y": "\u0443",
}
_GREEK: Mapping[str, str] = {
    "A": "\u0391",
    "B": "\u0392",
    "E": "\u0395",
    "H": "\u0397",
    "I": "\u0399",
    "K": "\u039a",
    "M": "\u039c",
    "N": "\u039d",
    "O": "\u039f",
    "P": "\u03a1",
    "T": "\u03a4",
    "X": "\u03a7",
    "Y": "\u03a5",
    "Z": "\u0396",
    "a": "\u03b1",
    "c": "\u03f2",
    "e": "\u03b5",
    "i": "\u03b9",
    "j": "\u03f3",
    "k": "\u03ba",
    "n": "\u03b7",
    "o": "\u03bf",
    "p": "\u03c1",
    "t": "\u03c4",
    "u": "\u03c5",
    "v": "\u03bd",
    "w": "\u03c9",
    "x": "\u03c7",
    "y": "\u03b3",
}
_ARMENIAN: Mapping[str, str] = {
    "L": "\u053c",
    "O": "\u0555",
    "S": "\u054f",
    "U": "\u054d",
    "g": "\u0581",
    "h": "\u0570",
    "j": "\u0575",
    "n": "\u0578",
    "o": "\u0585",
    "q": "\u0566",
    "u": "\u057d",
}
_CHEROKEE: Mapping[str, str] = {
    "A": "\u13aa",
    "B": "\u13f4",
    "C": "\u13df",
    "D": "\u13a0",
    "E": "\u13ac",
    "G": "\u13c0",
    "H": "\u13bb",
    "J": "\u13ab",
    "K": "\u13e6",
    "L": "\u13de",
    "M": "\u13b7",
    "P": "\u13e2",
    "R": "\u13a1",
    "S": "\u13da",
    "T": "\u13a2",
    "V": "\u13d9",
    "W": "\u13b3",
    "Z": "\u13c3",
}
_STYLED: Mapping[str, str] = {  # small capitals, phonetic letters, Roman numerals, litre
    "C": "\u216d",
    "D": "\u216e",
    "I": "\u2160",
    "L": "\u216c",
    "M": "\u216f",
    "V": "\u2164",
    "X": "\u2169",
    "a": "\u1d00\u0251",
    "b": "\u0299",
    "c": "\u1d04\u217d",
    "d": "\u1d05\u217e",
    "e": "\u1d07",
    "f": "\ua730",
    "g": "\u0262\u0261",
    "h": "\u029c",
    "i": "\u026a\u2170",
    "j": "\u1d0a",
    "k": "\u1d0b",
    "l": "\u029f\u217c\u2113",
    "m": "\u1d0d\u217f",
    "n": "\u0274",
    "o": "\u1d0f",
    "p": "\u1d18",
    "q": "\ua7af",
    "r": "\u0280",
    "s": "\ua731",
    "t": "\u1d1b",
    "u": "\u1d1c",
    "v": "\u1d20\u2174",
    "w": "\u1d21",
    "x": "\u2179",
    "y": "\u028f",
    "z": "\u1d22",
}
_CAPITAL_ALPHABETS = (0x24B6, 0x1F110, 0x1F130, 0x1F150, 0x1F170)  # in circles, brackets, squares
_SMALL_ALPHABETS = (0x249C, 0x24D0)


def _by_lookalike(*tables: Mapping[str, str]) -> dict[int, str]:
    return {
        ord(lookalike): latin
        for table in tables
        for latin, lookalikes in table.items()
        for lookalike in lookalikes
    }


FOREIGN: Mapping[int, str] = _by_lookalike(_CYRILLIC, _GREEK, _ARMENIAN, _CHEROKEE)
"""Letters of other scripts, by code point, with the Latin letter each passes for."""

STYLED: Mapping[int, str] = {
    **_by_lookalike(_STYLED),
    **{first + i: chr(ord("A") + i) for first in _CAPITAL_ALPHABETS for i in range(26)},
    **{first + i: chr(ord("a") + i) for first in _SMALL_ALPHABETS for i in range(26)},
}
"""Latin letters in disguise that NFKC leaves as they are, or that ordinary text holds, too."""

CYRILLIC: Mapping[int, str] = {ord(latin): _CYRILLIC[latin][0] for latin in "ABCEHKMOPTXYaceopxy"}
"""Latin letters, by code point, with the Cyrillic letter each passes for."""

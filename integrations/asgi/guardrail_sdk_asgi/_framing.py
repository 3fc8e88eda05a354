"""Cuts the body of a response into the pieces that are judged and leave as they came.

It is pure: bytes in, in whatever portions, and pieces out. Where a portion ends makes no
difference to the pieces of an event stream or of lines.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final, Protocol

from guardrail_sdk import MessageError
from guardrail_sdk_asgi._types import Headers, media_types, values

_LINE_END: Final = re.compile("\r\n|\r|\n")
_LINE_END_BYTES: Final = re.compile(b"\r\n|\r|\n")
_LINES: Final = frozenset(
    f"application/{name}"
    for name in ("jsonl", "jsonlines", "ndjson", "x-jsonl", "x-jsonlines", "x-ndjson")
)
_NOT_UTF8: Final = "The body is not UTF-8, so it can't be judged."
_PLAIN: Final = frozenset({"text/plain", "text/markdown"})


class Kind(Enum):
    """How a body is framed."""

    JSON = auto()
    TEXT = auto()
    LINES = auto()
    EVENTS = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One event, one line, a portion of text, or a whole body."""

    kind: Kind
    raw: bytes
    """What leaves."""
    size: int
    """How many bytes it came as."""
    payload: str = ""
    """What its reader reads: JSON or text."""
    aside: str = ""
    """Lines of an event that no reader should see; they are judged all the same."""
    kept: str = ""
    """What of an event stays when its payload is replaced: its name and id."""
    changed: bool = False

    def holding(self, payload: str) -> Piece:
        """Return a copy that holds `payload` in place of all that it said."""
        framed = payload
        if self.kind is Kind.LINES:
            framed = f"{payload}\n"
        elif self.kind is Kind.EVENTS:
            framed = event(payload, self.kept)
        raw = framed.encode("utf-8", "replace")
        return replace(self, raw=raw, payload=payload, aside="", changed=True)


def event(payload: str, kept: str = "") -> str:
    """Return the event of an event stream that holds `payload`, after the lines `kept`."""
    return kept + "".join(f"data: {line}\n" for line in _LINE_END.split(payload)) + "\n"


def kind_of(headers: Headers) -> Kind:
    """Return how a response with these headers is framed.

    Raises:
        MessageError: If its body can't be read, so that it can't be judged.
    """
    if any(value not in ("", "identity") for value in values(headers, b"content-encoding")):
        raise MessageError(
            "The response is compressed, so it can't be judged: put what compresses it outside "
            "the guard."
        )
    types = media_types(headers)
    if len(types) != 1:
        raise MessageError("The response doesn't say what it is: give it one media type.")
    media, charset = types[0]
    if charset not in ("", "utf-8", "utf8", "us-ascii"):
        raise MessageError("The response is not in UTF-8, so it can't be judged.")
    if media == "text/event-stream":
        return Kind.EVENTS
    if media in _LINES:
        return Kind.LINES
    if media in _PLAIN:
        return Kind.TEXT
    if media == "application/json" or media.endswith("+json"):
        return Kind.JSON
    raise MessageError(
        "The response is none of JSON, an event stream, JSON lines and plain text, so it can't be "
        "judged: change its media type, or don't guard this route."
    )


class Splitter(Protocol):
    """Takes a body in, portion by portion."""

    def feed(self, portion: bytes) -> Iterator[Piece]:
        """Yield the pieces that `portion` completes."""
        ...

    def finish(self) -> Iterator[Piece]:
        """Yield what is left at the end of the body."""
        ...


def splitter(kind: Kind) -> Splitter:
    """Return what cuts a stream of this kind."""
    if kind is Kind.EVENTS:
        return _Events()
    return _Lines() if kind is Kind.LINES else _Text()


def whole(kind: Kind, raw: bytes) -> Piece:
    """Return a whole body as one piece."""
    return Piece(kind=kind, raw=raw, size=len(raw), payload=decoded(raw))


def decoded(raw: bytes) -> str:
    """Return `raw` as text.

    Raises:
        MessageError: If it isn't UTF-8.
    """
    with suppress(UnicodeDecodeError):  # which holds the text
        return raw.decode("utf-8")
    raise MessageError(_NOT_UTF8)


class _Events:
    """Cuts an event stream after each empty line."""

    def __init__(self) -> None:
        self._event = bytearray()
        self._within_line = False
        self._undecided = b""
        self._first = True

    def feed(self, portion: bytes) -> Iterator[Piece]:
        # Whether a CR ends a line alone shows in what follows it.
        portion = self._undecided + portion
        self._undecided = b"\r" if portion.endswith(b"\r") else b""
        yield from self._cut(portion.removesuffix(b"\r"))

    def finish(self) -> Iterator[Piece]:
        yield from self._cut(self._undecided)
        if self._event:
            yield self._piece(bytes(self._event))

    def _cut(self, portion: bytes) -> Iterator[Piece]:
        start = line = 0
        for end in _LINE_END_BYTES.finditer(portion):
            empty = end.start() == line and not self._within_line
            line, self._within_line = end.end(), False
            if empty:
                raw = bytes(self._event) + portion[start:line]
                self._event.clear()
                start = line
                yield self._piece(raw)
        self._event += portion[start:]
        self._within_line = self._within_line or line < len(portion)

    def _piece(self, raw: bytes) -> Piece:
        text = decoded(raw)
        if self._first:
            text, self._first = text.removeprefix("\ufeff"), False
        data: list[str] = []
        aside: list[str] = []
        kept = ""
        for line in _LINE_END.split(text):
            name, _, value = line.partition(":")
            if name == "data":
                data.append(value.removeprefix(" "))
            elif name in ("event", "id", "retry"):
                kept += f"{line}\n"
            elif name:
                aside.append(line)
        return Piece(
            kind=Kind.EVENTS,
            raw=raw,
            size=len(raw),
            payload="\n".join(data),
            aside="\n".join(aside),
            kept=kept,
        )


class _Lines:
    """Cuts JSON lines."""

    def __init__(self) -> None:
        self._line = bytearray()

    def feed(self, portion: bytes) -> Iterator[Piece]:
        *lines, rest = portion.split(b"\n")
        for line in lines:
            raw = bytes(self._line) + line + b"\n"
            self._line.clear()
            yield self._piece(raw)
        self._line += rest

    def finish(self) -> Iterator[Piece]:
        if self._line:
            yield self._piece(bytes(self._line))

    def _piece(self, raw: bytes) -> Piece:
        text = decoded(raw).strip(" \t\r\n")
        return Piece(kind=Kind.LINES, raw=raw, size=len(raw), payload=text)


class _Text:
    """Cuts plain text where its sender does, but never within a character."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def feed(self, portion: bytes) -> Iterator[Piece]:
        yield from self._pieces(portion, final=False)

    def finish(self) -> Iterator[Piece]:
        yield from self._pieces(b"", final=True)

    def _pieces(self, portion: bytes, *, final: bool) -> Iterator[Piece]:
        text = None
        with suppress(UnicodeDecodeError):  # which holds the text
            text = self._decoder.decode(portion, final)
        if text is None:
            raise MessageError(_NOT_UTF8)
        if text:
            raw = text.encode()
            yield Piece(kind=Kind.TEXT, raw=raw, size=len(raw), payload=text)

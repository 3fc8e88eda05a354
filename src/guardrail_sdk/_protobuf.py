"""The wire format of protobuf, which ONNX files are written in: fields in, fields out.

Only what tells fields apart is known here; what they mean is for the readers to say. A reader that
is stricter than other parsers is safe, one that reads another message than they do isn't: numbers
that they would cut are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED: Final = {_FIXED64: 8, _FIXED32: 4}
_MOST_VARINT_BYTES: Final = 10


class Field(NamedTuple):
    """One field of a message."""

    number: int
    value: int | memoryview
    """A number, or the contents of a field that holds bytes, text or a message."""
    whole: memoryview
    """The field as it stands, to be copied."""


def fields(message: memoryview) -> Iterator[Field]:
    """Yield the fields of `message` in order.

    Raises:
        ValueError: If `message` is not protobuf, or has groups, which proto3 doesn't.
    """
    place = 0
    while place < len(message):
        start = place
        tag, place = _varint(message, place)
        number, wire = tag >> 3, tag & 7
        value: int | memoryview
        if tag >> 32:  # parsers cut such a tag to 32 bits, and read another field than it says
            raise ValueError("a field with a number that is too large")
        if wire == _VARINT:
            value, place = _varint(message, place)
        elif wire in _FIXED:
            value = int.from_bytes(message[place : place + _FIXED[wire]], "little")
            place += _FIXED[wire]
        elif wire == _BYTES:
            length, place = _varint(message, place)
            value = message[place : place + length]
            place += length
        else:
            raise ValueError("a field of a kind that onnx.proto doesn't have")
        if place > len(message):
            raise ValueError("a field that ends after its message")
        yield Field(number, value, message[start:place])


def integers(value: int | memoryview) -> list[int]:
    """Return the numbers that one field of a repeated integer holds: one, or many packed.

    Raises:
        ValueError: If a number doesn't end.
    """
    if isinstance(value, int):
        return [value]
    found: list[int] = []
    place = 0
    while place < len(value):
        one, place = _varint(value, place)
        found.append(one)
    return found


def number(field: int, value: int) -> bytes:
    """Return a field that holds an integer, not negative."""
    return _spelt(field << 3 | _VARINT) + _spelt(value)


def contents(field: int, value: bytes) -> bytes:
    """Return a field that holds bytes or a message."""
    return opening(field, len(value)) + value


def opening(field: int, length: int) -> bytes:
    """Return what stands before the contents of a field that holds `length` bytes."""
    return _spelt(field << 3 | _BYTES) + _spelt(length)


def text(field: int, value: str) -> bytes:
    """Return a field that holds a string."""
    return contents(field, value.encode())


def _spelt(value: int) -> bytes:
    spelt = bytearray()
    while value > 0x7F:
        spelt.append(value & 0x7F | 0x80)
        value >>= 7
    spelt.append(value)
    return bytes(spelt)


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """Return the number in base 128 at `place`, and where it ends."""
    value = 0
    for offset in range(_MOST_VARINT_BYTES):
        if place + offset >= len(message):
            break
        byte = message[place + offset]
        value |= (byte & 0x7F) << (7 * offset)
        if byte < 0x80:
            return value, place + offset + 1
    raise ValueError("a number that doesn't end")

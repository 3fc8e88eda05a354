"""Finds the files that an ONNX graph keeps weights in, before onnxruntime opens them.

An ONNX file is protobuf, and only a parser finds every name: fields may come in any order, and a
length may be spelt in more bytes than it needs. Message and field numbers are those of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

_INSIDE: Final[Mapping[str, Mapping[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
"""By message: its fields that hold messages which may lead to a tensor, and their kinds."""
_KEY: Final = 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED: Final = {_FIXED64: 8, _FIXED32: 4}
_MOST_VARINT_BYTES: Final = 10


def external_files(graph: bytes) -> frozenset[str]:
    """Return what the tensors of an ONNX model give as the `location` of their data.

    Raises:
        ValueError: If `graph` is not protobuf as onnx.proto has it.
    """
    found: set[str] = set()
    pending = [("model", memoryview(graph))]
    while pending:
        kind, message = pending.pop()
        fields = list(_byte_fields(message))
        if kind == "entry":
            # A field that is given twice counts both times: parsers differ in which one they take.
            if any(number == _KEY and bytes(field) == b"location" for number, field in fields):
                values = (field for number, field in fields if number != _KEY)
                found.update(bytes(value).decode(errors="replace") for value in values)
            continue
        inside = _INSIDE[kind]
        pending += [(inside[number], field) for number, field in fields if number in inside]
    return frozenset(found)


def _byte_fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield number and contents of each field of `message` that holds bytes, text or a message."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        number, wire = tag >> 3, tag & 7
        if tag >> 32:  # parsers cut such a tag to 32 bits, and read another field than it says
            raise ValueError("a field with a number that is too large")
        if wire == _VARINT:
            _, place = _varint(message, place)
        elif wire in _FIXED:
            place += _FIXED[wire]
        elif wire == _BYTES:
            length, place = _varint(message, place)
            yield number, message[place : place + length]
            place += length
        else:
            raise ValueError("a field of a kind that onnx.proto doesn't have")
    if place > len(message):
        raise ValueError("a field that ends after its message")


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

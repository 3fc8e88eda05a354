"""Finds the files that an ONNX graph keeps weights in, before onnxruntime opens them.

An ONNX file is protobuf, and only a parser finds every name: fields may come in any order, and a
length may be spelt in more bytes than it needs. Message and field numbers are those of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from guardrail_sdk._protobuf import fields

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


def external_files(graph: bytes) -> frozenset[str]:
    """Return what the tensors of an ONNX model give as the `location` of their data.

    Raises:
        ValueError: If `graph` is not protobuf as onnx.proto has it.
    """
    found: set[str] = set()
    pending = [("model", memoryview(graph))]
    while pending:
        kind, message = pending.pop()
        inner = [
            (field.number, field.value)
            for field in fields(message)
            if isinstance(field.value, memoryview)
        ]
        if kind == "entry":
            # A field that is given twice counts both times: parsers differ in which one they take.
            if any(number == _KEY and bytes(field) == b"location" for number, field in inner):
                values = (field for number, field in inner if number != _KEY)
                found.update(bytes(value).decode(errors="replace") for value in values)
            continue
        inside = _INSIDE[kind]
        pending += [(inside[number], field) for number, field in inner if number in inside]
    return frozenset(found)

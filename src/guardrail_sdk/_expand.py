"""Rewrites an INT4 graph so that its projections run faster than MatMulNBits does.

Small models spend a check in matrix products of many rows, and onnxruntime's INT8 product is the
faster one there. The file stays INT4; what runs is made from it, and computes nearly the same:
activations are rounded per row instead of per row and block, weights to 7 bits per output channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from guardrail_sdk import _protobuf as protobuf

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Kernel = Literal["int4", "int8", "float32"]
"""What projections run as: `int4` is the file as it stands."""

EXPANSION: Final = 1
"""The version of what `expand` makes: an older one may lie in a cache."""

# Field numbers of onnx.proto.
_GRAPH, _OPSETS = 7, 8
_NODE, _WEIGHT = 1, 5
_INPUT, _OUTPUT, _NAME, _KIND, _ATTRIBUTE, _DOMAIN = 1, 2, 3, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_TYPE, _INT_TYPE = 1, 3, 20, 2
_DIMS, _DATA_TYPE, _TENSOR_NAME, _RAW, _EXTERNAL = 1, 2, 8, 9, 13
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_KEY, _VALUE = 1, 2

_TYPES: Final = {1: "<f4", 2: "|u1", 3: "|i1", 7: "<i8"}
_FLOAT, _UINT8 = 1, 2
_MICROSOFT: Final = "com.microsoft"
_LEAST_OPSET: Final = 18  # from here on, reductions take their axes as an input
_PREFIX: Final = "guardrail.expanded."
# 255 * 63 * 2 fits 16 bits: CPUs without VNNI add two such products in one 16-bit lane.
_LARGEST_WEIGHT: Final = 63


@dataclass(frozen=True, slots=True)
class _Node:
    kind: str
    domain: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    integers: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A constant of the graph: in the file itself, or in another at an offset."""

    data_type: int
    shape: tuple[int, ...]
    raw: memoryview | None
    location: str
    offset: int

    def read(self, folder: Path) -> NDArray[np.generic]:
        import numpy as np

        kind = np.dtype(_TYPES[self.data_type])
        if self.raw is not None:
            return np.frombuffer(self.raw, kind).reshape(self.shape)
        if not self.location:
            raise ValueError("a weight that is neither raw nor in a file")
        return np.memmap(folder / self.location, kind, "r", self.offset, self.shape)


def expand(graph: bytes, folder: Path, kernel: Kernel) -> bytes:
    """Return an ONNX model that computes `graph`'s projections with `kernel`.

    New weights lie in the model itself; others stay where they were, relative to `folder`. A
    projection of another layout than the pipeline's (zero points, another bit width, a bias) is
    left as it is.

    Args:
        graph: An ONNX model with MatMulNBits projections.
        folder: Where the files lie that it keeps weights in.
        kernel: What to compute with; `int4` returns `graph`.

    Raises:
        ValueError: If `graph` is not an ONNX model of operator set 18 or later.
        OSError: If a file of weights can't be read.
    """
    if kernel == "int4":
        return graph
    model = list(protobuf.fields(memoryview(graph)))
    if _opset(model) < _LEAST_OPSET:
        raise ValueError(f"an operator set before {_LEAST_OPSET}")
    found: list[bytes] = []
    for field in model:
        if field.number == _GRAPH and isinstance(field.value, memoryview):
            inside = _Expansion(list(protobuf.fields(field.value)), folder).run(kernel)
            found.append(protobuf.contents(_GRAPH, inside))
        else:
            found.append(bytes(field.whole))
    return b"".join(found)


class _Expansion:
    """One graph being rewritten."""

    def __init__(self, fields: Sequence[protobuf.Field], folder: Path) -> None:
        self._fields = fields
        self._folder = folder
        self._tensors = {
            name: tensor
            for field in fields
            if field.number == _WEIGHT and isinstance(field.value, memoryview)
            for name, tensor in [_tensor(field.value)]
        }
        self._replaced: set[str] = set()
        self._nodes: list[bytes] = []
        self._weights: dict[str, bytes] = {}
        self._rounded: dict[str, tuple[str, str]] = {}

    def run(self, kernel: Kernel) -> bytes:
        """Return the new graph's fields."""
        kept: list[protobuf.Field] = []
        for field in self._fields:
            if field.number != _NODE or not isinstance(field.value, memoryview):
                kept.append(field)
                continue
            node = _node(field.value)
            if not self._is_projection(node):
                self._nodes.append(bytes(field.whole))
            elif kernel == "int8":
                self._add_int8(node)
            else:
                self._add_float32(node)
        others = [
            bytes(field.whole)
            for field in kept
            if not (
                field.number == _WEIGHT
                and isinstance(field.value, memoryview)
                and _tensor(field.value)[0] in self._replaced
            )
        ]
        return b"".join([*self._nodes, *others, *self._weights.values()])

    def _is_projection(self, node: _Node) -> bool:
        return (
            (node.kind, node.domain) == ("MatMulNBits", _MICROSOFT)
            and len(node.inputs) == 3
            and len(node.outputs) == 1
            and node.integers.get("bits") == 4
            and all(node.integers.get(name, 0) > 0 for name in ("K", "N", "block_size"))
            and [self._type(name) for name in node.inputs[1:]] == [_UINT8, _FLOAT]
        )

    def _type(self, name: str) -> int:
        return self._tensors[name].data_type if name in self._tensors else 0

    def _weight(self, node: _Node) -> NDArray[np.float32]:
        """Return a projection's weight float32 [N, K], and note that it is replaced."""
        import numpy as np

        self._replaced.update(node.inputs[1:])
        codes, scales = (self._tensors[name].read(self._folder) for name in node.inputs[1:])
        rows, depth, block = (node.integers[name] for name in ("N", "K", "block_size"))
        packed = np.asarray(codes, np.uint8).reshape(rows, -1, block // 2)
        nibbles = np.stack([packed & 15, packed >> 4], axis=-1).reshape(rows, -1, block)
        values = nibbles.astype(np.float32)
        values -= 8
        values *= np.asarray(scales, np.float32).reshape(rows, -1, 1)
        return values.reshape(rows, -1)[:, :depth]

    def _add_float32(self, node: _Node) -> None:
        weight = self._constant(f"{node.outputs[0]}.weight", self._weight(node).T)
        self._add("MatMul", [node.inputs[0], weight], node.outputs[0])

    def _add_int8(self, node: _Node) -> None:
        """Add a product of rows of uint8, with zero point 128, and channels of int8."""
        import numpy as np

        weight = self._weight(node)
        scales = np.maximum(np.abs(weight).max(axis=1) / _LARGEST_WEIGHT, np.float32(1e-30))
        codes = np.rint(weight / scales[:, None]).astype(np.int8)
        output = node.outputs[0]
        rows, row_scales = self._rounded_rows(node.inputs[0])
        self._add(
            "MatMulIntegerToFloat",
            [
                rows,
                self._constant(f"{output}.codes", codes.T),
                self._constant("one", np.array(1, np.float32)),
                self._constant(f"{output}.scales", scales.astype(np.float32)),
                self._constant("zero", np.array(128, np.uint8)),
            ],
            _PREFIX + f"{output}.product",
            domain=_MICROSOFT,
        )
        self._add("Mul", [_PREFIX + f"{output}.product", row_scales], output)

    def _rounded_rows(self, states: str) -> tuple[str, str]:
        """Add the rounding of `states`, once; return its codes uint8 and scales float32."""
        import numpy as np

        if states in self._rounded:
            return self._rounded[states]
        own = f"{_PREFIX}{states}."
        least = self._constant("least", np.array(1e-30, np.float32))
        top = self._constant("top", np.array(127, np.float32))
        # The cast cuts off, so half a step more rounds to the nearest.
        shift = self._constant("shift", np.array(128.5, np.float32))
        axis = self._constant("last_axis", np.array([-1], np.int64))
        self._add("Abs", [states], own + "abs")
        self._add("ReduceMax", [own + "abs", axis], own + "largest", keepdims=1)
        self._add("Max", [own + "largest", least], own + "bound")
        self._add("Div", [top, own + "bound"], own + "inverse")
        self._add("Mul", [states, own + "inverse"], own + "scaled")
        self._add("Add", [own + "scaled", shift], own + "shifted")
        self._add("Cast", [own + "shifted"], own + "codes", to=_UINT8)
        self._add("Div", [own + "bound", top], own + "scales")
        self._rounded[states] = own + "codes", own + "scales"
        return self._rounded[states]

    def _add(
        self, kind: str, inputs: Sequence[str], output: str, *, domain: str = "", **integers: int
    ) -> None:
        parts = [protobuf.text(_INPUT, name) for name in inputs]
        parts += [protobuf.text(_OUTPUT, output), protobuf.text(_KIND, kind)]
        parts.append(protobuf.text(_NAME, f"{_PREFIX}{output}/{kind}"))
        for name, value in integers.items():
            attribute = (
                protobuf.text(_ATTRIBUTE_NAME, name)
                + protobuf.number(_ATTRIBUTE_INT, value)
                + protobuf.number(_ATTRIBUTE_TYPE, _INT_TYPE)
            )
            parts.append(protobuf.contents(_ATTRIBUTE, attribute))
        if domain:
            parts.append(protobuf.text(_DOMAIN, domain))
        self._nodes.append(protobuf.contents(_NODE, b"".join(parts)))

    def _constant(self, name: str, values: NDArray[np.generic]) -> str:
        """Add a constant unless it is there; return its name."""
        name = _PREFIX + name
        if name not in self._weights:
            kinds = {kind: number for number, kind in _TYPES.items()}
            parts = [protobuf.number(_DIMS, size) for size in values.shape]
            parts.append(protobuf.number(_DATA_TYPE, kinds[values.dtype.str]))
            parts += [protobuf.text(_TENSOR_NAME, name), protobuf.contents(_RAW, values.tobytes())]
            self._weights[name] = protobuf.contents(_WEIGHT, b"".join(parts))
        return name


def _opset(model: Sequence[protobuf.Field]) -> int:
    """Return the version of the standard operators."""
    for field in model:
        if field.number == _OPSETS and isinstance(field.value, memoryview):
            entry = {inner.number: inner.value for inner in protobuf.fields(field.value)}
            version = entry.get(_OPSET_VERSION, 0)
            if not entry.get(_OPSET_DOMAIN) and isinstance(version, int):
                return version
    return 0


def _node(message: memoryview) -> _Node:
    names: dict[int, list[str]] = {_INPUT: [], _OUTPUT: [], _KIND: [], _DOMAIN: []}
    integers: dict[str, int] = {}
    for field in protobuf.fields(message):
        if not isinstance(field.value, memoryview):
            continue
        if field.number in names:
            names[field.number].append(bytes(field.value).decode())
        elif field.number == _ATTRIBUTE:
            inner = {one.number: one.value for one in protobuf.fields(field.value)}
            name, value = inner.get(_ATTRIBUTE_NAME), inner.get(_ATTRIBUTE_INT)
            if isinstance(name, memoryview) and isinstance(value, int):
                integers[bytes(name).decode()] = value
    kind, domain = ("".join(names[number][-1:]) for number in (_KIND, _DOMAIN))
    return _Node(kind, domain, names[_INPUT], names[_OUTPUT], integers)


def _tensor(message: memoryview) -> tuple[str, _Tensor]:
    """Return the name of a constant and where its values lie."""
    name, data_type, raw = "", 0, None
    shape: list[int] = []
    places: dict[str, str] = {}
    for field in protobuf.fields(message):
        if field.number == _DIMS:
            shape += protobuf.integers(field.value)
        elif field.number == _DATA_TYPE and isinstance(field.value, int):
            data_type = field.value
        elif isinstance(field.value, memoryview):
            if field.number == _TENSOR_NAME:
                name = bytes(field.value).decode()
            elif field.number == _RAW:
                raw = field.value
            elif field.number == _EXTERNAL:
                entry = {
                    one.number: bytes(one.value).decode()
                    for one in protobuf.fields(field.value)
                    if isinstance(one.value, memoryview)
                }
                places[entry.get(_KEY, "")] = entry.get(_VALUE, "")
    location, offset = places.get("location", ""), int(places.get("offset", "0"))
    return name, _Tensor(data_type, tuple(shape), raw, location, offset)

"""Rewrites an INT4 graph so that its projections run faster than MatMulNBits does.

Small models spend a check in matrix products of many rows, and onnxruntime's INT8 product is the
faster one there. The file stays INT4; what runs is made from it, and computes nearly the same:
activations are rounded per row instead of per row and block, weights to 7 bits per output channel.
"""

from __future__ import annotations

import math
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
_SIGNATURE, _VALUE_NAME = (11, 12), 1
_INPUT, _OUTPUT, _NAME, _KIND, _ATTRIBUTE, _DOMAIN = 1, 2, 3, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_TYPE, _INT_TYPE = 1, 3, 20, 2
_ATTRIBUTE_GRAPHS: Final = {6, 11}
_DIMS, _DATA_TYPE, _TENSOR_NAME, _RAW, _EXTERNAL = 1, 2, 8, 9, 13
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_KEY, _VALUE = 1, 2

_TYPES: Final = {1: "<f4", 2: "|u1", 3: "|i1", 7: "<i8"}
_FLOAT, _UINT8 = 1, 2
_MICROSOFT: Final = "com.microsoft"
_LEAST_OPSET: Final = 18  # from here on, reductions take their axes as an input
_PREFIX: Final = "guardrail.expanded/"
_WEIGHTS, _VALUES = _PREFIX + "weights/", _PREFIX + "values/"
_BLOCKS: Final = (16, 32, 64, 128, 256)
_LARGEST_SIZE: Final = 2**31
_LARGEST_MODEL: Final = 2**31 - 2**20
# 255 * 63 * 2 fits 16 bits: CPUs without VNNI add two such products in one 16-bit lane.
_LARGEST_WEIGHT: Final = 63


@dataclass(frozen=True, slots=True)
class _Node:
    kind: str
    domain: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    integers: Mapping[str, int]
    has_graphs: bool
    """Whether an attribute holds a graph, which may use any name."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A constant of the graph: in the file itself, or in another at an offset."""

    data_type: int
    shape: tuple[int, ...]
    raw: memoryview | None
    location: str
    offset: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)

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
        ValueError: If `graph` is not an ONNX model of operator set 18 or later, or the new one
            is too large.
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
            if (size := sum(map(len, inside))) > _LARGEST_MODEL:
                raise ValueError(
                    f"it would have {size / 2**30:.1f} GiB, and onnxruntime takes 2 in one piece"
                )
            # The parts are joined once: they may be hundreds of megabytes.
            found += [protobuf.opening(_GRAPH, size), *inside]
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
        self._parts: list[bytes] = []
        self._used: set[str] = set()
        self._has_graphs = False
        self._replaced: set[str] = set()
        self._made: set[str] = set()
        self._rounded: dict[str, tuple[str, str]] = {}

    def run(self, kernel: Kernel) -> Sequence[bytes]:
        """Return the new graph's fields.

        Raises:
            ValueError: If a name of the graph is one that would be given to a new value.
        """
        weights: list[protobuf.Field] = []
        for field in self._fields:
            if field.number == _NODE and isinstance(field.value, memoryview):
                self._rewrite(_node(field.value), bytes(field.whole), kernel)
            elif field.number == _WEIGHT:
                weights.append(field)
            else:
                if field.number in _SIGNATURE and isinstance(field.value, memoryview):
                    self._used.add(_value_name(field.value))
                self._parts.append(bytes(field.whole))
        if any(name.startswith(_PREFIX) for name in (*self._tensors, *self._used)):
            raise ValueError(f"a name that starts with {_PREFIX}")
        for field in weights:
            name = _tensor(field.value)[0] if isinstance(field.value, memoryview) else ""
            if name not in self._replaced or name in self._used or self._has_graphs:
                self._parts.append(bytes(field.whole))
        return self._parts

    def _rewrite(self, node: _Node, whole: bytes, kernel: Kernel) -> None:
        if self._is_projection(node):
            self._used.update((node.inputs[0], *node.outputs))
            self._replaced.update(node.inputs[1:])
            (self._add_int8 if kernel == "int8" else self._add_float32)(node)
            return
        self._used.update(node.inputs, node.outputs)
        self._has_graphs |= node.has_graphs
        self._parts.append(whole)

    def _is_projection(self, node: _Node) -> bool:
        """Return whether `node` has the layout that the pipeline writes, its weights included."""
        if (
            (node.kind, node.domain) != ("MatMulNBits", _MICROSOFT)
            or (len(node.inputs), len(node.outputs)) != (3, 1)
            or node.integers.get("bits") != 4
            or [self._type(name) for name in node.inputs[1:]] != [_UINT8, _FLOAT]
        ):
            return False
        rows, depth, block = (node.integers.get(name, 0) for name in ("N", "K", "block_size"))
        if not (0 < rows < _LARGEST_SIZE and 0 < depth < _LARGEST_SIZE and block in _BLOCKS):
            return False
        blocks = rows * -(-depth // block)
        codes, scales = (self._tensors[name].size for name in node.inputs[1:])
        return codes == blocks * block // 2 and scales == blocks

    def _type(self, name: str) -> int:
        return self._tensors[name].data_type if name in self._tensors else 0

    def _weight(self, node: _Node) -> NDArray[np.float32]:
        """Return a projection's weight float32 [N, K]."""
        import numpy as np

        codes, scales = (self._tensors[name].read(self._folder) for name in node.inputs[1:])
        rows, depth, block = (node.integers[name] for name in ("N", "K", "block_size"))
        packed = np.asarray(codes, np.uint8).reshape(rows, -1, block // 2)
        nibbles = np.stack([packed & 15, packed >> 4], axis=-1).reshape(rows, -1, block)
        values = nibbles.astype(np.float32)
        values -= 8
        values *= np.asarray(scales, np.float32).reshape(rows, -1, 1)
        if not np.isfinite(values).all():
            raise ValueError("a weight that is not a number")
        return values.reshape(rows, -1)[:, :depth]

    def _add_float32(self, node: _Node) -> None:
        own = _weight_name(node)
        if own not in self._made:
            self._constant(own, self._weight(node).T)
        self._add("MatMul", [node.inputs[0], own], node.outputs[0])

    def _add_int8(self, node: _Node) -> None:
        """Add a product of rows of uint8, with zero point 128, and channels of int8."""
        import numpy as np

        own, output = _weight_name(node), node.outputs[0]
        if own not in self._made:
            weight = self._weight(node)
            scales = np.maximum(np.abs(weight).max(axis=1) / _LARGEST_WEIGHT, np.float32(1e-30))
            self._constant(own + "/scales", scales.astype(np.float32))
            self._constant(own, np.rint(weight / scales[:, None]).astype(np.int8).T)
        rows, row_scales = self._rounded_rows(node.inputs[0])
        one = self._constant(_WEIGHTS + "one", np.array(1, np.float32))
        zero = self._constant(_WEIGHTS + "zero", np.array(128, np.uint8))
        product = f"{_VALUES}{output}/product"
        inputs = [rows, own, one, own + "/scales", zero]
        self._add("MatMulIntegerToFloat", inputs, product, domain=_MICROSOFT)
        self._add("Mul", [product, row_scales], output)

    def _rounded_rows(self, states: str) -> tuple[str, str]:
        """Add the rounding of `states`, once; return its codes uint8 and scales float32."""
        import numpy as np

        if states in self._rounded:
            return self._rounded[states]
        own = f"{_VALUES}{states}/"
        least = self._constant(_WEIGHTS + "least", np.array(1e-30, np.float32))
        top = self._constant(_WEIGHTS + "top", np.array(127, np.float32))
        # The cast cuts off, so half a step more rounds to the nearest.
        shift = self._constant(_WEIGHTS + "shift", np.array(128.5, np.float32))
        axis = self._constant(_WEIGHTS + "last_axis", np.array([-1], np.int64))
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
        self._parts.append(protobuf.contents(_NODE, b"".join(parts)))

    def _constant(self, name: str, values: NDArray[np.generic]) -> str:
        """Add a constant unless it is there; return its name."""
        if name not in self._made:
            self._made.add(name)
            kinds = {kind: number for number, kind in _TYPES.items()}
            parts = [protobuf.number(_DIMS, size) for size in values.shape]
            parts.append(protobuf.number(_DATA_TYPE, kinds[values.dtype.str]))
            parts += [protobuf.text(_TENSOR_NAME, name), protobuf.contents(_RAW, values.tobytes())]
            self._parts.append(protobuf.contents(_WEIGHT, b"".join(parts)))
        return name


def _weight_name(node: _Node) -> str:
    """Return a name for what `node` multiplies by: nodes that share it have the same."""
    layout = "/".join(str(node.integers[name]) for name in ("N", "K", "block_size"))
    return f"{_WEIGHTS}{layout}/{node.inputs[1]}/{node.inputs[2]}"


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
    has_graphs = False
    for field in protobuf.fields(message):
        if not isinstance(field.value, memoryview):
            continue
        if field.number in names:
            names[field.number].append(bytes(field.value).decode())
        elif field.number == _ATTRIBUTE:
            inner = {one.number: one.value for one in protobuf.fields(field.value)}
            has_graphs |= not _ATTRIBUTE_GRAPHS.isdisjoint(inner)
            name, value = inner.get(_ATTRIBUTE_NAME), inner.get(_ATTRIBUTE_INT)
            if isinstance(name, memoryview) and isinstance(value, int):
                integers[bytes(name).decode()] = value
    kind, domain = ("".join(names[number][-1:]) for number in (_KIND, _DOMAIN))
    return _Node(kind, domain, names[_INPUT], names[_OUTPUT], integers, has_graphs)


def _value_name(message: memoryview) -> str:
    """Return the name of a graph's input or output."""
    for field in protobuf.fields(message):
        if field.number == _VALUE_NAME and isinstance(field.value, memoryview):
            return bytes(field.value).decode()
    return ""


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

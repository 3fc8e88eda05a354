"""An ONNX graph in the making: nodes, INT4 weights, and the files they end up in.

The quantised graph holds the integer codes that the model was trained with: they are packed,
never found anew, so the graph computes what training saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from guardrail_model_build.quant import quantise_weight

OPSET = 21
BLOCK_SIZES = (16, 32, 64, 128, 256)
"""The block sizes for which onnxruntime computes in INT8."""
_MICROSOFT = "com.microsoft"
_INT32 = int(TensorProto.INT32)
_IR_VERSION = 10  # the one that came with opset 21: older runtimes refuse newer numbers
_INLINE = 1024  # bytes up to which a weight stays in the graph
_MICROSOFT_KINDS = frozenset(
    {
        "BiasGelu",
        "GatherBlockQuantized",
        "GroupQueryAttention",
        "MatMulNBits",
        "MultiHeadAttention",
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    }
)

Array = NDArray[np.generic]
Attribute = int | float
Signature = tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]
"""A graph's inputs and outputs."""


def pack_nibbles(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Return codes [..., K] in [-8, 7] as bytes [..., K / 2]: code + 8, the first one low."""
    nibbles = (codes + 8).astype(np.uint8)
    return nibbles[..., 0::2] | (nibbles[..., 1::2] << np.uint8(4))


class Graph:
    """Nodes and weights in the making; every value is known by its name."""

    def __init__(self, block_size: int | None) -> None:
        self.block_size = block_size
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[tuple[str, Array]] = []

    def weight(self, name: str, values: Array | Tensor) -> str:
        """Add a constant; return its name."""
        array = values.detach().numpy() if isinstance(values, Tensor) else values
        self._weights.append((name, np.ascontiguousarray(array)))
        return name

    def node(
        self, kind: str, inputs: Sequence[str], output: str | Sequence[str], **attributes: Attribute
    ) -> str:
        """Add an operator; return the name of its first output."""
        outputs = [output] if isinstance(output, str) else list(output)
        domain = _MICROSOFT if kind in _MICROSOFT_KINDS else ""
        made = helper.make_node(kind, inputs, outputs, f"{outputs[0]}/{kind}", domain=domain)
        made.attribute.extend(
            helper.make_attribute(key, value) for key, value in sorted(attributes.items())
        )
        self._nodes.append(made)
        return outputs[0]

    def linear(self, states: str, weight: Tensor, name: str) -> str:
        """Add `states` [..., K] times `weight` [N, K]: INT4, or float32 without a block size."""
        if self.block_size is None:
            return self.float_linear(states, weight, name)
        rows, depth = weight.shape
        packed, scales = _pack(weight, self.block_size)
        inputs = [
            states,
            self.weight(f"{name}.codes", packed.reshape(rows, -1, self.block_size // 2)),
            self.weight(f"{name}.scales", scales),
        ]
        shape = {"K": depth, "N": rows, "bits": 4, "block_size": self.block_size}
        return self.node("MatMulNBits", inputs, name, accuracy_level=4, **shape)

    def float_linear(self, states: str, weight: Tensor, name: str) -> str:
        """Add `states` [..., K] times `weight` [N, K] in float32."""
        return self.node("MatMul", [states, self.weight(f"{name}.weight", weight.T)], name)

    def embedding(self, ids: str, table: Tensor, name: str) -> str:
        """Add the lookup of `ids` in `table` [vocabulary, hidden]."""
        if self.block_size is None:
            return self.node("Gather", [self.weight(f"{name}.weight", table), ids], name, axis=0)
        packed, scales = _pack(table, self.block_size)
        inputs = [
            self.weight(f"{name}.codes", packed[:, : table.shape[1] // 2]),
            ids,
            self.weight(f"{name}.scales", scales),
        ]
        layout = {"bits": 4, "block_size": self.block_size, "gather_axis": 0, "quantize_axis": 1}
        return self.node("GatherBlockQuantized", inputs, name, **layout)

    def save(
        self, path: Path, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
    ) -> None:
        """Write the graph to `path` and its weights to `path` + `.data`."""
        data = path.with_name(path.name + ".data")
        with data.open("wb") as file:
            weights = [_store(name, array, file, data.name) for name, array in self._weights]
        graph = helper.make_graph(self._nodes, "guardrail", inputs, outputs, weights)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(_MICROSOFT, 1)]
        made = helper.make_model(graph, opset_imports=opsets, producer_name="guardrail-model-build")
        made.ir_version = _IR_VERSION
        path.write_bytes(made.SerializeToString(deterministic=True))


def _pack(weight: Tensor, block: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return `weight` [N, K] as bytes [N, padded K / 2] and scales [N, padded K / block]."""
    codes, scales = quantise_weight(weight.detach(), block)
    padded = np.pad(codes.numpy(), ((0, 0), (0, -codes.shape[1] % block)))
    return pack_nibbles(padded), scales.numpy()


def _store(name: str, array: Array, file: BinaryIO, location: str) -> TensorProto:
    """Return a weight that stays in the graph if it is small, else lies in `file`."""
    if array.nbytes <= _INLINE:
        return numpy_helper.from_array(array, name)
    # Whole pages let the runtime map a large weight; a cache line is enough for the others.
    alignment = 4096 if array.nbytes >= 1 << 16 else 64
    file.write(bytes(-file.tell() % alignment))
    entries = {"location": location, "offset": file.tell(), "length": array.nbytes}
    file.write(array.tobytes())
    data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor = TensorProto(name=name, data_type=data_type, dims=array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor

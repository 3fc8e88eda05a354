"""Reads the weights of an exported model folder back: the very codes and scales that run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from tokenizers import Tokenizer

from guardrail_model_build.bert import BertConfig
from guardrail_model_build.export import GRAPH
from guardrail_model_build.llama import LlamaConfig, RopeScaling
from guardrail_sdk.artifact import Artifact

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Packed:
    """An INT4 weight [rows, depth].

    Attributes:
        codes: int8 [rows, depth] in [-8, 7].
        scales: float32 [rows, depth / block].
    """

    codes: NDArray[np.int8]
    scales: Array

    @property
    def block(self) -> int:
        """Weights that share a scale."""
        return self.codes.shape[1] // self.scales.shape[1]

    def values(self) -> Array:
        """Return the float32 weight that the codes stand for."""
        return self.codes * np.repeat(self.scales, self.block, axis=1)

    def rows(self, rows: slice | NDArray[np.int64]) -> Packed:
        """Return some of the rows."""
        return Packed(self.codes[rows], self.scales[rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """The weights of an exported graph by the names that `decoder` and `encoder` gave them.

    Attributes:
        config: The model's shape.
        packed: The INT4 weights [outputs, inputs], and the embedding.
        plain: The other weights, as the graph holds them.
    """

    config: LlamaConfig | BertConfig
    packed: Mapping[str, Packed]
    plain: Mapping[str, Array]


def unpack(artifact: Artifact) -> Unpacked:
    """Read a model folder's weights.

    Raises:
        ValueError: If a weight's depth is no multiple of its block, or the folder of a decoder
            lacks the `config.json` that `export_folder` writes.
    """
    graph = onnx.load(artifact.folder / GRAPH).graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    packed = {
        name.removesuffix(".codes"): _packed(
            codes, weights[f"{name.removesuffix('.codes')}.scales"]
        )
        for name, codes in weights.items()
        if name.endswith(".codes")
    }
    plain = {
        name: array for name, array in weights.items() if not name.endswith((".codes", ".scales"))
    }
    encoder = artifact.manifest.family == "encoder"
    shape = _encoder(artifact, packed, plain, graph) if encoder else _decoder(artifact)
    return Unpacked(config=shape, packed=packed, plain=plain)


def split_qkv(fused: Packed, config: LlamaConfig | BertConfig) -> list[Packed]:
    """Return the query, key and value projections of a fused one."""
    heads = config.heads * config.head_dim
    kv = config.kv_heads * config.head_dim if isinstance(config, LlamaConfig) else heads
    ends = (0, heads, heads + kv, heads + 2 * kv)
    return [fused.rows(slice(start, end)) for start, end in pairwise(ends)]


def _packed(bytes_: NDArray[np.uint8], scales: Array) -> Packed:
    rows = bytes_.reshape(len(bytes_), -1)
    nibbles = np.stack((rows & 15, rows >> 4), axis=-1).reshape(len(rows), -1)
    scales = scales.reshape(len(rows), -1)
    if nibbles.shape[1] % scales.shape[1]:
        raise ValueError(f"A weight of depth {nibbles.shape[1]} is no multiple of its block.")
    return Packed(nibbles.astype(np.int8) - np.int8(8), scales)


def _decoder(artifact: Artifact) -> LlamaConfig:
    path = artifact.folder / "config.json"
    if not path.exists():
        raise ValueError(f"{path} is missing: export the decoder with `export_folder`.")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    scaling: dict[str, Any] | None = found.get("rope_scaling")
    return LlamaConfig(
        vocab_size=found["vocab_size"],
        hidden=found["hidden_size"],
        mlp=found["intermediate_size"],
        layers=found["num_hidden_layers"],
        heads=found["num_attention_heads"],
        kv_heads=found["num_key_value_heads"],
        head_dim=found["head_dim"],
        outputs=len(artifact.manifest.outputs),
        norm_eps=found["rms_norm_eps"],
        rope_theta=found["rope_theta"],
        rope_scaling=RopeScaling(
            **{name: scaling[name] for name in RopeScaling.__dataclass_fields__}
        )
        if scaling
        else None,
        context=found["max_position_embeddings"],
    )


def _encoder(
    artifact: Artifact,
    packed: Mapping[str, Packed],
    plain: Mapping[str, Array],
    graph: onnx.GraphProto,
) -> BertConfig:
    vocabulary, hidden = packed["embedding"].codes.shape
    tokenizer = Tokenizer.from_file(str(artifact.tokenizer))
    epsilon = next(
        float(str(np.float32(attribute.f)))
        for node in graph.node
        if node.op_type == "LayerNormalization"
        for attribute in node.attribute
        if attribute.name == "epsilon"
    )
    return BertConfig(
        vocab_size=vocabulary,
        hidden=hidden,
        mlp=packed["layers.0.up"].codes.shape[0],
        layers=artifact.manifest.layers,
        heads=hidden // artifact.manifest.head_dim,
        outputs=len(artifact.manifest.outputs),
        markers=tuple(tokenizer.get_vocab()[marker] for marker in ("<user>", "<assistant>")),
        norm_eps=epsilon,
        context=plain["positions.weight"].shape[0],
    )

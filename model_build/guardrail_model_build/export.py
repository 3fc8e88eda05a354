"""Writes a decoder as an ONNX graph that stock onnxruntime runs, node by node.

The quantised graph holds the integer codes that the model was trained with: they are packed,
never found anew, so the graph computes what training saw. Key and value names follow the
ecosystem's convention (`past_key_values.N.key`), so that its runners load the same file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from pydantic import JsonValue
from torch import Tensor

from guardrail_model_build.model import Block, Checkpoint, Llama, LlamaConfig, rotary
from guardrail_model_build.quant import quantise_weight
from guardrail_model_build.workspace import Metrics, Workspace

OPSET = 21
BLOCK_SIZES = (16, 32, 64, 128, 256)
"""The block sizes for which onnxruntime computes in INT8."""
GRAPH = "model.onnx"
_MICROSOFT = "com.microsoft"
_INT32 = int(TensorProto.INT32)
_IR_VERSION = 10  # the one that came with opset 21: older runtimes refuse newer numbers
_INLINE = 1024  # bytes up to which a weight stays in the graph
_MICROSOFT_KINDS = frozenset(
    {
        "GatherBlockQuantized",
        "GroupQueryAttention",
        "MatMulNBits",
        "SkipSimplifiedLayerNormalization",
    }
)

Array = NDArray[np.generic]
Attribute = int | float


def run(workspace: Workspace, out: Path) -> Metrics:
    """Write the trained student's INT4 graph, and what optimum needs to open it, into `out`."""
    checkpoint = workspace.checkpoint("qat")
    export_folder(checkpoint, out, workspace.recipe.block_size)
    size = sum((out / name).stat().st_size for name in (GRAPH, f"{GRAPH}.data"))
    return {"graph_megabytes": round(size / 1e6, 1)}


def export_onnx(model: Llama, path: Path, block_size: int | None) -> None:
    """Write `model` to `path`, and its weights beside it to `path` + `.data`.

    The graph maps `input_ids` int64 [batch, sequence], `attention_mask` int64 [batch, past +
    sequence] and `past_key_values.N.key` / `.value` float32 [batch, kv_heads, past, head_dim] to
    `logits` float32 [batch, sequence, outputs] and `present.N.key` / `.value` float32 [batch,
    kv_heads, past + sequence, head_dim]. Batches are right-padded: a row's mask is ones, then
    zeros. More than one token on top of a past needs batch 1: onnxruntime's attention refuses
    the rest.

    Args:
        model: The decoder. Its own `round_to` state plays no part.
        path: The ONNX file; overwritten, like its data file.
        block_size: Weights that share a scale, one of `BLOCK_SIZES`: embedding and projections
            become INT4, computed with INT8 activations. None for a float32 graph.

    Raises:
        ValueError: If the block size is none of `BLOCK_SIZES`.
    """
    if block_size is not None and block_size not in BLOCK_SIZES:
        raise ValueError(f"block_size is {block_size}: pass one of {BLOCK_SIZES}, or None.")
    graph = _Graph(block_size)
    _decoder(graph, model)
    graph.save(path, *_signature(model.config))


def export_folder(checkpoint: Checkpoint, folder: Path, block_size: int | None) -> None:
    """Write a checkpoint's graph, tokenizer and Hugging Face configuration into `folder`.

    The configuration lets optimum-onnx's `ORTModelForCausalLM` open the folder; it assumes
    head_dim = hidden / heads. Its logits are the outputs of the guard, in the template's order,
    not the vocabulary: read them, don't generate.

    Args:
        checkpoint: The decoder and its tokenizer.
        folder: Made if missing. Gets `model.onnx`, `model.onnx.data`, `tokenizer.json`,
            `config.json` and `generation_config.json`.
        block_size: As for `export_onnx`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    export_onnx(checkpoint.model(), folder / GRAPH, block_size)
    (folder / "tokenizer.json").write_bytes(checkpoint.tokenizer)
    _write_json(folder / "config.json", _hugging_face(checkpoint.config))
    _write_json(folder / "generation_config.json", {"do_sample": False, "use_cache": True})


def pack_nibbles(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Return codes [..., K] in [-8, 7] as bytes [..., K / 2]: code + 8, the first one low."""
    nibbles = (codes + 8).astype(np.uint8)
    return nibbles[..., 0::2] | (nibbles[..., 1::2] << np.uint8(4))


class _Graph:
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


def _decoder(graph: _Graph, model: Llama) -> None:
    """Add the whole decoder, from `input_ids` to `logits`."""
    config = model.config
    context = _context(graph, config)
    states = graph.embedding("input_ids", model.model.embed_tokens.weight, "embedding")
    skip = ""
    for index, block in enumerate(model.model.blocks):
        name = f"layers.{index}"
        gain = graph.weight(f"{name}.input_norm.gain", block.input_layernorm.weight)
        if skip:
            normed, states = _skip_norm(graph, states, skip, gain, f"{name}.input_norm", config)
        else:
            normed = _norm(graph, states, gain, f"{name}.input_norm", config)
        mixed = _attention(graph, normed, block, index, context, config)
        gain = graph.weight(f"{name}.mlp_norm.gain", block.post_attention_layernorm.weight)
        normed, states = _skip_norm(graph, states, mixed, gain, f"{name}.mlp_norm", config)
        skip = _mlp(graph, normed, block, name)
    gain = graph.weight("norm.gain", model.model.norm.weight)
    normed, _ = _skip_norm(graph, states, skip, gain, "norm", config)
    graph.float_linear(normed, model.lm_head.weight, "logits")


def _context(graph: _Graph, config: LlamaConfig) -> list[str]:
    """Add what every attention reads: row lengths, total length, rotary tables."""
    mask = "attention_mask"
    one = graph.weight("one", np.array([1], np.int64))
    length = graph.node("ReduceSum", [mask, one], "length", keepdims=0)
    last = graph.node("Cast", [graph.node("Sub", [length, one], "last")], "last_int32", to=_INT32)
    shape = graph.node("Shape", [mask], "mask_shape")
    column = graph.weight("column", np.array(1, np.int64))
    total = graph.node("Gather", [shape, column], "total", axis=0)
    total = graph.node("Cast", [total], "total_int32", to=_INT32)
    cos, sin = rotary(config, config.context)
    return [last, total, graph.weight("cos", cos), graph.weight("sin", sin)]


def _attention(
    graph: _Graph, states: str, block: Block, index: int, context: list[str], config: LlamaConfig
) -> str:
    """Add one block's attention: fused Q, K and V, rotary positions inside the kernel."""
    name, own = f"layers.{index}", block.self_attn
    weight = torch.cat((own.q_proj.weight, own.k_proj.weight, own.v_proj.weight))
    past = [f"past_key_values.{index}.{part}" for part in ("key", "value")]
    present = [f"present.{index}.{part}" for part in ("key", "value")]
    mixed = graph.node(
        "GroupQueryAttention",
        [graph.linear(states, weight, f"{name}.qkv"), "", "", *past, *context],
        [f"{name}.attention", *present],
        num_heads=config.heads,
        kv_num_heads=config.kv_heads,
        scale=config.head_dim**-0.5,
        do_rotary=1,
        rotary_interleaved=0,
    )
    return graph.linear(mixed, own.o_proj.weight, f"{name}.out")


def _mlp(graph: _Graph, states: str, block: Block, name: str) -> str:
    """Add one block's gated feed-forward network."""
    gate = graph.linear(states, block.mlp.gate_proj.weight, f"{name}.gate")
    up = graph.linear(states, block.mlp.up_proj.weight, f"{name}.up")
    sigmoid = graph.node("Sigmoid", [gate], f"{name}.sigmoid")
    silu = graph.node("Mul", [gate, sigmoid], f"{name}.silu")
    neurons = graph.node("Mul", [silu, up], f"{name}.neurons")
    return graph.linear(neurons, block.mlp.down_proj.weight, f"{name}.down")


def _norm(graph: _Graph, states: str, gain: str, name: str, config: LlamaConfig) -> str:
    """Add the first norm in standard operators; onnxruntime fuses them when it loads the graph.

    Its own one-operator form sits in ONNX's domain without being ONNX, which checkers refuse.
    """
    two = graph.weight(f"{name}.two", np.array(2, np.float32))
    axis = graph.weight(f"{name}.axis", np.array([-1], np.int64))
    epsilon = graph.weight(f"{name}.epsilon", np.array(config.norm_eps, np.float32))
    squares = graph.node("Pow", [states, two], f"{name}.squares")
    mean = graph.node("ReduceMean", [squares, axis], f"{name}.mean", keepdims=1)
    root = graph.node("Sqrt", [graph.node("Add", [mean, epsilon], f"{name}.sum")], f"{name}.root")
    scaled = graph.node("Div", [states, root], f"{name}.scaled")
    return graph.node("Mul", [gain, scaled], name)


def _skip_norm(
    graph: _Graph, states: str, skip: str, gain: str, name: str, config: LlamaConfig
) -> tuple[str, str]:
    """Add `states + skip` and its norm; return the norm and the sum."""
    total = f"{name}.residual"
    outputs = [name, "", "", total]
    kind = "SkipSimplifiedLayerNormalization"
    return graph.node(kind, [states, skip, gain], outputs, epsilon=config.norm_eps), total


def _signature(
    config: LlamaConfig,
) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """Return the graph's inputs and outputs."""
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
    mask = helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "total"])
    shape = ["batch", "sequence", config.outputs]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)
    past = _cache(config, "past_key_values", "past")
    return [ids, mask, *past], [logits, *_cache(config, "present", "total")]


def _cache(config: LlamaConfig, prefix: str, length: str) -> list[onnx.ValueInfoProto]:
    shape = ["batch", config.kv_heads, length, config.head_dim]
    return [
        helper.make_tensor_value_info(f"{prefix}.{index}.{part}", TensorProto.FLOAT, shape)
        for index in range(config.layers)
        for part in ("key", "value")
    ]


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


def _hugging_face(config: LlamaConfig) -> dict[str, JsonValue]:
    """Return the configuration in the fields of transformers' LlamaConfig."""
    fields: dict[str, JsonValue] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden,
        "intermediate_size": config.mlp,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.context,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "use_cache": True,
    }
    if config.rope_scaling is not None:
        fields["rope_scaling"] = {"rope_type": "llama3", **asdict(config.rope_scaling)}
    return fields


def _write_json(path: Path, content: dict[str, JsonValue]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

"""The decoder's ONNX graph, node by node.

Key and value names follow the ecosystem's convention (`past_key_values.N.key`), so that its
runners load the same file.
"""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from guardrail_model_build.graph import Graph, Signature
from guardrail_model_build.llama import Block, Llama, LlamaConfig, rotary

_INT32 = int(TensorProto.INT32)


def decoder(graph: Graph, model: Llama) -> Signature:
    """Add the whole decoder, from `input_ids` to `logits`; return the graph's inputs and outputs.

    It maps `input_ids` int64 [batch, sequence], `attention_mask` int64 [batch, past +
    sequence] and `past_key_values.N.key` / `.value` float32 [batch, kv_heads, past, head_dim] to
    `logits` float32 [batch, sequence, outputs] and `present.N.key` / `.value` float32 [batch,
    kv_heads, past + sequence, head_dim]. Batches are right-padded: a row's mask is ones, then
    zeros. More than one token on top of a past needs batch 1: onnxruntime's attention refuses
    the rest.
    """
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
    return _signature(config)


def _context(graph: Graph, config: LlamaConfig) -> list[str]:
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
    graph: Graph, states: str, block: Block, index: int, context: list[str], config: LlamaConfig
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


def _mlp(graph: Graph, states: str, block: Block, name: str) -> str:
    """Add one block's gated feed-forward network."""
    gate = graph.linear(states, block.mlp.gate_proj.weight, f"{name}.gate")
    up = graph.linear(states, block.mlp.up_proj.weight, f"{name}.up")
    sigmoid = graph.node("Sigmoid", [gate], f"{name}.sigmoid")
    silu = graph.node("Mul", [gate, sigmoid], f"{name}.silu")
    neurons = graph.node("Mul", [silu, up], f"{name}.neurons")
    return graph.linear(neurons, block.mlp.down_proj.weight, f"{name}.down")


def _norm(graph: Graph, states: str, gain: str, name: str, config: LlamaConfig) -> str:
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
    graph: Graph, states: str, skip: str, gain: str, name: str, config: LlamaConfig
) -> tuple[str, str]:
    """Add `states + skip` and its norm; return the norm and the sum."""
    total = f"{name}.residual"
    outputs = [name, "", "", total]
    kind = "SkipSimplifiedLayerNormalization"
    return graph.node(kind, [states, skip, gain], outputs, epsilon=config.norm_eps), total


def _signature(config: LlamaConfig) -> Signature:
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

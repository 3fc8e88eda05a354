"""The encoder's ONNX graph, node by node."""

from __future__ import annotations

import numpy as np
import torch
from onnx import TensorProto, helper
from torch import nn

from guardrail_model_build.bert import Bert, BertConfig, Layer
from guardrail_model_build.graph import Graph, Signature
from guardrail_model_build.linear import Linear

_INT32, _INT64, _BOOL = int(TensorProto.INT32), int(TensorProto.INT64), int(TensorProto.BOOL)


def encoder(graph: Graph, model: Bert) -> Signature:
    """Add the whole encoder, from `input_ids` to `logits`; return the graph's inputs and outputs.

    It maps `input_ids` int64 [batch, sequence] and `attention_mask` int64 [batch, sequence]
    to `logits` float32 [batch, outputs] and `hidden` float32 [batch, hidden], the pooled state
    that the head reads. Batches are right-padded: a row's mask is ones, then zeros.
    """
    config = model.config
    judged = _judged(graph, config)
    states = _embedded(graph, model, judged)
    mask = graph.node("Cast", ["attention_mask"], "mask_int32", to=_INT32)
    for index, block in enumerate(model.model.blocks):
        name = f"layers.{index}"
        mixed = _attention(graph, states, block, name, mask, config)
        o_proj, norm = block.self_attn.o_proj, block.attn_norm
        states = _skip_norm(graph, mixed, states, norm, o_proj, f"{name}.attn_norm", config)
        down_proj, norm = block.mlp.down_proj, block.mlp_norm
        moved = _feed_forward(graph, states, block, name)
        states = _skip_norm(graph, moved, states, norm, down_proj, f"{name}.mlp_norm", config)
    _read_out(graph, model, states, judged)
    return _signature(config)


def _judged(graph: Graph, config: BertConfig) -> str:
    """Add what is true at the tokens of the judged message: from the last marker on."""
    equal = [
        graph.node(
            "Equal",
            ["input_ids", graph.weight(f"marker.{token}", np.array(token, np.int64))],
            f"is_marker.{token}",
        )
        for token in config.markers
    ]
    opens = equal[0]
    for index, other in enumerate(equal[1:]):
        opens = graph.node("Or", [opens, other], f"opens.{index}")
    ones = graph.node("Cast", [opens], "opens_int64", to=_INT64)
    axis = graph.weight("sequence_axis", np.array(1, np.int64))
    count = graph.node("CumSum", [ones, axis], "messages_so_far")
    axes = graph.weight("sequence_axes", np.array([1], np.int64))
    total = graph.node("ReduceMax", [count, axes], "messages", keepdims=1)
    real = graph.node("Cast", ["attention_mask"], "is_real", to=_BOOL)
    last = graph.node("Equal", [count, total], "in_last_message")
    return graph.node("And", [last, real], "judged")


def _embedded(graph: Graph, model: Bert, judged: str) -> str:
    """Add the sum of word, position and segment embeddings, and its norm."""
    own = model.model
    words = graph.embedding("input_ids", own.embed_tokens.weight, "embedding")
    length = graph.node("Shape", ["input_ids"], "length", start=1, end=2)
    zero = graph.weight("zero", np.array([0], np.int64))
    table = graph.weight("positions.weight", own.embed_positions.weight)
    places = graph.node("Slice", [table, zero, length, zero], "positions")
    segment = graph.node("Cast", [judged], "segment", to=_INT64)
    table = graph.weight("segments.weight", own.embed_segments.weight)
    segments = graph.node("Gather", [table, segment], "segments", axis=0)
    total = graph.node("Add", [graph.node("Add", [words, places], "placed"), segments], "embedded")
    gain, shift = _norm_weights(graph, own.norm, "norm")
    return graph.node(
        "LayerNormalization", [total, gain, shift], "norm", axis=-1, epsilon=model.config.norm_eps
    )


def _attention(
    graph: Graph, states: str, block: Layer, name: str, mask: str, config: BertConfig
) -> str:
    """Add one block's attention, up to its output projection, whose bias the norm adds."""
    own = block.self_attn
    projections = (own.q_proj, own.k_proj, own.v_proj)
    weight = torch.cat([projection.weight for projection in projections])
    fused = graph.linear(states, weight, f"{name}.qkv")
    parts = [f"{name}.{part}" for part in ("query", "key", "value")]
    graph.node("Split", [fused], parts, axis=-1, num_outputs=3)
    bias = graph.weight(
        f"{name}.qkv.bias", torch.cat([projection.bias for projection in projections])
    )
    mixed = graph.node(
        "MultiHeadAttention", [*parts, bias, mask], f"{name}.attention", num_heads=config.heads
    )
    return graph.linear(mixed, own.o_proj.weight, f"{name}.out")


def _feed_forward(graph: Graph, states: str, block: Layer, name: str) -> str:
    """Add one block's feed-forward network, up to its last projection's bias."""
    up = graph.linear(states, block.mlp.up_proj.weight, f"{name}.up")
    bias = graph.weight(f"{name}.up.bias", block.mlp.up_proj.bias)
    neurons = graph.node("BiasGelu", [up, bias], f"{name}.neurons")
    return graph.linear(neurons, block.mlp.down_proj.weight, f"{name}.down")


def _skip_norm(
    graph: Graph,
    states: str,
    skip: str,
    norm: nn.LayerNorm,
    projection: Linear,
    name: str,
    config: BertConfig,
) -> str:
    """Add the norm of `states` + the projection's bias + `skip`."""
    gain, shift = _norm_weights(graph, norm, name)
    bias = graph.weight(f"{name}.bias", projection.bias)
    inputs = [states, skip, gain, shift, bias]
    return graph.node("SkipLayerNormalization", inputs, name, epsilon=config.norm_eps)


def _norm_weights(graph: Graph, norm: nn.LayerNorm, name: str) -> tuple[str, str]:
    return graph.weight(f"{name}.gain", norm.weight), graph.weight(f"{name}.shift", norm.bias)


def _read_out(graph: Graph, model: Bert, states: str, judged: str) -> None:
    """Add the attentive pooling over the judged tokens and the head."""
    scores = graph.float_linear(states, model.pool.weight, "pool_scores")
    axis = graph.weight("last_axis", np.array([-1], np.int64))
    scores = graph.node("Squeeze", [scores, axis], "pool_scores_flat")
    never = graph.weight("never", np.array(np.finfo(np.float32).min, np.float32))
    scores = graph.node("Where", [judged, scores, never], "pool_scores_judged")
    weights = graph.node("Softmax", [scores], "pool_weights", axis=-1)
    middle = graph.weight("middle_axis", np.array([1], np.int64))
    row = graph.node("Unsqueeze", [weights, middle], "pool_row")
    pooled = graph.node("MatMul", [row, states], "pooled")
    hidden = graph.node("Squeeze", [pooled, middle], "hidden")
    logits = graph.float_linear(hidden, model.head.weight, "head")
    graph.node("Add", [logits, graph.weight("head.bias", model.head.bias)], "logits")


def _signature(config: BertConfig) -> Signature:
    shape = ["batch", "sequence"]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, shape)
        for name in ("input_ids", "attention_mask")
    ]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])
        for name, width in (("logits", config.outputs), ("hidden", config.hidden))
    ]
    return inputs, outputs

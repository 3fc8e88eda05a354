"""Writes a model folder's weights as a GGUF file, which llama.cpp runs: the same INT4 codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from numpy.typing import NDArray

from guardrail_model_build.bert import BertConfig
from guardrail_model_build.llama import LlamaConfig, inverse_frequencies
from guardrail_model_build.unpack import Array, Packed, Unpacked, split_qkv

_BLOCK = 32  # of Q4_0
_Q4_0 = GGMLQuantizationType.Q4_0


def write_gguf(model: Unpacked, path: Path) -> None:
    """Write `model` to `path` as Q4_0: its codes as they are, its scales rounded to float16.

    A decoder's unembedding gets a row per token of the vocabulary, as the format wants it: the
    guard's outputs come first, the rest is zeros. An encoder's file holds all but pooling and
    head, which the format doesn't know, and reads single messages: it has one segment embedding.

    Raises:
        ValueError: If a block of the weights isn't made of blocks of 32.
    """
    encoder = isinstance(model.config, BertConfig)
    writer = GGUFWriter(path, "bert" if encoder else "llama")
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_0)
    writer.add_tokenizer_model("no_vocab")
    if isinstance(model.config, BertConfig):
        _add_bert(writer, model, model.config)
    else:
        _add_llama(writer, model, model.config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: GGUFWriter, config: LlamaConfig | BertConfig) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.hidden)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.mlp)
    writer.add_head_count(config.heads)


def _add_llama(writer: GGUFWriter, model: Unpacked, config: LlamaConfig) -> None:
    _add_shape(writer, config)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    if config.rope_scaling is not None:
        exponent = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
        plain = 1.0 / config.rope_theta**exponent
        factors = plain / inverse_frequencies(config).numpy()
        writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))
    _add_packed(writer, "token_embd", model.packed["embedding"])
    for index in range(config.layers):
        own, name = f"layers.{index}", f"blk.{index}"
        query, key, value = split_qkv(model.packed[f"{own}.qkv"], config)
        _add_packed(writer, f"{name}.attn_q", query.rows(_interleaved(config, config.heads)))
        _add_packed(writer, f"{name}.attn_k", key.rows(_interleaved(config, config.kv_heads)))
        _add_packed(writer, f"{name}.attn_v", value)
        _add_packed(writer, f"{name}.attn_output", model.packed[f"{own}.out"])
        for part in ("gate", "up", "down"):
            _add_packed(writer, f"{name}.ffn_{part}", model.packed[f"{own}.{part}"])
        writer.add_tensor(f"{name}.attn_norm.weight", model.plain[f"{own}.input_norm.gain"])
        writer.add_tensor(f"{name}.ffn_norm.weight", model.plain[f"{own}.mlp_norm.gain"])
    writer.add_tensor("output_norm.weight", model.plain["norm.gain"])
    _add_packed(writer, "output", _unembedding(model, config))


def _add_bert(writer: GGUFWriter, model: Unpacked, config: BertConfig) -> None:
    _add_shape(writer, config)
    writer.add_layer_norm_eps(config.norm_eps)
    writer.add_causal_attention(False)
    writer.add_token_type_count(1)
    _add_packed(writer, "token_embd", model.packed["embedding"])
    # llama.cpp adds the first segment's embedding to every token. The tokens of a single message
    # are of the second, but for the one that opens the prompt, always at position 0.
    context, judged = model.plain["segments.weight"]
    positions = model.plain["positions.weight"].copy()
    positions[0] += context - judged
    writer.add_tensor("position_embd.weight", positions)
    writer.add_tensor("token_types.weight", judged[None])
    _add_norm(writer, "token_embd_norm", model, "norm")
    for index in range(config.layers):
        own, name = f"layers.{index}", f"blk.{index}"
        biases = np.split(model.plain[f"{own}.qkv.bias"], 3)
        for part, weight, bias in zip(
            "qkv", split_qkv(model.packed[f"{own}.qkv"], config), biases, strict=True
        ):
            _add_packed(writer, f"{name}.attn_{part}", weight)
            writer.add_tensor(f"{name}.attn_{part}.bias", bias)
        _add_packed(writer, f"{name}.attn_output", model.packed[f"{own}.out"])
        writer.add_tensor(f"{name}.attn_output.bias", model.plain[f"{own}.attn_norm.bias"])
        _add_norm(writer, f"{name}.attn_output_norm", model, f"{own}.attn_norm")
        _add_packed(writer, f"{name}.ffn_up", model.packed[f"{own}.up"])
        writer.add_tensor(f"{name}.ffn_up.bias", model.plain[f"{own}.up.bias"])
        _add_packed(writer, f"{name}.ffn_down", model.packed[f"{own}.down"])
        writer.add_tensor(f"{name}.ffn_down.bias", model.plain[f"{own}.mlp_norm.bias"])
        _add_norm(writer, f"{name}.layer_output_norm", model, f"{own}.mlp_norm")


def _add_norm(writer: GGUFWriter, name: str, model: Unpacked, own: str) -> None:
    writer.add_tensor(f"{name}.weight", model.plain[f"{own}.gain"])
    writer.add_tensor(f"{name}.bias", model.plain[f"{own}.shift"])


def _add_packed(writer: GGUFWriter, name: str, weight: Packed) -> None:
    writer.add_tensor(f"{name}.weight", q4_0(weight), raw_dtype=_Q4_0)


def q4_0(weight: Packed) -> NDArray[np.uint8]:
    """Return `weight` as rows of Q4_0 blocks: a float16 scale, then 16 bytes for 32 codes.

    Raises:
        ValueError: If its block isn't made of blocks of 32.
    """
    if weight.block % _BLOCK:
        raise ValueError(f"Blocks of {weight.block} can't be written as Q4_0's blocks of {_BLOCK}.")
    rows = len(weight.codes)
    scales = np.repeat(weight.scales, weight.block // _BLOCK, axis=1).astype("<f2")
    nibbles = (weight.codes + np.int8(8)).astype(np.uint8).reshape(rows, -1, 2, _BLOCK // 2)
    codes = nibbles[:, :, 0] | (nibbles[:, :, 1] << np.uint8(4))
    blocks = np.concatenate((scales[..., None].view(np.uint8), codes), axis=-1)
    return blocks.reshape(rows, -1)


def _interleaved(config: LlamaConfig, heads: int) -> NDArray[np.int64]:
    """Return the order of rows in which the pairs that are rotated together are neighbours."""
    rows = np.arange(heads * config.head_dim).reshape(heads, 2, -1)
    return rows.swapaxes(1, 2).reshape(-1)


def _unembedding(model: Unpacked, config: LlamaConfig) -> Packed:
    """Return the head with a row of zeros for every token that is no output."""
    head: Array = model.plain["logits.weight"].T
    blocks = head.reshape(len(head), -1, _BLOCK)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(-1, keepdims=True), -1)
    step = np.where(extreme == 0, 1, extreme / -8)
    codes = np.zeros((config.vocab_size, config.hidden), np.int8)
    codes[: len(head)] = (blocks / step).round().clip(-8, 7).reshape(head.shape)
    scales = np.zeros((config.vocab_size, config.hidden // _BLOCK), np.float32)
    scales[: len(head)] = step[..., 0]
    return Packed(codes, scales)

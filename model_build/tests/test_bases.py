"""Pretrained bases from a GGUF file and from a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from conftest import write_base
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from guardrail_model_build.bases import load_base, output_token
from guardrail_model_build.checkpoint import Checkpoint
from guardrail_model_build.llama import LlamaConfig
from guardrail_model_build.recipe import Base
from guardrail_model_build.tiny import tiny_checkpoint
from guardrail_sdk.prompt import LlamaGuardTemplate


def _paired(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Put each head's rows in GGUF's order: rotated pairs side by side."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _write_gguf(path: Path, checkpoint: Checkpoint, *, architecture: str = "llama") -> None:
    config = checkpoint.config
    assert isinstance(config, LlamaConfig)
    tokenizer = Tokenizer.from_buffer(checkpoint.tokenizer)
    tokens = [tokenizer.id_to_token(index) or "" for index in range(tokenizer.get_vocab_size())]
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.layers)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.hidden)
    writer.add_feed_forward_length(config.mlp)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges(["Ġ t", "h e"])
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for name, tensor in checkpoint.weights.items():
        if name == "lm_head.weight":
            continue
        values = tensor
        if "q_proj" in name:
            values = _paired(tensor, config.heads)
        if "k_proj" in name:
            values = _paired(tensor, config.kv_heads)
        plain = name.removesuffix(".weight")
        if plain.startswith("model.layers."):
            _, _, layer, part = plain.split(".", 3)
            target = f"blk.{layer}.{names[part]}.weight"
        else:
            target = f"{names[plain]}.weight"
        writer.add_tensor(target, np.ascontiguousarray(values.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_gives_the_weights_that_went_into_it(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("compact")
    path = tmp_path / "tiny.gguf"
    _write_gguf(path, checkpoint)
    base = load_base(Base(name="t", licence="l", source=str(path)), "compact", 1)
    for name, weight in checkpoint.weights.items():
        if name != "lm_head.weight":
            torch.testing.assert_close(base.weights[name], weight, msg=name)
    assert isinstance(base.config, LlamaConfig)
    assert isinstance(checkpoint.config, LlamaConfig)
    assert base.config.rope_theta == checkpoint.config.rope_theta
    assert base.config.outputs == 16


def test_a_gguf_tokenizer_keeps_its_special_tokens(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    _write_gguf(path, tiny_checkpoint("compact"))
    base = load_base(Base(name="t", licence="l", source=str(path)), "compact", 1)
    tokenizer = Tokenizer.from_buffer(base.tokenizer)
    ids = tokenizer.encode("<|im_start|>the 12", add_special_tokens=False).ids
    assert tokenizer.id_to_token(ids[0]) == "<|im_start|>"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|im_start|>the 12"


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    _write_gguf(path, tiny_checkpoint("compact"), architecture="gemma")
    with pytest.raises(ValueError, match="gemma"):
        load_base(Base(name="t", licence="l", source=str(path)), "compact", 1)


def test_a_hugging_face_llama_guard_gives_the_same_logits_at_its_20_outputs(tmp_path: Path) -> None:
    """Through Llama 3's rotary scaling, a tied embedding and the pruned unembedding."""
    folder = write_base(tmp_path / "pretrained", "llama-guard-3")
    base = load_base(Base(name="t", licence="l", source=str(folder)), "llama-guard-3", 1)
    theirs = LlamaForCausalLM.from_pretrained(folder).eval()
    tokenizer = Tokenizer.from_buffer(base.tokenizer)
    outputs = [output_token(tokenizer, output) for output in LlamaGuardTemplate().outputs]
    assert None not in outputs
    assert len(set(outputs)) == 20
    ids = torch.randint(4, 500, (2, 90), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(ids).logits[..., outputs]
        torch.testing.assert_close(base.model()(ids), expected, rtol=1e-4, atol=1e-4)

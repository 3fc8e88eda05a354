"""Pretrained bases: a Hugging Face folder or hub id, or a GGUF file, as a `Checkpoint`.

The unembedding is pruned here, before anything is trained: it keeps one row per output of the
template (arXiv 2411.17713, section 3.4). Outputs that are tokens of the base start from that
token's row; the hazard outputs of the compact template start from small random rows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from guardrail_model_build import e5
from guardrail_model_build.checkpoint import Checkpoint
from guardrail_model_build.llama import LlamaConfig, RopeScaling
from guardrail_model_build.recipe import Base
from guardrail_model_build.workspace import Metrics, Workspace
from guardrail_sdk import Category
from guardrail_sdk.prompt import TemplateId, template

Weights = dict[str, Tensor]


def run(workspace: Workspace, out: Path) -> Metrics:
    """Write the base, its unembedding pruned, into `out`."""
    recipe = workspace.recipe
    load = load_encoder if recipe.template == "segments" else load_base
    checkpoint = load(recipe.base, recipe.template, recipe.seed)
    checkpoint.save(out)
    return {"parameters": sum(tensor.numel() for tensor in checkpoint.weights.values())}


def load_base(base: Base, template_id: TemplateId, seed: int) -> Checkpoint:
    """Return `base` with its unembedding pruned to the outputs of `template_id`.

    Raises:
        ValueError: If the source isn't a Llama, or its tokenizer lacks what the template needs.
    """
    gguf = base.source.endswith(".gguf")
    shape, weights, tokenizer = _read_gguf(base.path()) if gguf else _read_hf(base.source)
    outputs = template(template_id).outputs
    weights["lm_head.weight"] = _pruned_unembedding(weights, tokenizer, outputs, seed)
    return Checkpoint(
        config=replace(shape, outputs=len(outputs)),
        weights=weights,
        tokenizer=tokenizer.to_str().encode(),
        template=template_id,
        base=base.name,
        base_licence=base.licence,
    )


_RARE = -3.5
"""Where a hazard's logit starts: most rows have none, and from zero the first few hundred steps
would teach the encoder nothing but that."""


def load_encoder(base: Base, template_id: TemplateId, seed: int) -> Checkpoint:
    """Return the BERT `base` with a pruned vocabulary, and a head for `template_id`'s outputs.

    Raises:
        ValueError: If the source isn't a BERT that can be read, or no vocabulary size is given.
    """
    if base.vocabulary is None:
        raise ValueError("The recipe's `base` needs `vocabulary`: how many pieces to keep.")
    found = e5.read(str(base.path()) if base.source.endswith(".bin") else base.source)
    weights, tokenizer = e5.pruned_vocabulary(found, base.vocabulary)
    outputs = template(template_id).outputs
    generator = torch.Generator().manual_seed(seed)
    weights["head.weight"] = 0.02 * torch.randn(
        len(outputs), found.config.hidden, generator=generator
    )
    weights["head.bias"] = torch.tensor(
        [_RARE if output in set(Category) else 0.0 for output in outputs]
    )
    weights["pool.weight"] = torch.zeros(1, found.config.hidden)
    markers = (tokenizer.token_to_id("<user>"), tokenizer.token_to_id("<assistant>"))
    return Checkpoint(
        config=replace(
            found.config,
            vocab_size=tokenizer.get_vocab_size(),
            outputs=len(outputs),
            markers=markers,
        ),
        weights=weights,
        tokenizer=tokenizer.to_str().encode(),
        template=template_id,
        base=base.name,
        base_licence=base.licence,
    )


def _pruned_unembedding(
    weights: Mapping[str, Tensor], tokenizer: Tokenizer, outputs: tuple[str, ...], seed: int
) -> Tensor:
    """Return float32 [outputs, hidden]; a tied base unembeds with its embedding."""
    full = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    generator = torch.Generator().manual_seed(seed)
    rows = 0.02 * torch.randn(len(outputs), full.shape[1], generator=generator)
    for index, output in enumerate(outputs):
        token = output_token(tokenizer, output)
        if token is not None:
            rows[index] = full[token].float()
    return rows


def stored_types(base: Base) -> tuple[str, ...]:
    """Return the quantised types in which a base's file holds its weights, the commonest first."""
    if base.source.endswith(".bin"):
        return ("Q4_0",)
    if not base.source.endswith(".gguf"):
        return ()
    types = Counter(tensor.tensor_type.name for tensor in GGUFReader(base.path()).tensors)
    return tuple(name for name, _ in types.most_common() if name not in ("F32", "F16", "BF16"))


def output_token(tokenizer: Tokenizer, output: str) -> int | None:
    """Return the id of the one token that spells `output`; None if there is no such token."""
    special = tokenizer.token_to_id(output)
    if special is not None:
        return special
    ids = tokenizer.encode(output, add_special_tokens=False).ids
    return ids[0] if len(ids) == 1 else None


def _read_hf(source: str) -> tuple[LlamaConfig, Weights, Tokenizer]:
    from transformers import AutoTokenizer, LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32)
    hf = model.config
    rope = cast(dict[str, Any], hf.rope_parameters)
    scaling = (
        RopeScaling(**{name: rope[name] for name in RopeScaling.__dataclass_fields__})
        if rope["rope_type"] == "llama3"
        else None
    )
    if scaling is None and rope["rope_type"] != "default":
        raise ValueError(f"{source}: rope type {rope['rope_type']!r} is not supported.")
    config = LlamaConfig(
        vocab_size=hf.vocab_size,
        hidden=hf.hidden_size,
        mlp=hf.intermediate_size,
        layers=hf.num_hidden_layers,
        heads=hf.num_attention_heads,
        kv_heads=hf.num_key_value_heads or hf.num_attention_heads,
        head_dim=hf.head_dim or hf.hidden_size // hf.num_attention_heads,
        outputs=0,
        norm_eps=hf.rms_norm_eps,
        rope_theta=rope["rope_theta"],
        rope_scaling=scaling,
        context=hf.max_position_embeddings,
    )
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    tokenizer = AutoTokenizer.from_pretrained(source)
    return config, weights, Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())


_GGUF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_GGUF_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _read_gguf(path: Path) -> tuple[LlamaConfig, Weights, Tokenizer]:
    reader = GGUFReader(path)
    about = {name: field.contents() for name, field in reader.fields.items()}
    if about.get("general.architecture") != "llama":
        raise ValueError(f"{path}: architecture {about.get('general.architecture')!r}, not llama.")
    heads = int(about["llama.attention.head_count"])
    config = LlamaConfig(
        vocab_size=len(about["tokenizer.ggml.tokens"]),
        hidden=int(about["llama.embedding_length"]),
        mlp=int(about["llama.feed_forward_length"]),
        layers=int(about["llama.block_count"]),
        heads=heads,
        kv_heads=int(about["llama.attention.head_count_kv"]),
        head_dim=int(about["llama.embedding_length"]) // heads,
        outputs=0,
        norm_eps=float(about["llama.attention.layer_norm_rms_epsilon"]),
        rope_theta=float(about["llama.rope.freq_base"]),
        context=int(about["llama.context_length"]),
    )
    weights: Weights = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(
            np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        )
        name = _hf_name(tensor.name)
        if name.endswith("q_proj.weight"):
            values = _half_rotated(values, config.heads)
        elif name.endswith("k_proj.weight"):
            values = _half_rotated(values, config.kv_heads)
        weights[name] = values.contiguous()
    return config, weights, _gguf_tokenizer(about)


def _hf_name(name: str) -> str:
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if block:
        return f"model.layers.{block[1]}.{_GGUF_BLOCK_NAMES[block[2]]}.weight"
    return _GGUF_NAMES[name.removesuffix(".weight")] + ".weight"


def _half_rotated(weight: Tensor, heads: int) -> Tensor:
    """Undo GGUF's order of each head's rows (pairs side by side) for rotation by halves."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


_PRE_TOKENIZERS = {
    "smollm": lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    ),
    "llama-bpe": lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(
                    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
                    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
                ),
                "isolated",
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}
_CONTROL = 3


def _gguf_tokenizer(about: Mapping[str, Any]) -> Tokenizer:
    kind = about["tokenizer.ggml.pre"]
    if about["tokenizer.ggml.model"] != "gpt2" or kind not in _PRE_TOKENIZERS:
        raise ValueError(f"The GGUF's tokenizer {kind!r} is not one of {list(_PRE_TOKENIZERS)}.")
    tokens: list[str] = about["tokenizer.ggml.tokens"]
    merges: list[str] = about["tokenizer.ggml.merges"]
    types: list[int] = about["tokenizer.ggml.token_type"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[(left, right) for left, right in (merge.split(" ") for merge in merges)],
        )
    )
    tokenizer.pre_tokenizer = _PRE_TOKENIZERS[kind]()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, type_ in zip(tokens, types, strict=True)
            if type_ == _CONTROL
        ]
    )
    return tokenizer

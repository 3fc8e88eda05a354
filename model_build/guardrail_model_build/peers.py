"""Writes what other runtimes need to run a guard: the same weights in their formats.

Usage: `python -m guardrail_model_build.peers OUT (--shape smollm2|paper | --model FOLDER)`.
A shape gets random weights, and its model folder is made in `OUT/guard` first. All files hold
the values that the folder's INT4 codes stand for.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import JsonValue
from safetensors.torch import save_file
from torch import Tensor

from guardrail_model_build.bert import Bert, BertConfig
from guardrail_model_build.export import export_onnx, hugging_face
from guardrail_model_build.gguf_file import write_gguf
from guardrail_model_build.llama import LlamaConfig
from guardrail_model_build.shapes import SHAPES, make_shape
from guardrail_model_build.unpack import Unpacked, split_qkv, unpack
from guardrail_sdk.artifact import open_artifact

GUARD, HUGGING_FACE, GGUF, FLOAT32 = "guard", "hf", "model.gguf", "float32.onnx"
HEAD = "head.safetensors"


def write_peers(folder: Path, out: Path) -> None:
    """Write the model in `folder` for other runtimes into `out`.

    It gets a Hugging Face folder, `hf`, in float32, and `model.gguf` in Q4_0. An encoder's `hf` is
    a BertModel, with pooling and head in `head.safetensors`, and it gets `float32.onnx`, too. A
    decoder's `hf` is a LlamaForCausalLM: its unembedding has a row for every token, of which the
    guard's outputs are the first and the others are zeros.

    Args:
        folder: A model folder; a decoder's with the `config.json` of `export_folder`.
        out: Made if missing.

    Raises:
        ValueError: If the folder's weights can't be read, or not be written as Q4_0.
    """
    model = unpack(open_artifact(folder))
    out.mkdir(parents=True, exist_ok=True)
    write_gguf(model, out / GGUF)
    if isinstance(model.config, BertConfig):
        _write_bert(model, model.config, out)
    else:
        _write_llama(model, model.config, out / HUGGING_FACE)


def _write_llama(model: Unpacked, config: LlamaConfig, folder: Path) -> None:
    weights = {
        "model.embed_tokens.weight": _tensor(model, "embedding"),
        "model.norm.weight": torch.tensor(model.plain["norm.gain"]),
        "lm_head.weight": torch.zeros(config.vocab_size, config.hidden),
    }
    weights["lm_head.weight"][: config.outputs] = torch.tensor(model.plain["logits.weight"]).T
    for index in range(config.layers):
        own, name = f"layers.{index}", f"model.layers.{index}"
        fused = split_qkv(model.packed[f"{own}.qkv"], config)
        for part, weight in zip("qkv", fused, strict=True):
            weights[f"{name}.self_attn.{part}_proj.weight"] = torch.from_numpy(weight.values())
        weights[f"{name}.self_attn.o_proj.weight"] = _tensor(model, f"{own}.out")
        for part in ("gate", "up", "down"):
            weights[f"{name}.mlp.{part}_proj.weight"] = _tensor(model, f"{own}.{part}")
        for ours, theirs in (
            ("input_norm", "input_layernorm"),
            ("mlp_norm", "post_attention_layernorm"),
        ):
            gain = model.plain[f"{own}.{ours}.gain"]
            weights[f"{name}.{theirs}.weight"] = torch.tensor(gain)
    _save(folder, weights, hugging_face(config))


def _write_bert(model: Unpacked, config: BertConfig, out: Path) -> None:
    ours = _bert_weights(model, config)
    bert = Bert(config)
    bert.load_state_dict(ours)
    export_onnx(bert, out / FLOAT32, None)
    head = {name: ours.pop(name) for name in ("pool.weight", "head.weight", "head.bias")}
    theirs = {_hugging_face_name(name): tensor for name, tensor in ours.items()}
    _save(out / HUGGING_FACE, theirs, _bert_config(config))
    save_file(head, out / HUGGING_FACE / HEAD)


def _bert_weights(model: Unpacked, config: BertConfig) -> dict[str, Tensor]:
    """Return the weights by the names of `Bert`'s parameters."""
    plain = {name: torch.tensor(array) for name, array in model.plain.items()}
    weights = {
        "model.embed_tokens.weight": _tensor(model, "embedding"),
        "model.embed_positions.weight": plain["positions.weight"],
        "model.embed_segments.weight": plain["segments.weight"],
        "model.norm.weight": plain["norm.gain"],
        "model.norm.bias": plain["norm.shift"],
        "pool.weight": plain["pool_scores.weight"].T.contiguous(),
        "head.weight": plain["head.weight"].T.contiguous(),
        "head.bias": plain["head.bias"],
    }
    for index in range(config.layers):
        own, name = f"layers.{index}", f"model.layers.{index}"
        fused = split_qkv(model.packed[f"{own}.qkv"], config)
        biases = plain[f"{own}.qkv.bias"].chunk(3)
        for part, weight, bias in zip("qkv", fused, biases, strict=True):
            weights[f"{name}.self_attn.{part}_proj.weight"] = torch.from_numpy(weight.values())
            weights[f"{name}.self_attn.{part}_proj.bias"] = bias.clone()
        weights[f"{name}.self_attn.o_proj.weight"] = _tensor(model, f"{own}.out")
        weights[f"{name}.self_attn.o_proj.bias"] = plain[f"{own}.attn_norm.bias"]
        weights[f"{name}.mlp.up_proj.weight"] = _tensor(model, f"{own}.up")
        weights[f"{name}.mlp.up_proj.bias"] = plain[f"{own}.up.bias"]
        weights[f"{name}.mlp.down_proj.weight"] = _tensor(model, f"{own}.down")
        weights[f"{name}.mlp.down_proj.bias"] = plain[f"{own}.mlp_norm.bias"]
        for norm in ("attn_norm", "mlp_norm"):
            weights[f"{name}.{norm}.weight"] = plain[f"{own}.{norm}.gain"]
            weights[f"{name}.{norm}.bias"] = plain[f"{own}.{norm}.shift"]
    return weights


_BERT_NAMES: Mapping[str, str] = {
    "model.embed_tokens": "embeddings.word_embeddings",
    "model.embed_positions": "embeddings.position_embeddings",
    "model.embed_segments": "embeddings.token_type_embeddings",
    "model.norm": "embeddings.LayerNorm",
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.o_proj": "attention.output.dense",
    "attn_norm": "attention.output.LayerNorm",
    "mlp.up_proj": "intermediate.dense",
    "mlp.down_proj": "output.dense",
    "mlp_norm": "output.LayerNorm",
}


def _hugging_face_name(name: str) -> str:
    owner, kind = name.rsplit(".", 1)
    if owner.startswith("model.layers."):
        index, part = owner.removeprefix("model.layers.").split(".", 1)
        return f"encoder.layer.{index}.{_BERT_NAMES[part]}.{kind}"
    return f"{_BERT_NAMES[owner]}.{kind}"


def _bert_config(config: BertConfig) -> dict[str, JsonValue]:
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden,
        "intermediate_size": config.mlp,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "max_position_embeddings": config.context,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": config.norm_eps,
    }


def _tensor(model: Unpacked, name: str) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(model.packed[name].values()))


def _save(folder: Path, weights: Mapping[str, Tensor], config: Mapping[str, JsonValue]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
    text = json.dumps(dict(config), indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m guardrail_model_build.peers")
    parser.add_argument("out", type=Path, help="where the files go; made if missing")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--shape", choices=tuple(SHAPES), help="random weights in this shape")
    source.add_argument("--model", type=Path, help="a model folder")
    options = parser.parse_args(arguments)
    folder: Path = options.model or make_shape(options.shape, options.out / GUARD).folder
    write_peers(folder, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

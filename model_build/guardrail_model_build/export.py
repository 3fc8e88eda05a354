"""Stage `exported`: the trained student as an ONNX graph that stock onnxruntime runs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from pydantic import JsonValue

from guardrail_model_build.bert import Bert
from guardrail_model_build.bert_graph import encoder
from guardrail_model_build.checkpoint import Checkpoint, Model
from guardrail_model_build.graph import BLOCK_SIZES, Graph
from guardrail_model_build.llama import LlamaConfig
from guardrail_model_build.llama_graph import decoder
from guardrail_model_build.workspace import Metrics, Workspace

GRAPH = "model.onnx"


def run(workspace: Workspace, out: Path) -> Metrics:
    """Write the trained student's INT4 graph, and what optimum needs to open it, into `out`."""
    checkpoint = workspace.checkpoint("qat")
    export_folder(checkpoint, out, workspace.recipe.block_size)
    size = sum((out / name).stat().st_size for name in (GRAPH, f"{GRAPH}.data"))
    return {"graph_megabytes": round(size / 1e6, 1)}


def export_onnx(model: Model, path: Path, block_size: int | None) -> None:
    """Write `model` to `path`, and its weights beside it to `path` + `.data`.

    What the graph maps to what is said at `decoder` and `encoder`.

    Args:
        model: The model. Its own `round_to` state plays no part.
        path: The ONNX file; overwritten, like its data file.
        block_size: Weights that share a scale, one of `BLOCK_SIZES`: word embeddings and
            projections become INT4, computed with INT8 activations. None for a float32 graph.

    Raises:
        ValueError: If the block size is none of `BLOCK_SIZES`.
    """
    if block_size is not None and block_size not in BLOCK_SIZES:
        raise ValueError(f"block_size is {block_size}: pass one of {BLOCK_SIZES}, or None.")
    graph = Graph(block_size)
    signature = encoder(graph, model) if isinstance(model, Bert) else decoder(graph, model)
    graph.save(path, *signature)


def export_folder(checkpoint: Checkpoint, folder: Path, block_size: int | None) -> None:
    """Write a checkpoint's graph and tokenizer, and a decoder's configuration, into `folder`.

    The configuration lets optimum-onnx's `ORTModelForCausalLM` open the folder; it assumes
    head_dim = hidden / heads. Its logits are the outputs of the guard, in the template's order,
    not the vocabulary: read them, don't generate.

    Args:
        checkpoint: The model and its tokenizer.
        folder: Made if missing. Gets `model.onnx`, `model.onnx.data` and `tokenizer.json`, for a
            decoder also `config.json` and `generation_config.json`.
        block_size: As for `export_onnx`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    export_onnx(checkpoint.model(), folder / GRAPH, block_size)
    (folder / "tokenizer.json").write_bytes(checkpoint.tokenizer)
    if isinstance(checkpoint.config, LlamaConfig):
        _write_json(folder / "config.json", hugging_face(checkpoint.config))
        _write_json(folder / "generation_config.json", {"do_sample": False, "use_cache": True})


def hugging_face(config: LlamaConfig) -> dict[str, JsonValue]:
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

"""The models that are measured, and the files that each runtime needs of them, made once."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Final

from guardrail_sdk._session import _threads
from guardrail_sdk.artifact import Artifact, find_artifact, open_artifact

THREADS: Final = _threads()
"""What the SDK runs with, and so everything else."""
SPARE: Final = 32
"""Positions beyond the context: onnxruntime-genai fills no context to its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model of the benchmark.

    Attributes:
        title: What the report calls it.
        shape: The shape that `guardrail_model_build.peers` makes of random weights; None for the
            bundled model.
        lengths: The messages' tokens; more of them with the option `--long`.
        most_seconds: How long one length may take a subject; at least one run is timed.
        at_once: How many checks are in flight.
        stream: Whether a growing answer is checked.
    """

    title: str
    shape: str | None
    most_seconds: float
    lengths: tuple[int, ...] = (16, 32, 64, 128, 512, 2048)
    at_once: tuple[int, ...] = (1, 8, 64)
    stream: bool = True


MODELS: Final[Mapping[str, Model]] = {
    "tiny": Model(
        title="a tiny decoder, random weights",
        shape="tiny",
        lengths=(16, 64),
        most_seconds=1.0,
        at_once=(1, 8),
    ),
    "encoder": Model(
        title="the bundled encoder",
        shape=None,
        most_seconds=1.5,
    ),
    "smollm2": Model(
        title="SmolLM2-135M pruned, random weights",
        shape="smollm2",
        most_seconds=2.0,
    ),
    "paper": Model(
        title="the paper's shape, random weights",
        shape="paper",
        lengths=(16, 64, 512),
        most_seconds=6.0,
        at_once=(),
        stream=False,
    ),
}
LONGEST: Final = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What a model weighs, in bytes but for `weights`.

    Attributes:
        file: Graph and weights.
        weights: How many there are without the embedding: each is multiplied once per token.
        token: What is read of the weights for one more token: all but the embedding.
        parent: The 16-bit model that it would be pruned from; 0 if that isn't said.
        position: Keys and values of one position of the context; 0 for an encoder.
    """

    file: int
    weights: int
    token: int
    parent: int
    position: int


def guard_folder(name: str, root: Path) -> Artifact:
    """Return the model folder that the SDK runs."""
    if MODELS[name].shape is None:
        return find_artifact()
    return open_artifact(root / name / "guard")


def build(name: str, root: Path) -> Sizes:
    """Make the files of a model, unless they are there already; return its sizes."""
    folder = root / name
    shape = MODELS[name].shape
    source = ["--shape", shape] if shape else ["--model", str(find_artifact().folder)]
    done = folder / f"sizes-{_key(shape)}.json"
    if not done.exists():
        print(f"Making the files of {MODELS[name].title}, once.", flush=True)
        command = [sys.executable, "-m", "guardrail_model_build.peers", str(folder), *source]
        subprocess.run(command, check=True)
        if shape is None:
            _write_dynamic_int8(folder)
        else:
            _write_genai(guard_folder(name, root))
        sizes = _sizes(guard_folder(name, root), shape)
        done.write_text(json.dumps(sizes), encoding="utf-8")
    return Sizes(**json.loads(done.read_text(encoding="utf-8")))


def _key(shape: str | None) -> str:
    """Return a hash of what a model's files are made from."""
    if shape is None:
        return find_artifact().sha256[:16]
    known = import_module("guardrail_model_build.shapes").SHAPES
    return hashlib.sha256(repr(known[shape]).encode()).hexdigest()[:16]


def _sizes(artifact: Artifact, shape: str | None) -> dict[str, int]:
    unpacked = import_module("guardrail_model_build.unpack").unpack(artifact)
    shapes = import_module("guardrail_model_build.shapes")
    manifest = artifact.manifest
    body = [weight for name, weight in unpacked.packed.items() if name != "embedding"]
    parent = shapes.sixteen_bit_bytes(shapes.SHAPES[shape].parent) if shape else 0
    files = (artifact.graph, artifact.graph.with_name(f"{artifact.graph.name}.data"))
    return {
        "file": sum(path.stat().st_size for path in files),
        "weights": sum(weight.codes.size for weight in body),
        "token": sum(weight.codes.size // 2 + weight.scales.nbytes for weight in body),
        "parent": parent,
        "position": 8 * manifest.layers * manifest.kv_heads * manifest.head_dim,
    }


def _write_dynamic_int8(folder: Path) -> None:
    """Quantise the float32 graph as onnxruntime's own tool does, 7 bits where 8 could overflow."""
    quantization = import_module("onnxruntime.quantization")
    quantization.quantize_dynamic(
        folder / "float32.onnx",
        folder / "int8.onnx",
        per_channel=True,
        reduce_range=True,
        # The tool doesn't infer types behind operators of onnxruntime's own.
        extra_options={"DefaultTensorType": import_module("onnx").TensorProto.FLOAT},
    )


def _write_genai(artifact: Artifact) -> None:
    """Let onnxruntime-genai run the guard's own graph: it only lacks a configuration."""
    manifest = artifact.manifest
    about = json.loads((artifact.folder / "config.json").read_text(encoding="utf-8"))
    decoder: dict[str, object] = {
        "session_options": {"intra_op_num_threads": THREADS, "provider_options": []},
        "filename": artifact.graph.name,
        "head_size": manifest.head_dim,
        "hidden_size": about["hidden_size"],
        "num_attention_heads": about["num_attention_heads"],
        "num_hidden_layers": manifest.layers,
        "num_key_value_heads": manifest.kv_heads,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    model: dict[str, object] = {
        "type": "llama",
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "vocab_size": len(manifest.outputs),
        "context_length": manifest.context_length + SPARE,
        "decoder": decoder,
    }
    search: dict[str, object] = {
        "max_length": manifest.context_length + SPARE,
        "past_present_share_buffer": True,
        "do_sample": False,
    }
    config = {"model": model, "search": search}
    written = json.dumps(config, indent=2)
    (artifact.folder / "genai_config.json").write_text(written, encoding="utf-8")

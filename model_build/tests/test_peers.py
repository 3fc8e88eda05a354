"""What other runtimes get is the model: the same codes, and the same logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, dequantize
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import BertModel, LlamaForCausalLM

from guardrail_model_build import shapes
from guardrail_model_build.bert import BertConfig
from guardrail_model_build.gguf_file import q4_0
from guardrail_model_build.llama import LlamaConfig
from guardrail_model_build.peers import main, write_peers
from guardrail_model_build.tiny import make, tiny_checkpoint
from guardrail_model_build.unpack import Packed, unpack
from guardrail_sdk._engine import Engine
from guardrail_sdk._judge import Budget
from guardrail_sdk.artifact import Artifact, open_artifact, write_manifest

IDS = [5, 17, 99, 250, 41, 300, 8, 77]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("decoder")
    assert main([str(out), "--shape", "tiny"]) == 0
    return out


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Path]:
    out = tmp_path_factory.mktemp("encoder")
    artifact = make(out / "guard", "segments")
    write_peers(artifact.folder, out)
    return artifact, out


def _logits(artifact: Artifact, ids: list[int]) -> NDArray[np.float32]:
    return Engine(artifact, "float32").classify([ids], Budget())[0]


def _tensors(path: Path) -> dict[str, NDArray[np.float32]]:
    return {
        tensor.name: dequantize(tensor.data, tensor.tensor_type)
        for tensor in GGUFReader(path).tensors
    }


@pytest.mark.parametrize("block", [32, 64])
def test_q4_0_holds_the_codes(block: int) -> None:
    rng = np.random.default_rng(1)
    codes = rng.integers(-8, 8, (3, 128)).astype(np.int8)
    scales = rng.normal(size=(3, 128 // block)).astype(np.float16).astype(np.float32)
    packed = Packed(codes, scales)
    found = dequantize(q4_0(packed), GGMLQuantizationType.Q4_0)
    np.testing.assert_array_equal(found, packed.values())


def test_q4_0_refuses_blocks_that_are_too_small() -> None:
    packed = Packed(np.zeros((1, 32), np.int8), np.ones((1, 2), np.float32))
    with pytest.raises(ValueError, match="Blocks of 16"):
        q4_0(packed)


def test_unpacked_weights_are_what_was_packed(encoder: tuple[Artifact, Path]) -> None:
    artifact, _ = encoder
    checkpoint = tiny_checkpoint("segments")
    model = unpack(artifact)
    assert model.config == checkpoint.config
    trained = checkpoint.weights["model.embed_tokens.weight"].numpy()
    step = np.repeat(np.abs(model.packed["embedding"].scales), 32, axis=1)
    assert (np.abs(model.packed["embedding"].values() - trained) <= step * 0.6).mean() > 0.9


def test_the_hugging_face_decoder_gives_the_guard_s_logits(decoder: Path) -> None:
    artifact = open_artifact(decoder / "guard")
    model = LlamaForCausalLM.from_pretrained(decoder / "hf").eval()
    with torch.no_grad():
        found = model(torch.tensor([IDS])).logits[0, -1].numpy()
    outputs = len(artifact.manifest.outputs)
    np.testing.assert_allclose(found[:outputs], _logits(artifact, IDS), atol=1e-4)
    assert not found[outputs:].any()


def test_the_decoder_s_gguf_holds_the_hugging_face_weights(decoder: Path) -> None:
    tensors = _tensors(decoder / "model.gguf")
    theirs = load_file(decoder / "hf" / "model.safetensors")
    config = unpack(open_artifact(decoder / "guard")).config
    assert isinstance(config, LlamaConfig)

    def same(name: str, other: str) -> None:
        np.testing.assert_allclose(tensors[name], theirs[other].numpy(), rtol=2e-3, atol=1e-6)

    same("token_embd.weight", "model.embed_tokens.weight")
    same("blk.1.attn_v.weight", "model.layers.1.self_attn.v_proj.weight")
    same("blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj.weight")
    same("blk.0.ffn_norm.weight", "model.layers.0.post_attention_layernorm.weight")
    for part, heads in (("q", config.heads), ("k", config.kv_heads)):
        # llama.cpp rotates neighbours, where the other formats rotate halves.
        pairs = tensors[f"blk.0.attn_{part}.weight"].reshape(heads, -1, 2, config.hidden)
        halves = pairs.swapaxes(1, 2).reshape(-1, config.hidden)
        wanted = theirs[f"model.layers.0.self_attn.{part}_proj.weight"].numpy()
        np.testing.assert_allclose(halves, wanted, rtol=2e-3, atol=1e-6)


def test_the_hugging_face_encoder_gives_the_guard_s_logits(
    encoder: tuple[Artifact, Path],
) -> None:
    artifact, out = encoder
    model = unpack(artifact)
    assert isinstance(model.config, BertConfig)
    ids = [1, model.config.markers[0], *IDS]
    bert = BertModel.from_pretrained(out / "hf", add_pooling_layer=False).eval()
    segments = torch.tensor([[0] + [1] * (len(ids) - 1)])
    with torch.no_grad():
        states = bert(torch.tensor([ids]), token_type_ids=segments).last_hidden_state[0, 1:]
        head = load_file(out / "hf" / "head.safetensors")
        pooled = (states @ head["pool.weight"].T).softmax(0).T @ states
        found = (pooled @ head["head.weight"].T + head["head.bias"])[0].numpy()
    np.testing.assert_allclose(found, _logits(artifact, ids), atol=1e-4)


def test_the_encoder_s_float32_graph_gives_the_guard_s_logits(
    encoder: tuple[Artifact, Path],
) -> None:
    artifact, out = encoder
    ids = np.array([[1, *IDS]], np.int64)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(out / "float32.onnx", options)
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    found = np.asarray(session.run(["logits"], feed)[0])
    np.testing.assert_allclose(found[0], _logits(artifact, ids[0].tolist()), atol=1e-4)


def test_the_encoder_s_gguf_reads_a_message_as_of_one_segment(
    encoder: tuple[Artifact, Path],
) -> None:
    artifact, out = encoder
    tensors = _tensors(out / "model.gguf")
    plain = unpack(artifact).plain
    added = tensors["position_embd.weight"][:4] + tensors["token_types.weight"]
    wanted = plain["positions.weight"][:4] + plain["segments.weight"][[0, 1, 1, 1]]
    np.testing.assert_allclose(added, wanted, atol=1e-6)


def test_a_decoder_without_its_configuration_is_refused(tmp_path: Path) -> None:
    artifact = make(tmp_path / "guard")
    (artifact.folder / "config.json").unlink()
    manifest = artifact.manifest
    files = {name: digest for name, digest in manifest.files.items() if name != "config.json"}
    write_manifest(artifact.folder, manifest.model_copy(update={"files": files}))
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        write_peers(artifact.folder, tmp_path)


def test_the_parent_of_the_paper_s_shape_has_the_size_that_the_paper_says() -> None:
    parent = shapes.sixteen_bit_bytes(shapes.SHAPES["paper"].parent)
    assert round(parent / 2**20) == 2858

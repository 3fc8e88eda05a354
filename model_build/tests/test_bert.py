"""The encoder computes what transformers' BERT computes, and its graph what it computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from conftest import write_base
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertModel

from guardrail_model_build.bases import load_encoder
from guardrail_model_build.bert import Bert, BertConfig
from guardrail_model_build.export import export_onnx
from guardrail_model_build.recipe import Base
from guardrail_model_build.tiny import randomise

USER, ASSISTANT = 98, 99
CONFIG = BertConfig(
    vocab_size=100,
    hidden=64,
    mlp=96,
    layers=2,
    heads=4,
    outputs=16,
    markers=(USER, ASSISTANT),
    context=64,
)


def _model(config: BertConfig = CONFIG, seed: int = 0) -> Bert:
    model = Bert(config)
    randomise(model, seed)
    return model


def _rows(lengths: list[int], seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Return right-padded ids with a marker in each row, and each row's last position.

    The padding is random ids: it may not be read.
    """
    ids = torch.randint(
        0, USER, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed)
    )
    for row, length in enumerate(lengths):
        ids[row, length // 3] = USER if row % 2 else ASSISTANT
    return ids, torch.tensor([[length - 1] for length in lengths])


def _logits(model: Bert, ids: torch.Tensor, last: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        return model(ids, last)[:, 0].numpy()


def _run(path: Path, ids: torch.Tensor, last: torch.Tensor) -> dict[str, np.ndarray]:
    mask = (torch.arange(ids.shape[1]) <= last).long()
    session = ort.InferenceSession(path)
    feed = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    logits, hidden = session.run(["logits", "hidden"], feed)
    return {"logits": np.asarray(logits), "hidden": np.asarray(hidden)}


def test_states_are_those_of_transformers(tmp_path: Path) -> None:
    source = write_base(tmp_path / "bert", "segments")
    checkpoint = load_encoder(
        Base(name="b", licence="MIT", source=str(source), vocabulary=10_000), "segments", 1
    )
    model = checkpoint.model()
    assert isinstance(model, Bert)
    theirs = BertModel.from_pretrained(source, add_pooling_layer=False).eval()
    vectors = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(2))
    judged = torch.zeros(2, 9, dtype=torch.bool)
    judged[:, 4:] = True
    real = torch.ones(2, 9, dtype=torch.bool)
    real[1, 7:] = False
    with torch.inference_mode():
        want = theirs(
            inputs_embeds=vectors, attention_mask=real.long(), token_type_ids=judged.long()
        ).last_hidden_state
        places = model.model.embed_positions.weight[:9]
        got = model.model.norm(vectors + places + model.model.embed_segments(judged.long()))
        for block in model.model.blocks:
            got = block(got, real)
    torch.testing.assert_close(got[real], want[real], rtol=1e-4, atol=1e-5)


def test_a_fresh_base_pools_by_the_mean(tmp_path: Path) -> None:
    source = write_base(tmp_path / "bert", "segments")
    base = Base(name="b", licence="MIT", source=str(source), vocabulary=10_000)
    model = load_encoder(base, "segments", 1).model()
    assert isinstance(model, Bert)
    states = torch.randn(1, 5, 64)
    judged = torch.tensor([[False, False, True, True, True]])
    torch.testing.assert_close(model.pooled(states, judged)[0], states[0, 2:].mean(0))


def test_only_the_last_message_is_judged() -> None:
    ids = torch.tensor([[0, USER, 5, ASSISTANT, 6, 7], [0, USER, 5, 6, 7, 8]])
    assert _model().judged(ids).tolist() == [
        [False, False, False, True, True, True],
        [False, True, True, True, True, True],
    ]


def test_an_earlier_message_is_read_but_not_pooled() -> None:
    """What precedes the judged message changes the verdict only through attention."""
    model = _model()
    ids = torch.tensor([[0, USER, 5, ASSISTANT, 6, 7]])
    other = ids.clone()
    other[0, 2] = 9
    last = torch.tensor([[5]])
    assert not np.allclose(_logits(model, ids, last), _logits(model, other, last))
    for block in model.model.blocks:
        torch.nn.init.zeros_(block.self_attn.o_proj.weight)
    np.testing.assert_allclose(_logits(model, ids, last), _logits(model, other, last), atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(4, 40), min_size=2, max_size=5), seed=st.integers(0, 99))
def test_a_row_does_not_depend_on_its_neighbours(lengths: list[int], seed: int) -> None:
    model = _model()
    ids, last = _rows(lengths, seed)
    together = _logits(model, ids, last)
    for row, length in enumerate(lengths):
        alone = _logits(model, ids[row : row + 1, :length], last[row : row + 1])
        np.testing.assert_allclose(together[row], alone[0], atol=2e-5)


def test_the_float_graph_equals_torch(tmp_path: Path) -> None:
    model = _model()
    export_onnx(model, tmp_path / "model.onnx", None)
    ids, last = _rows([40, 4, 23, 11])
    got = _run(tmp_path / "model.onnx", ids, last)
    np.testing.assert_allclose(got["logits"], _logits(model, ids, last), atol=2e-5)
    head = got["hidden"] @ model.head.weight.detach().numpy().T + model.head.bias.detach().numpy()
    np.testing.assert_allclose(head, got["logits"], atol=2e-5)


@pytest.mark.parametrize("block_size", [16, 32, 64])
def test_the_int4_graph_equals_the_fake_quantised_model(block_size: int, tmp_path: Path) -> None:
    """Equal to float noise, but for rows where that noise tips an INT8 rounding over."""
    model = _model()
    export_onnx(model, tmp_path / "model.onnx", block_size)
    model.round_to(block_size)
    ids, last = _rows([4, 7, 5, 6] * 12)
    got = _run(tmp_path / "model.onnx", ids, last)["logits"]
    errors = np.abs(got - _logits(model, ids, last)).max(1)
    assert np.median(errors) < 1e-4
    assert errors.max() < 0.3


def test_the_graph_is_valid_onnx_and_its_weights_are_four_bits(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(_model(), path, 32)
    graph = onnx.load(path)
    onnx.checker.check_model(graph)
    kinds = [node.op_type for node in graph.graph.node]
    assert kinds.count("MatMulNBits") == 4 * CONFIG.layers
    assert kinds.count("GatherBlockQuantized") == 1


def test_frozen_parts_get_no_gradient() -> None:
    model = _model()
    model.freeze(1)
    ids, last = _rows([9, 6])
    model(ids, last).sum().backward()
    with_gradient = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert not any(name.startswith(("model.embed", "model.layers.0")) for name in with_gradient)
    assert "model.layers.1.mlp.up_proj.weight" in with_gradient
    assert {"head.weight", "pool.weight"} <= with_gradient

"""The exported graph computes what the PyTorch model computes, for batches, chunks and shapes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from guardrail_model_build.export import export_folder, export_onnx
from guardrail_model_build.graph import BLOCK_SIZES, OPSET, pack_nibbles
from guardrail_model_build.llama import Llama, LlamaConfig, RopeScaling
from guardrail_model_build.quant import dequantise_weight, quantise_weight
from guardrail_model_build.tiny import randomise, tiny_checkpoint

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

SMALL = LlamaConfig(
    vocab_size=300, hidden=64, mlp=128, layers=2, heads=4, kv_heads=2, head_dim=16, outputs=16
)
SHAPES = {
    "grouped": (SMALL, 32),
    "finest blocks": (SMALL, 16),
    "one block per row, padded": (SMALL, 256),
    "depth no multiple of the block": (
        replace(SMALL, hidden=96, heads=6, mlp=160, outputs=20),
        64,
    ),
    "narrow attention": (replace(SMALL, heads=2, kv_heads=1, layers=3), 32),
    "all heads own keys": (replace(SMALL, kv_heads=4, norm_eps=1e-6), 64),
}
LLAMA_3 = RopeScaling(
    factor=32.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)


def _model(config: LlamaConfig, seed: int = 0) -> Llama:
    model = Llama(config)
    randomise(model, seed)
    return model


class Session(Protocol):
    """The one method of onnxruntime's session that is used here, typed."""

    def run(self, names: list[str], feeds: Mapping[str, Floats | Ids]) -> list[Floats]: ...


def _open(path: Path) -> Session:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # threads only spin on models this small
    return cast(Session, ort.InferenceSession(path, options))


def _load(path: Path, *, external: bool = True) -> onnx.ModelProto:
    return onnx.load(path, load_external_data=external)


def _session(model: Llama, folder: Path, block_size: int | None) -> Session:
    export_onnx(model, folder / "model.onnx", block_size)
    return _open(folder / "model.onnx")


def _past(config: LlamaConfig, batch: int) -> dict[str, Floats]:
    empty = np.zeros((batch, config.kv_heads, 0, config.head_dim), np.float32)
    return {
        f"past_key_values.{index}.{part}": empty
        for index in range(config.layers)
        for part in ("key", "value")
    }


def _run(session: Session, ids: Ids, mask: Ids, past: Mapping[str, Floats]) -> dict[str, Floats]:
    names = ["logits", *(name.replace("past_key_values", "present") for name in past)]
    values = session.run(names, {"input_ids": ids, "attention_mask": mask, **past})
    return dict(zip(names, values, strict=True))


def _batch(config: LlamaConfig, lengths: list[int], seed: int = 1) -> tuple[Ids, Ids]:
    """Return right-padded ids and mask; the padding is random ids, to show that it is unread."""
    random = np.random.default_rng(seed)
    ids = random.integers(0, config.vocab_size, (len(lengths), max(lengths)), dtype=np.int64)
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    return ids, mask


def _torch_logits(model: Llama, ids: Ids) -> Floats:
    with torch.no_grad():
        return model(torch.tensor(ids)).numpy()


def _errors(session: Session, model: Llama, lengths: list[int]) -> list[float]:
    """Return the largest difference of each row's real positions."""
    ids, mask = _batch(model.config, lengths)
    got = _run(session, ids, mask, _past(model.config, len(lengths)))["logits"]
    want = _torch_logits(model, ids)
    return [
        float(np.abs(got[row, :length] - want[row, :length]).max())
        for row, length in enumerate(lengths)
    ]


@pytest.mark.parametrize(("config", "block_size"), SHAPES.values(), ids=SHAPES.keys())
def test_int4_logits_equal_the_fake_quantised_model(
    config: LlamaConfig, block_size: int, tmp_path: Path
) -> None:
    """Equal to float noise, but for rows where that noise tips an INT8 rounding over.

    A value that lies within noise of the middle of two codes may round either way, which moves
    a logit by a hundredth. It happens to few rows as long as they are short; anything wrong in
    packing or arithmetic would show in all of them.
    """
    model = _model(config)
    session = _session(model, tmp_path, block_size)
    model.round_to(block_size)
    errors = np.array(_errors(session, model, [1, 5, 2, 4, 3, 6] * 16))
    assert np.median(errors) < 1e-5
    assert np.mean(errors < 1e-4) > 0.8
    assert errors.max() < 0.1


def test_int4_logits_differ_from_the_float_models(tmp_path: Path) -> None:
    model = _model(SMALL)
    errors = _errors(_session(model, tmp_path, 32), model, [6, 4, 1])
    assert min(errors) > 0.01


@pytest.mark.parametrize("scaling", [None, LLAMA_3], ids=["plain", "llama3"])
@pytest.mark.parametrize(("config", "_block"), SHAPES.values(), ids=SHAPES.keys())
def test_float_graph_equals_torch(
    config: LlamaConfig, _block: int, scaling: RopeScaling | None, tmp_path: Path
) -> None:
    model = _model(replace(config, rope_scaling=scaling))
    errors = _errors(_session(model, tmp_path, None), model, [70, 1, 33, 8])
    assert max(errors) < 2e-5


@pytest.mark.parametrize("block_size", [None, 32])
def test_chunks_with_a_past_equal_one_shot(block_size: int | None, tmp_path: Path) -> None:
    session = _session(_model(SMALL), tmp_path, block_size)
    ids, mask = _batch(SMALL, [24])
    whole = _run(session, ids, mask, _past(SMALL, 1))["logits"]
    past: dict[str, Floats] = _past(SMALL, 1)
    pieces: list[Floats] = []
    for start, end in [(0, 9), (9, 17), (17, 18), (18, 24)]:
        out = _run(session, ids[:, start:end], mask[:, :end], past)
        pieces.append(out.pop("logits"))
        past = {name.replace("present", "past_key_values"): kept for name, kept in out.items()}
        assert {kept.shape for kept in past.values()} == {(1, SMALL.kv_heads, end, SMALL.head_dim)}
    difference = np.abs(np.concatenate(pieces, axis=1) - whole)
    assert np.median(difference) < 1e-5
    assert difference.max() < (2e-5 if block_size is None else 0.1)


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_a_row_does_not_depend_on_its_batch(
    float_session: Session, lengths: list[int], seed: int
) -> None:
    ids, mask = _batch(SMALL, lengths, seed)
    together = _run(float_session, ids, mask, _past(SMALL, len(lengths)))["logits"]
    for row, length in enumerate(lengths):
        own = ids[row : row + 1, :length]
        alone = _run(float_session, own, np.ones_like(own), _past(SMALL, 1))["logits"]
        np.testing.assert_allclose(together[row, :length], alone[0], atol=2e-5)


@pytest.fixture(scope="module")
def float_session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return _session(_model(SMALL), tmp_path_factory.mktemp("float"), None)


@settings(max_examples=50, deadline=None)
@given(
    block=st.sampled_from(BLOCK_SIZES),
    depth=st.integers(1, 150).map(lambda half: 2 * half),
    seed=st.integers(0, 2**16),
)
def test_packing_keeps_every_code(block: int, depth: int, seed: int) -> None:
    codes, scales = quantise_weight(
        torch.randn(3, depth, generator=torch.Generator().manual_seed(seed)), block
    )
    packed = pack_nibbles(codes.numpy())
    unpacked = np.stack((packed & 15, packed >> 4), axis=-1).reshape(3, depth).astype(np.int8) - 8
    np.testing.assert_array_equal(unpacked, codes.numpy())
    assert scales.shape == (3, -(-depth // block))


def test_graph_holds_the_models_own_codes(tmp_path: Path) -> None:
    """What a weight reads as in the file is what training rounded it to, bit for bit."""
    model = _model(SMALL)
    export_onnx(model, tmp_path / "model.onnx", 32)
    weights = _weights(tmp_path / "model.onnx")
    packed = weights["layers.1.down.codes"].reshape(SMALL.hidden, -1)
    codes = np.stack((packed & 15, packed >> 4), axis=-1).reshape(SMALL.hidden, -1).astype(int) - 8
    stored = codes.reshape(SMALL.hidden, -1, 32) * weights["layers.1.down.scales"][..., None]
    down = model.get_parameter("model.layers.1.mlp.down_proj.weight").detach()
    want = dequantise_weight(*quantise_weight(down, 32), 32)
    np.testing.assert_array_equal(stored.astype(np.float32).reshape(SMALL.hidden, -1), want.numpy())


@pytest.mark.parametrize("block_size", [None, 64])
def test_checker_accepts_the_file(block_size: int | None, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(_model(SMALL), path, block_size)
    onnx.checker.check_model(str(path), full_check=True)
    assert {entry.domain: entry.version for entry in _load(path).opset_import} == {
        "": OPSET,
        "com.microsoft": 1,
    }


def test_every_projection_is_four_bits_at_accuracy_level_4(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(_model(SMALL), path, 64)
    nodes = list(_load(path).graph.node)
    kinds = [node.op_type for node in nodes]
    assert kinds.count("MatMul") == 1, "only the unembedding stays float"
    assert "Gather" not in [node.op_type for node in nodes if "input_ids" in node.input]
    linears = [node for node in nodes if node.op_type == "MatMulNBits"]
    assert len(linears) == 5 * SMALL.layers
    for node in linears:
        attributes = {entry.name: entry.i for entry in node.attribute}
        assert attributes["accuracy_level"] == 4
        assert attributes["bits"] == 4
        assert attributes["block_size"] == 64


def test_size_is_half_a_byte_a_weight_and_its_scales(tmp_path: Path) -> None:
    config = replace(SMALL, vocab_size=2000, hidden=128, head_dim=32, mlp=512)
    model = _model(config)
    export_onnx(model, tmp_path / "model.onnx", 64)
    export_onnx(model, tmp_path / "float.onnx", None)
    tables = 2 * 4 * config.context * config.head_dim // 2
    rounded = sum(
        weight.numel()
        for name, weight in model.named_parameters()
        if weight.ndim == 2 and "lm_head" not in name
    )
    head = 4 * config.outputs * config.hidden
    want = rounded * (0.5 + 4 / 64) + head + tables
    graph = (tmp_path / "model.onnx").stat().st_size
    assert want < (tmp_path / "model.onnx.data").stat().st_size + graph < want * 1.1
    assert graph < 40_000
    assert (tmp_path / "float.onnx.data").stat().st_size > 4 * rounded


def test_large_weights_start_on_pages(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(_model(replace(SMALL, vocab_size=5000)), path, 32)
    for tensor in _load(path, external=False).graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries:
            assert entries["location"] == "model.onnx.data"
            page = 4096 if int(entries["length"]) >= 1 << 16 else 64
            assert int(entries["offset"]) % page == 0


def test_export_is_reproducible(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        export_onnx(_model(SMALL), tmp_path / name / "model.onnx", 32)
    for file in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize("block_size", [0, 8, 48, 512])
def test_other_block_sizes_are_refused(block_size: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"block_size is {block_size}"):
        export_onnx(_model(SMALL), tmp_path / "model.onnx", block_size)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scaling", [None, LLAMA_3], ids=["plain", "llama3"])
def test_float_graph_equals_transformers(scaling: RopeScaling | None, tmp_path: Path) -> None:
    """The same weights in transformers' own Llama, its unembedding cut to the outputs."""
    transformers: Any = pytest.importorskip("transformers")
    config = replace(SMALL, rope_theta=500_000.0, rope_scaling=scaling)
    checkpoint = replace(tiny_checkpoint(), config=config).updated(_model(config))
    export_folder(checkpoint, tmp_path, None)
    peer = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_pretrained(tmp_path))
    peer.lm_head = torch.nn.Linear(config.hidden, config.outputs, bias=False)
    peer.load_state_dict(checkpoint.weights)
    ids, mask = _batch(config, [60, 21, 3])
    with torch.no_grad():
        want = peer.eval()(
            input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)
        ).logits.numpy()
    session = _open(tmp_path / "model.onnx")
    got = _run(session, ids, mask, _past(config, 3))["logits"]
    for row, length in enumerate([60, 21, 3]):
        np.testing.assert_allclose(got[row, :length], want[row, :length], atol=5e-5)


def test_folder_describes_the_model_to_hugging_face(tmp_path: Path) -> None:
    config = replace(SMALL, rope_scaling=LLAMA_3)
    checkpoint = replace(tiny_checkpoint(), config=config).updated(_model(config))
    export_folder(checkpoint, tmp_path / "made", 32)
    written = {path.name for path in (tmp_path / "made").iterdir()}
    assert written == {
        "config.json",
        "generation_config.json",
        "model.onnx",
        "model.onnx.data",
        "tokenizer.json",
    }
    fields = json.loads((tmp_path / "made" / "config.json").read_text(encoding="utf-8"))
    assert fields["num_key_value_heads"] == 2
    assert fields["rope_scaling"]["rope_type"] == "llama3"
    assert fields["rope_scaling"]["factor"] == 32.0


@pytest.mark.optimum
@pytest.mark.parametrize("block_size", [None, 32])
def test_optimum_loads_the_folder_and_matches(block_size: int | None, tmp_path: Path) -> None:
    """Optimum's runner reads the same file and gives the same logits, also token by token.

    Needs an environment of its own, from the repository's root:

        python -m venv .venv-optimum
        .venv-optimum/bin/pip install -e . -e "model_build[optimum]" pytest hypothesis
        .venv-optimum/bin/pytest model_build/tests/test_export.py -m optimum
    """
    runners: Any = pytest.importorskip("optimum.onnxruntime")
    checkpoint = tiny_checkpoint()
    assert isinstance(checkpoint.config, LlamaConfig)
    export_folder(checkpoint, tmp_path, block_size)
    peer = runners.ORTModelForCausalLM.from_pretrained(tmp_path, use_io_binding=False)
    ids, mask = _batch(checkpoint.config, [19, 7, 1])
    tensors = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    session = _open(tmp_path / "model.onnx")
    want = _run(session, ids, mask, _past(checkpoint.config, 3))["logits"]
    got = peer(**tensors).logits.numpy()
    assert got.shape == (3, 19, checkpoint.config.outputs)
    for row, length in enumerate([19, 7, 1]):
        np.testing.assert_allclose(got[row, :length], want[row, :length], atol=1e-6)

    first = tensors["input_ids"][:1]
    head = peer(input_ids=first[:, :12], attention_mask=torch.ones(1, 12, dtype=torch.int64))
    tail = peer(
        input_ids=first[:, 12:13],
        attention_mask=torch.ones(1, 13, dtype=torch.int64),
        past_key_values=head.past_key_values,
    )
    difference = np.abs(tail.logits.numpy()[0, 0] - want[0, 12]).max()
    assert difference < (2e-5 if block_size is None else 0.1)


def _weights(path: Path) -> dict[str, NDArray[Any]]:
    return {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in _load(path).graph.initializer
    }

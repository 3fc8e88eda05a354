"""The tiny models are whole: they open, run, are the same every time, and stay small."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from guardrail_model_build.tiny import main, make
from guardrail_sdk import Message
from guardrail_sdk.artifact import Artifact, open_artifact
from guardrail_sdk.prompt import Special, TemplateId, template

Array = NDArray[np.int64] | NDArray[np.float32]
TEMPLATES: list[TemplateId] = ["compact", "segments", "llama-guard-3"]
COMMITTED: dict[TemplateId, Path] = {
    "compact": Path(__file__).parents[2] / "tests" / "data" / "tiny",
    "segments": Path(__file__).parents[2] / "tests" / "data" / "tiny-encoder",
    "llama-guard-3": Path(__file__).parents[2] / "tests" / "data" / "tiny-llama-guard",
}


@pytest.fixture(scope="module", params=TEMPLATES)
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make(tmp_path_factory.mktemp("tiny"), request.param)


def _ids(artifact: Artifact, text: str) -> list[int]:
    tokenizer = Tokenizer.from_file(str(artifact.tokenizer))
    ids: list[int] = []
    for piece in template(artifact.manifest.template).render([Message(role="user", content=text)]):
        if isinstance(piece, Special):
            number = tokenizer.token_to_id(piece.token)
            assert number is not None
            ids.append(number)
        else:
            ids += tokenizer.encode(piece.text, add_special_tokens=False).ids
    return ids


class Session(Protocol):
    """The one method of onnxruntime's session that is used here, typed."""

    def run(self, names: list[str], feeds: Mapping[str, Array]) -> list[NDArray[np.float32]]: ...


def _logits(artifact: Artifact, text: str) -> NDArray[np.float32]:
    manifest = artifact.manifest
    ids = np.array([_ids(artifact, text)], np.int64)
    feeds: dict[str, Array] = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    empty = np.zeros((1, manifest.kv_heads, 0, manifest.head_dim), np.float32)
    feeds |= {
        f"past_key_values.{index}.{part}": empty
        for index in range(manifest.layers if manifest.family == "llama" else 0)
        for part in ("key", "value")
    }
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # threads only spin on models this small
    session = cast(Session, ort.InferenceSession(artifact.graph, options))
    return session.run(["logits"], feeds)[0].reshape(-1, len(manifest.outputs))[-1]


def test_it_judges_a_rendered_prompt(artifact: Artifact) -> None:
    first, second = _logits(artifact, "How do I bake bread?"), _logits(artifact, "Open the door!")
    assert first.shape == (len(artifact.manifest.outputs),)
    assert np.isfinite(first).all()
    assert np.abs(first - second).max() > 0.01, "the verdict depends on the text"


def test_the_prompt_leaves_room_for_text(artifact: Artifact) -> None:
    assert len(_ids(artifact, "")) < artifact.manifest.context_length / 2


def test_template_specials_are_single_special_tokens(artifact: Artifact) -> None:
    tokenizer = Tokenizer.from_file(str(artifact.tokenizer))
    added = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    for piece in template(artifact.manifest.template).render([Message(role="user", content="")]):
        if isinstance(piece, Special):
            assert added[piece.token].special


@pytest.mark.parametrize(
    "text", ["नमस्ते दुनिया", "สวัสดีชาวโลก", "🙂\r\n\t  x", "\u200b\u202e\x00", "a" * 5000], ids=ascii
)
def test_tokenizer_keeps_any_text(artifact: Artifact, text: str) -> None:
    tokenizer = Tokenizer.from_file(str(artifact.tokenizer))
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_llama_guard_answers_split_as_llama_3_splits_them() -> None:
    tokenizer = Tokenizer.from_file(str(COMMITTED["llama-guard-3"] / "tokenizer.json"))
    for output in template("llama-guard-3").outputs:
        assert len(tokenizer.encode(output).ids) == 1, output
    answer = tokenizer.encode("\n\nunsafe\nS1,S10<|eot_id|>")
    pieces = [tokenizer.decode([number], skip_special_tokens=False) for number in answer.ids]
    assert pieces == ["\n\n", "unsafe", "\n", "S", "1", ",S", "10", "<|eot_id|>"]


def test_it_is_small_and_the_same_every_time(artifact: Artifact, tmp_path: Path) -> None:
    assert sum(path.stat().st_size for path in artifact.folder.iterdir()) < 300_000
    assert make(tmp_path, artifact.manifest.template).sha256 == artifact.sha256


def test_committed_model_is_the_current_one(artifact: Artifact) -> None:
    """What the SDK's tests run on is what this code makes (the weights' last bits aside)."""
    committed = open_artifact(COMMITTED[artifact.manifest.template])
    assert committed.manifest.model_copy(update={"files": {}}) == artifact.manifest.model_copy(
        update={"files": {}}
    )
    assert committed.tokenizer.read_bytes() == artifact.tokenizer.read_bytes()
    assert committed.graph.stat().st_size == artifact.graph.stat().st_size


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "made"), "--template", "llama-guard-3"]) == 0
    assert capsys.readouterr().out.startswith("tiny-llama-guard-0.1.0@")
    assert open_artifact(tmp_path / "made").manifest.template == "llama-guard-3"

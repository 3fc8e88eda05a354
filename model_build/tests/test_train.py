"""The training loop and its losses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from guardrail_model_build import train
from guardrail_model_build.examples import UNKNOWN, Encoder, Example, batches, llama_guard_answer
from guardrail_model_build.llama import Llama
from guardrail_model_build.objective import distil_loss, label_loss
from guardrail_model_build.recipe import Training
from guardrail_model_build.tiny import tiny_checkpoint
from guardrail_sdk import Category, Message
from guardrail_sdk.evaluation import Row
from guardrail_sdk.prompt import LlamaGuardTemplate

TRAINING = Training(learning_rate=2e-3, epochs=4, batch_tokens=400)


def _row(number: int, *, unsafe: bool | None, categories: tuple[Category, ...] = ()) -> Row:
    word = "poison" if unsafe else "bread"
    return Row(
        id=f"row{number}",
        source="made",
        lang="en",
        messages=(
            Message(role="user", content=f"Tell me about {word}. {'again ' * (number % 5)}"),
        ),
        target="user",
        unsafe=unsafe,
        categories=categories,
    )


def _examples() -> list[Example]:
    checkpoint = tiny_checkpoint("compact")
    encoder = Encoder("compact", checkpoint.tokenizer, 128)
    return [encoder.encode(_row(number, unsafe=number % 2 == 1)) for number in range(40)]


def test_the_verdict_is_learned(tmp_path: Path) -> None:
    model = tiny_checkpoint("compact").model()
    metrics = train.fit(
        model, "compact", _examples(), TRAINING, teacher=None, folder=tmp_path, seed=1, title="t"
    )
    assert metrics["last_loss"] < metrics["first_loss"] / 2
    margins = [float(logits[0, 1] - logits[0, 0]) for logits in train.predict(model, _examples())]
    assert all((margin > 0) == (number % 2 == 1) for number, margin in enumerate(margins))


def _run(folder: Path, rate: float = 2e-3) -> dict[str, torch.Tensor]:
    folder.mkdir(exist_ok=True)
    model = tiny_checkpoint("compact").model()
    training = TRAINING.model_copy(update={"learning_rate": rate})
    train.fit(
        model, "compact", _examples(), training, teacher=None, folder=folder, seed=1, title="t"
    )
    return dict(model.state_dict())


def _stop_at_the_eighth_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, calls = train._step, 0  # pyright: ignore[reportPrivateUsage]

    def stop_at_the_eighth(*arguments: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(train, "_SAVE_EVERY", 3)
    with monkeypatch.context() as patched:
        patched.setattr(train, "_step", stop_at_the_eighth)
        with pytest.raises(KeyboardInterrupt):
            _run(folder)


def test_a_stopped_run_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _run(tmp_path / "whole")
    _stop_at_the_eighth_step(tmp_path / "stopped", monkeypatch)
    resumed = _run(tmp_path / "stopped")
    for name, weight in whole.items():
        torch.testing.assert_close(resumed[name], weight)
    assert not list((tmp_path / "stopped").glob("progress*"))


def test_progress_of_a_run_with_other_settings_is_not_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = _run(tmp_path / "fresh", 1e-3)
    _stop_at_the_eighth_step(tmp_path / "stopped", monkeypatch)
    other = _run(tmp_path / "stopped", 1e-3)
    for name, weight in fresh.items():
        torch.testing.assert_close(other[name], weight)


def test_a_run_from_other_weights_is_another_run() -> None:
    model = tiny_checkpoint("compact").model()
    key = train.run_key(model, "compact", _examples(), TRAINING, 1)
    assert train.run_key(model, "compact", _examples(), TRAINING, 1) == key
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1
    assert train.run_key(model, "compact", _examples(), TRAINING, 1) != key


def test_frozen_blocks_and_the_embedding_stay(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("compact")
    model = checkpoint.model()
    training = TRAINING.model_copy(update={"frozen_blocks": 1, "epochs": 1})
    train.fit(
        model, "compact", _examples(), training, teacher=None, folder=tmp_path, seed=1, title="t"
    )
    moved = {
        name
        for name, weight in model.state_dict().items()
        if not torch.equal(weight, checkpoint.weights[name])
    }
    assert any(name.startswith("model.layers.1.") for name in moved)
    assert not any(name.startswith("model.layers.0.") for name in moved)
    assert "model.embed_tokens.weight" not in moved


def test_a_student_of_its_own_logits_has_nothing_to_learn() -> None:
    logits = torch.randn(5, 1, 16)
    assert float(distil_loss("compact", logits, logits, torch.ones(5), 3.0)) == pytest.approx(
        0, abs=1e-6
    )
    assert (
        float(distil_loss("compact", logits + 1 + torch.rand(5, 1, 16), logits, torch.ones(5), 3.0))
        > 0.01
    )


def test_unknown_labels_take_no_part() -> None:
    logits = torch.randn(2, 1, 16, requires_grad=True)
    labels = torch.full((2, 1, 16), UNKNOWN)
    labels[0, 0, :2] = torch.tensor([0.0, 1.0])
    loss = label_loss("compact", logits, labels, torch.ones(2), 3.0)
    expected = -logits[0, 0, :2].log_softmax(-1)[1]
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[1].any()
    assert not logits.grad[0, 0, 2:].any()


def test_a_row_counts_as_much_as_its_weight() -> None:
    logits = torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(1))
    labels = torch.zeros(2, 1, 16)
    labels[..., 0] = 1.0
    alone = [
        label_loss("compact", logits[row : row + 1], labels[row : row + 1], torch.ones(1), 3.0)
        for row in range(2)
    ]
    both = label_loss("compact", logits, labels, torch.tensor([3.0, 1.0]), 3.0)
    torch.testing.assert_close(both, (3 * alone[0] + alone[1]) / 4)


def test_batches_hold_every_example_once_within_their_size() -> None:
    examples = _examples()
    plan = list(batches(examples, 300, seed=3))
    assert sorted(row for batch in plan for row in batch.rows) == list(range(len(examples)))
    assert all(batch.ids.numel() <= 300 for batch in plan)
    for batch in plan:
        for place, row in enumerate(batch.rows):
            length = len(examples[row].ids)
            assert tuple(batch.ids[place, :length].tolist()) == examples[row].ids
            assert int(batch.positions[place, 0]) == length - 1


@pytest.mark.parametrize(
    ("unsafe", "categories", "said"),
    [
        (False, (), "safe<|eot_id|>"),
        (True, (), "unsafe<|eot_id|>"),
        (True, (Category.S1,), "unsafe\nS1<|eot_id|>"),
        (True, (Category.S1, Category.S10), "unsafe\nS1,S10<|eot_id|>"),
        (True, (Category.S14,), "unsafe<|eot_id|>"),
    ],
)
def test_llama_guards_answer_is_spelled_in_its_tokens(
    unsafe: bool, categories: tuple[Category, ...], said: str
) -> None:
    answer = llama_guard_answer(_row(1, unsafe=unsafe, categories=categories))
    assert "".join(answer) == said
    assert set(answer) <= set(LlamaGuardTemplate().outputs)


def test_llama_guards_answer_is_read_where_it_is_written() -> None:
    checkpoint = tiny_checkpoint("llama-guard-3")
    encoder = Encoder("llama-guard-3", checkpoint.tokenizer, 1000)
    example = encoder.encode(_row(1, unsafe=True, categories=(Category.S2, Category.S9)))
    outputs = LlamaGuardTemplate().outputs
    said = [outputs[int(label.argmax())] for label in example.labels]
    assert said == ["unsafe", "\n", "S", "2", ",S", "9", "<|eot_id|>"]
    assert example.positions[-1] == len(example.ids) - 1
    assert len(example.positions) == len(said)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    model = tiny_checkpoint("compact").model()
    assert isinstance(model, Llama)
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="learning rate"):
        train.fit(
            model, "compact", _examples(), TRAINING, teacher=None, folder=tmp_path, seed=1, title=""
        )

"""Importance and pruning."""

from __future__ import annotations

import pytest
import torch

from guardrail_model_build.checkpoint import Checkpoint
from guardrail_model_build.examples import Example
from guardrail_model_build.importance import Importance, measure
from guardrail_model_build.prune import keep, prune
from guardrail_model_build.tiny import tiny_checkpoint


def _examples(count: int = 6) -> list[Example]:
    generator = torch.Generator().manual_seed(5)
    examples: list[Example] = []
    for number in range(count):
        length = 5 + 3 * number
        ids = torch.randint(3, 300, (length,), generator=generator).tolist()
        labels = torch.zeros(1, 16)
        examples.append(
            Example(id=str(number), ids=tuple(ids), positions=(length - 1,), labels=labels)
        )
    return examples


def _checkpoint(*, idle_block: int | None = None, idle_neurons: tuple[int, ...] = ()) -> Checkpoint:
    """Return a decoder, one block of which may do nothing, and some neurons of the other."""
    checkpoint = tiny_checkpoint("compact")
    weights = {name: tensor.clone() for name, tensor in checkpoint.weights.items()}
    if idle_block is not None:
        weights[f"model.layers.{idle_block}.self_attn.o_proj.weight"].zero_()
        weights[f"model.layers.{idle_block}.mlp.down_proj.weight"].zero_()
    for layer in range(2):
        for neuron in idle_neurons:
            weights[f"model.layers.{layer}.mlp.up_proj.weight"][neuron].zero_()
    return Checkpoint(
        config=checkpoint.config,
        weights=weights,
        tokenizer=checkpoint.tokenizer,
        template="compact",
        base="random",
        base_licence="none",
    )


def test_a_block_that_does_nothing_has_no_importance_and_can_go() -> None:
    checkpoint = _checkpoint(idle_block=0)
    importance = measure(checkpoint.model(), _examples())
    assert float(importance.blocks[0]) == pytest.approx(0.0, abs=1e-6)
    assert float(importance.blocks[1]) > 0.01
    smaller = prune(checkpoint, importance, blocks=1, mlp=128)
    ids = torch.tensor([_examples()[3].ids])
    with torch.no_grad():
        torch.testing.assert_close(smaller.model()(ids), checkpoint.model()(ids))


def test_neurons_that_stay_silent_are_the_ones_that_go() -> None:
    idle = (0, 7, 31, 100)
    checkpoint = _checkpoint(idle_neurons=idle)
    importance = measure(checkpoint.model(), _examples())
    assert importance.neurons.shape == (2, 128)
    assert not importance.neurons[:, list(idle)].any()
    smaller = prune(checkpoint, importance, blocks=2, mlp=124)
    assert smaller.config.mlp == 124
    ids = torch.tensor([_examples()[2].ids])
    with torch.no_grad():
        torch.testing.assert_close(smaller.model()(ids), checkpoint.model()(ids))


def test_neuron_importance_is_the_mean_l2_norm_over_examples() -> None:
    checkpoint = _checkpoint()
    model = checkpoint.model()
    seen: list[torch.Tensor] = []
    model.model.blocks[0].mlp.down_proj.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0][0].norm(dim=0))
    )
    with torch.no_grad():
        for example in _examples():
            model(torch.tensor([example.ids]))
    expected = torch.stack(seen).mean(0)
    torch.testing.assert_close(measure(checkpoint.model(), _examples()).neurons[0], expected)


def test_padding_takes_no_part() -> None:
    checkpoint = _checkpoint()
    alone = measure(checkpoint.model(), _examples(), batch_tokens=1)
    together = measure(checkpoint.model(), _examples(), batch_tokens=10_000)
    torch.testing.assert_close(alone.blocks, together.blocks)
    torch.testing.assert_close(alone.neurons, together.neurons)


def test_pruning_leaves_the_original_alone() -> None:
    checkpoint = _checkpoint()
    before = {name: tensor.clone() for name, tensor in checkpoint.weights.items()}
    ranks = Importance(blocks=torch.tensor([0.1, 0.2]), neurons=torch.rand(2, 128))
    assert prune(checkpoint, ranks, blocks=1, mlp=10).config.layers == 1
    assert all(torch.equal(before[name], tensor) for name, tensor in checkpoint.weights.items())


def test_keep_returns_the_best_in_their_order() -> None:
    assert keep(torch.tensor([0.5, 0.1, 0.9, 0.4]), 2) == [0, 2]


@pytest.mark.parametrize("count", [0, 3])
def test_keep_refuses_what_is_not_there(count: int) -> None:
    with pytest.raises(ValueError, match="Can't keep"):
        keep(torch.tensor([0.5, 0.1]), count)

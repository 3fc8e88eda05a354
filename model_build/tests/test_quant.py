"""Rounding to INT4 and INT8."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from guardrail_model_build import quant


@given(
    rows=st.integers(1, 5),
    length=st.integers(1, 150),
    block=st.sampled_from([16, 32, 64]),
    seed=st.integers(0, 2**16),
    size=st.sampled_from([1e-15, 1e-3, 1.0, 1e4]),
)
def test_codes_are_int4_and_as_near_as_a_symmetric_scale_would_be(
    rows: int, length: int, block: int, seed: int, size: float
) -> None:
    weight = size * torch.randn(rows, length, generator=torch.Generator().manual_seed(seed))
    codes, scales = quant.quantise_weight(weight, block)
    assert codes.dtype == torch.int8
    assert codes.shape == weight.shape
    assert scales.shape == (rows, -(-length // block))
    assert int(codes.min()) >= -8
    assert int(codes.max()) <= 7
    back = quant.dequantise_weight(codes, scales, block)
    step = scales.abs().repeat_interleave(block, 1)[:, :length]
    # Half a step, but for a value at the end of the range that the other end was preferred to.
    assert bool(((back - weight).abs() <= 1.0001 * step).all())
    spread = torch.nn.functional.pad(weight, (0, -length % block)).unflatten(1, (-1, block))
    scale = (spread.abs().amax(-1, keepdim=True) / 7.5).clamp_min(1e-38)
    plain = ((spread / scale).round().clamp(-8, 7) * scale - spread).square().sum()
    assert float((back - weight).square().sum()) <= 1.0001 * float(plain)


def test_training_rounds_to_the_very_codes_that_are_packed() -> None:
    weight = torch.randn(7, 100, generator=torch.Generator().manual_seed(1))
    codes, scales = quant.quantise_weight(weight, 32)
    assert torch.equal(quant.fake_weight(weight, 32), quant.dequantise_weight(codes, scales, 32))


def test_rounding_again_changes_nothing() -> None:
    values = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(2))
    once = quant.quantise_activation(values, 32)
    torch.testing.assert_close(quant.quantise_activation(once, 32), once, rtol=1e-6, atol=1e-7)


def test_activations_take_at_most_255_levels_per_block() -> None:
    values = torch.randn(1, 4096, generator=torch.Generator().manual_seed(3))
    rounded = quant.quantise_activation(values, 4096)
    assert len(rounded.unique()) <= 255
    assert float((rounded - values).abs().max()) <= float(values.abs().max()) / 254 + 1e-6


def test_a_row_does_not_depend_on_other_rows() -> None:
    values = torch.randn(4, 64, generator=torch.Generator().manual_seed(4))
    alone = quant.quantise_activation(values[1:2], 32)
    assert torch.equal(quant.quantise_activation(values, 32)[1:2], alone)


@pytest.mark.parametrize("fake", [quant.fake_weight, quant.fake_activation])
def test_the_gradient_passes_straight_through(fake: Callable[[Tensor, int], Tensor]) -> None:
    values = torch.randn(3, 40, requires_grad=True)
    weights = torch.randn(3, 40)
    (fake(values, 32) * weights).sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, weights)


def test_zeros_stay_zeros() -> None:
    zeros = torch.zeros(2, 64)
    assert torch.equal(quant.fake_weight(zeros, 32), zeros)
    assert torch.equal(quant.fake_activation(zeros, 32), zeros)

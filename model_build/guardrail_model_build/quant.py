"""INT4 weights and INT8 activations, exactly as onnxruntime's MatMulNBits computes them on x86.

At accuracy_level 4 the kernel takes weights `code * scale` with codes in [-8, 7], symmetric per
output row and block of K, and quantises the activations on the fly: symmetric INT8 per row and
block of K, `scale = amax / 127`, rounding half to even. Training sees the same arithmetic.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_TINY = torch.finfo(torch.float32).tiny


def quantise_weight(weight: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Return codes and scales of `weight`.

    Args:
        weight: float32 [..., K].
        block: Weights that share a scale. K is padded with zeros up to a multiple of it.

    Returns:
        Codes, int8 [..., K] in [-8, 7], and scales, float32 [..., ceil(K / block)].
    """
    codes, scales = _nearest(_blocks(weight, block))
    return _unblocks(codes, weight.shape[-1]).to(torch.int8), scales.squeeze(-1)


def dequantise_weight(codes: Tensor, scales: Tensor, block: int) -> Tensor:
    """Return the float32 weight [..., K] that `codes` and `scales` stand for."""
    return _unblocks(_blocks(codes.float(), block) * scales.unsqueeze(-1), codes.shape[-1])


def _nearest(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes and scales [..., 1] of `blocks` [..., block], the better of two for each.

    One scale spreads a block over both signs and clips its largest value by half a step; the
    other puts that value on -8 exactly, whatever its sign: the rule of the Q4_0 format, so that
    weights which come from it are found again without an error.
    """
    extreme = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    spread = (extreme.abs() / 7.5).clamp_min(_TINY)
    exact = torch.where(extreme.abs() < 8 * _TINY, _TINY, extreme / -8)
    spread_codes = (blocks / spread).round_().clamp_(-8, 7)
    exact_codes = (blocks / exact).round_().clamp_(-8, 7)
    spread_error = (spread_codes * spread - blocks).square_().sum(-1, keepdim=True)
    exact_error = (exact_codes * exact - blocks).square_().sum(-1, keepdim=True)
    better = exact_error < spread_error
    return torch.where(better, exact_codes, spread_codes), torch.where(better, exact, spread)


def quantise_activation(values: Tensor, block: int) -> Tensor:
    """Return `values` [..., K] after the kernel's INT8 rounding, in the dtype they came in."""
    blocks = _blocks(values.float(), block)
    scales = (blocks.abs().amax(-1, keepdim=True) / 127).clamp_min(_TINY)
    rounded = (blocks / scales).round() * scales
    return _unblocks(rounded, values.shape[-1]).to(values.dtype)


class _FakeWeight(torch.autograd.Function):
    """Rounding forwards, identity backwards: the straight-through estimator."""

    @staticmethod
    def forward(ctx: object, weight: Tensor, block: int) -> Tensor:
        codes, scales = _nearest(_blocks(weight, block))
        return _unblocks(codes.mul_(scales), weight.shape[-1])

    @staticmethod
    def backward(ctx: object, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0], None


class _FakeActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, values: Tensor, block: int) -> Tensor:
        return quantise_activation(values, block)

    @staticmethod
    def backward(ctx: object, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0], None


def fake_weight(weight: Tensor, block: int | None) -> Tensor:
    """Return `weight` as INT4 would hold it, with a straight-through gradient; as is if None."""
    return weight if block is None else _FakeWeight.apply(weight, block)


def fake_activation(values: Tensor, block: int | None) -> Tensor:
    """Return `values` as the kernel rounds them, with a straight-through gradient."""
    return values if block is None else _FakeActivation.apply(values, block)


def _blocks(values: Tensor, block: int) -> Tensor:
    """Return [..., K] as [..., ceil(K / block), block], zero-padded."""
    short = -values.shape[-1] % block
    padded = F.pad(values, (0, short)) if short else values
    return padded.unflatten(-1, (-1, block))


def _unblocks(blocks: Tensor, length: int) -> Tensor:
    return blocks.flatten(-2)[..., :length]

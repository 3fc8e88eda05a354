"""Projections whose arithmetic can be rounded to INT4 weights and INT8 activations."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from guardrail_model_build.quant import fake_weight


class Linear(nn.Linear):
    """A projection; with `block` set, its weight is rounded to INT4."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = False) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.block: int | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Return `input` [..., inputs], rounded already, times the weight, plus the bias."""
        return F.linear(input, fake_weight(self.weight, self.block), self.bias)


def round_to(model: nn.Module, block: int | None) -> None:
    """Make every part of `model` that has a `block` compute with this one; None for float32."""
    for module in model.modules():
        if hasattr(module, "block"):
            setattr(module, "block", block)  # noqa: B010 -- modules of several classes have it

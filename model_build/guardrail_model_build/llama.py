"""The decoder: a Llama in one file, whose arithmetic can be rounded to INT4 and INT8.

Parameter names are those of transformers' LlamaForCausalLM, so weights move both ways. The
unembedding keeps one row per output of the template. Batches are right-padded: causal attention
then needs no mask, and positions past a row's end are never read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guardrail_model_build.linear import Linear, round_to
from guardrail_model_build.quant import fake_activation, fake_weight


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """Llama 3's frequency scaling for long contexts (the fields of its `rope_parameters`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig:
    """The shape of a decoder."""

    vocab_size: int
    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    outputs: int
    """Rows of the pruned unembedding."""
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    context: int = 2048


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.block: int | None = None
        self.q_proj = Linear(config.hidden, config.heads * config.head_dim)
        self.k_proj = Linear(config.hidden, config.kv_heads * config.head_dim)
        self.v_proj = Linear(config.hidden, config.kv_heads * config.head_dim)
        self.o_proj = Linear(config.heads * config.head_dim, config.hidden)

    def forward(self, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return the attended states [B, S, hidden] of normalised `states` [B, S, hidden]."""
        states = fake_activation(states, self.block)
        split = (-1, self.config.head_dim)
        query = self.q_proj(states).unflatten(-1, split).transpose(1, 2)
        key = self.k_proj(states).unflatten(-1, split).transpose(1, 2)
        value = self.v_proj(states).unflatten(-1, split).transpose(1, 2)
        query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
        mixed = self._mix(query, key, value).transpose(1, 2).flatten(-2)
        return self.o_proj(fake_activation(mixed, self.block))

    def _mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return causal attention [B, heads, S, head_dim].

        Written out, because the CPU's fused kernel takes most of a training step backwards.
        """
        batch, _, length, dim = query.shape
        grouped = query.reshape(batch, self.config.kv_heads, -1, dim)
        scores = (grouped @ key.transpose(-2, -1)).float() / math.sqrt(dim)
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        scores = scores.unflatten(2, (-1, length)).masked_fill(future, -torch.inf)
        weights = scores.softmax(-1).to(value.dtype).flatten(2, 3)
        return (weights @ value).reshape(batch, self.config.heads, length, dim)


class Mlp(nn.Module):
    """The gated feed-forward network."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.block: int | None = None
        self.gate_proj = Linear(config.hidden, config.mlp)
        self.up_proj = Linear(config.hidden, config.mlp)
        self.down_proj = Linear(config.mlp, config.hidden)

    def neurons(self, states: Tensor) -> Tensor:
        """Return the hidden activations [B, S, mlp]: what neuron importance is measured on."""
        states = fake_activation(states, self.block)
        return F.silu(self.gate_proj(states)) * self.up_proj(states)

    def forward(self, states: Tensor) -> Tensor:
        """Return the transformed states [B, S, hidden] of normalised `states`."""
        return self.down_proj(fake_activation(self.neurons(states), self.block))


class Block(nn.Module):
    """One decoder block."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden, eps=config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden, eps=config.norm_eps)
        self.mlp = Mlp(config)

    def forward(self, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return the residual stream [B, S, hidden] after this block."""
        states = states + self.self_attn(self.input_layernorm(states), cos, sin)
        return states + self.mlp(self.post_attention_layernorm(states))


class Backbone(nn.Module):
    """Everything below the unembedding."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.block: int | None = None
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden, eps=config.norm_eps)

    @property
    def blocks(self) -> list[Block]:
        """The decoder blocks in their order; `nn.ModuleList` itself forgets their type."""
        return cast(list[Block], list(self.layers))


class Llama(nn.Module):
    """A decoder with a pruned unembedding."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.frozen_blocks = 0
        self.model = Backbone(config)
        self.lm_head = nn.Linear(config.hidden, config.outputs, bias=False)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Return the embeddings float32 [B, S, hidden] of `input_ids` int64 [B, S].

        Only the rows that are looked up are rounded: a row's blocks don't depend on other rows.
        """
        return fake_weight(self.model.embed_tokens(input_ids), self.model.block)

    def forward(self, input_ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return logits float32.

        Args:
            input_ids: int64 [B, S], right-padded with any id.
            positions: int64 [B, P]; the positions to read. None for all of them.

        Returns:
            [B, P, outputs], or [B, S, outputs].
        """
        cos, sin = rotary(self.config, input_ids.shape[1])
        trained = torch.is_grad_enabled()
        with torch.set_grad_enabled(trained and self.frozen_blocks == 0):
            states = self.embed(input_ids)
        for index, block in enumerate(self.model.blocks):
            with torch.set_grad_enabled(trained and index >= self.frozen_blocks):
                states = block(states, cos, sin)
        if positions is not None:
            states = states.gather(1, positions.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
        with torch.autocast("cpu", enabled=False):
            return self.lm_head(self.model.norm(states.float()))

    def freeze(self, blocks: int) -> None:
        """Keep the embedding and the lowest `blocks` blocks as they are during training."""
        self.frozen_blocks = blocks
        self.model.embed_tokens.requires_grad_(False)
        for index, block in enumerate(self.model.blocks):
            block.requires_grad_(index >= blocks)

    def round_to(self, block: int | None) -> None:
        """Compute as MatMulNBits with this block size would from now on; None for float32.

        The unembedding stays float32: 16 or 20 rows are not worth rounding.
        """
        round_to(self, block)


def inverse_frequencies(config: LlamaConfig) -> Tensor:
    """Return the rotary frequencies float32 [head_dim / 2], scaled as Llama 3 does if asked."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequency = 1.0 / config.rope_theta**exponent
    scaling = config.rope_scaling
    if scaling is None:
        return frequency
    length = scaling.original_max_position_embeddings
    wavelength = 2 * math.pi / frequency
    smooth = (length / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    mixed = (1 - smooth.clamp(0, 1)) / scaling.factor + smooth.clamp(0, 1)
    return frequency * mixed


def rotary(config: LlamaConfig, length: int) -> tuple[Tensor, Tensor]:
    """Return cos and sin, float32 [length, head_dim / 2] each, of positions 0 to length - 1."""
    angle = torch.outer(torch.arange(length, dtype=torch.float32), inverse_frequencies(config))
    return angle.cos(), angle.sin()


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return `heads` [B, heads, S, head_dim] with its halves rotated by their positions."""
    first, second = heads.float().chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(heads.dtype)

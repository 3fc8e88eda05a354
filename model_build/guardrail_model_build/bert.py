"""The encoder: a BERT in one file, whose arithmetic can be rounded to INT4 and INT8.

It reads a whole conversation at once, and attends over the message that is judged: the tokens
from the last role marker on. Those get the second of BERT's two segment embeddings, and their
final states are pooled into one, from which a linear head reads every output. The attentive
pooling starts as the plain mean, which the E5 bases were trained with.
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
class BertConfig:
    """The shape of an encoder."""

    vocab_size: int
    hidden: int
    mlp: int
    layers: int
    heads: int
    outputs: int
    """Rows of the head."""
    markers: tuple[int, ...]
    """Ids of the tokens that open a message."""
    norm_eps: float = 1e-12
    context: int = 512

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads


class SelfAttention(nn.Module):
    """Bidirectional multi-head attention."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.block: int | None = None
        self.q_proj = Linear(config.hidden, config.hidden, bias=True)
        self.k_proj = Linear(config.hidden, config.hidden, bias=True)
        self.v_proj = Linear(config.hidden, config.hidden, bias=True)
        self.o_proj = Linear(config.hidden, config.hidden, bias=True)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Return the attended `states` [B, S, hidden]; `mask` [B, S] is true at real tokens."""
        states = fake_activation(states, self.block)
        split = (self.config.heads, self.config.head_dim)
        query = self.q_proj(states).unflatten(-1, split).transpose(1, 2)
        key = self.k_proj(states).unflatten(-1, split).transpose(1, 2)
        value = self.v_proj(states).unflatten(-1, split).transpose(1, 2)
        scores = (query @ key.transpose(-2, -1)).float() / math.sqrt(self.config.head_dim)
        weights = scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(-1)
        mixed = (weights.to(value.dtype) @ value).transpose(1, 2).flatten(-2)
        return self.o_proj(fake_activation(mixed, self.block))


class FeedForward(nn.Module):
    """Two projections with a GELU between them."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.block: int | None = None
        self.up_proj = Linear(config.hidden, config.mlp, bias=True)
        self.down_proj = Linear(config.mlp, config.hidden, bias=True)

    def forward(self, states: Tensor) -> Tensor:
        """Return the transformed `states` [B, S, hidden]."""
        neurons = F.gelu(self.up_proj(fake_activation(states, self.block)))
        return self.down_proj(fake_activation(neurons, self.block))


class Layer(nn.Module):
    """One encoder block; norms come after the sums, as in the original BERT."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.attn_norm = nn.LayerNorm(config.hidden, eps=config.norm_eps)
        self.mlp = FeedForward(config)
        self.mlp_norm = nn.LayerNorm(config.hidden, eps=config.norm_eps)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Return the states [B, S, hidden] after this block."""
        states = self.attn_norm(states + self.self_attn(states, mask))
        return self.mlp_norm(states + self.mlp(states))


class BertBackbone(nn.Module):
    """Everything below the pooling."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.block: int | None = None
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden)
        self.embed_positions = nn.Embedding(config.context, config.hidden)
        self.embed_segments = nn.Embedding(2, config.hidden)
        self.norm = nn.LayerNorm(config.hidden, eps=config.norm_eps)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))

    @property
    def blocks(self) -> list[Layer]:
        """The blocks in their order; `nn.ModuleList` itself forgets their type."""
        return cast(list[Layer], list(self.layers))


class Bert(nn.Module):
    """An encoder with attentive pooling and a linear head."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.frozen_blocks = 0
        self.model = BertBackbone(config)
        self.pool = nn.Linear(config.hidden, 1, bias=False)
        self.head = nn.Linear(config.hidden, config.outputs)

    def embed(self, input_ids: Tensor, judged: Tensor) -> Tensor:
        """Return the embeddings float32 [B, S, hidden] of `input_ids` int64 [B, S].

        Only the rows that are looked up are rounded: a row's blocks don't depend on other rows.
        """
        own = self.model
        words = fake_weight(own.embed_tokens(input_ids), own.block)
        places = own.embed_positions.weight[: input_ids.shape[1]]
        return own.norm(words + places + own.embed_segments(judged.long()))

    def judged(self, input_ids: Tensor) -> Tensor:
        """Return bool [B, S]: true from each row's last role marker on."""
        opens = torch.isin(input_ids, torch.tensor(self.config.markers))
        count = opens.cumsum(1)
        return count == count[:, -1:]

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """Return logits float32 [B, 1, outputs].

        Args:
            input_ids: int64 [B, S], right-padded with an id that is no role marker.
            positions: int64 [B, 1]; each row's last token.
        """
        mask = torch.arange(input_ids.shape[1]) <= positions[:, :1]
        judged = self.judged(input_ids) & mask
        trained = torch.is_grad_enabled()
        with torch.set_grad_enabled(trained and self.frozen_blocks == 0):
            states = self.embed(input_ids, judged)
        if torch.is_autocast_enabled("cpu"):
            # Once, here: every projection would cast its own copy, which takes half of the time.
            states = states.to(torch.get_autocast_dtype("cpu"))
        for index, block in enumerate(self.model.blocks):
            with torch.set_grad_enabled(trained and index >= self.frozen_blocks):
                states = block(states, mask)
        with torch.autocast("cpu", enabled=False):
            return self.head(self.pooled(states.float(), judged)).unsqueeze(1)

    def pooled(self, states: Tensor, judged: Tensor) -> Tensor:
        """Return the judged tokens' states [B, S, hidden], pooled to [B, hidden]."""
        scores = self.pool(states).squeeze(-1).masked_fill(~judged, -torch.inf)
        return (scores.softmax(-1).unsqueeze(1) @ states).squeeze(1)

    def freeze(self, blocks: int) -> None:
        """Keep the word embeddings and the lowest `blocks` blocks as they are during training."""
        self.frozen_blocks = blocks
        self.model.embed_tokens.requires_grad_(False)
        for part in (self.model.embed_positions, self.model.embed_segments, self.model.norm):
            part.requires_grad_(blocks == 0)
        for index, block in enumerate(self.model.blocks):
            block.requires_grad_(index >= blocks)

    def round_to(self, block: int | None) -> None:
        """Compute as MatMulNBits with this block size would from now on; None for float32.

        Pooling and head stay float32, and so do the position and segment embeddings.
        """
        round_to(self, block)

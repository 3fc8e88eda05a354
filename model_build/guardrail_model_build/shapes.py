"""Makes model folders of real sizes with random weights: speed doesn't depend on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from guardrail_model_build.export import export_folder
from guardrail_model_build.llama import Llama, LlamaConfig, RopeScaling
from guardrail_model_build.tiny import SEED, random_manifest, randomise, tiny_checkpoint
from guardrail_sdk.artifact import Artifact, write_manifest
from guardrail_sdk.prompt import TemplateId
from guardrail_sdk.prompt import template as template_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The size of a decoder.

    Attributes:
        config: Its layers; `outputs` is set by the template.
        template: What it would be trained on.
        block_size: Weights that share a scale.
        parent: The size it would be pruned from, whose unembedding is its embedding.
    """

    config: LlamaConfig
    template: TemplateId
    block_size: int
    parent: LlamaConfig


_SMOLLM2 = LlamaConfig(
    vocab_size=49_152,
    hidden=576,
    mlp=1536,
    layers=30,
    heads=9,
    kv_heads=3,
    head_dim=64,
    outputs=0,
    rope_theta=100_000.0,
    context=512,
)
_LLAMA = LlamaConfig(
    vocab_size=128_256,
    hidden=2048,
    mlp=8192,
    layers=16,
    heads=32,
    kv_heads=8,
    head_dim=64,
    outputs=0,
    rope_theta=500_000.0,
    rope_scaling=RopeScaling(
        factor=32.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    ),
    context=4096,
)
_TINY = replace(
    _SMOLLM2, vocab_size=512, hidden=64, mlp=128, layers=3, heads=4, kv_heads=2, head_dim=16
)
SHAPES: Final[Mapping[str, Shape]] = {
    # For trying things out.
    "tiny": Shape(
        config=replace(_TINY, mlp=96, layers=2),
        template="compact",
        block_size=32,
        parent=_TINY,
    ),
    # recipes/smollm2-135m-int4.yaml
    "smollm2": Shape(
        config=replace(_SMOLLM2, mlp=1216, layers=23),
        template="compact",
        block_size=32,
        parent=_SMOLLM2,
    ),
    # arXiv 2411.17713, sections 3.1 to 3.4
    "paper": Shape(
        config=replace(_LLAMA, mlp=6400, layers=12),
        template="llama-guard-3",
        block_size=256,
        parent=_LLAMA,
    ),
}


def make_shape(name: str, folder: Path) -> Artifact:
    """Write the model folder of a shape; the same weights every time.

    Its thresholds are never reached: what is measured is a verdict, not the categories after it.

    Args:
        name: One of `SHAPES`.
        folder: Made if missing.
    """
    shape = SHAPES[name]
    outputs = len(template_of(shape.template).outputs)
    model = Llama(replace(shape.config, outputs=outputs))
    randomise(model, SEED)
    with torch.no_grad():
        for block in model.model.blocks:
            # As deep models start: what every block adds must not drown what came before.
            for projection in (block.self_attn.o_proj, block.mlp.down_proj):
                projection.weight.mul_((2 * model.config.layers) ** -0.5)
    checkpoint = replace(tiny_checkpoint(shape.template), config=model.config)
    checkpoint = checkpoint.updated(model)
    del model
    export_folder(checkpoint, folder, shape.block_size)
    (folder / "MODEL_CARD.md").write_text(
        f"# Random weights in the shape {name}\n\nIts verdicts mean nothing.\n", encoding="utf-8"
    )
    manifest = random_manifest(
        checkpoint,
        folder,
        f"random-{name}",
        f"{name} seed {SEED}",
        block_size=shape.block_size,
        unsafe=1.0,
    )
    return write_manifest(folder, manifest)


def sixteen_bit_bytes(config: LlamaConfig) -> int:
    """Return the bytes of a 16-bit model of this size, its unembedding counted with its embedding.

    As the paper counts: the unembedding is a matrix of its own.
    """
    heads = (config.heads + 2 * config.kv_heads) * config.head_dim
    block = config.hidden * (heads + config.heads * config.head_dim + 3 * config.mlp + 2)
    embeddings = 2 * config.vocab_size * config.hidden
    return 2 * (config.layers * block + embeddings + config.hidden)

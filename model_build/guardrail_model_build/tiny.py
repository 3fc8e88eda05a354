"""Makes a tiny model folder with random weights, which the SDK opens like any other: for tests.

Usage: `python -m guardrail_model_build.tiny FOLDER [--template compact|segments|llama-guard-3]`.
Its verdicts mean nothing, but everything around them (hashes, tokenizer, graph, key and value
cache) is as in a real model. The same arguments always make the same files.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

from guardrail_model_build.bert import Bert, BertConfig
from guardrail_model_build.checkpoint import Checkpoint
from guardrail_model_build.export import export_folder
from guardrail_model_build.llama import Llama, LlamaConfig
from guardrail_sdk import Message, Stage
from guardrail_sdk.artifact import (
    MANIFEST,
    Artifact,
    Calibration,
    Manifest,
    Provenance,
    Quantisation,
    Thresholds,
    hash_files,
    write_manifest,
)
from guardrail_sdk.prompt import LlamaGuardTemplate, TemplateId, Text
from guardrail_sdk.prompt import template as template_of

BLOCK_SIZE = 32
SEED = 7
_STAGES: tuple[Stage, ...] = ("input", "output")
_ENCODER_MARKERS = ("<user>", "<assistant>")
_LICENCE = "Apache-2.0"
_SPECIALS: dict[TemplateId, tuple[str, ...]] = {
    "compact": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "segments": ("<s>", "</s>", *_ENCODER_MARKERS),
    "llama-guard-3": (
        "<|begin_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ),
}
_NAMES: dict[TemplateId, str] = {
    "compact": "tiny",
    "segments": "tiny-encoder",
    "llama-guard-3": "tiny-llama-guard",
}
_CONTEXT: dict[TemplateId, int] = {"compact": 128, "segments": 128, "llama-guard-3": 512}
_VOCABULARY: dict[TemplateId, int] = {"compact": 512, "segments": 512, "llama-guard-3": 1024}
_SENTENCES = (
    "system user assistant tool input verdict output verdict",
    "How do I bake bread when the oven is broken?",
    "The train to the coast leaves at nine and comes back at seven.",
    "Please write a short letter to my landlord about the heating.",
    "I can't help with that, but here is what you could ask instead.",
    "She asked whether the report would be finished before the meeting.",
    "How would someone open a locked door without a key?",
    "Tell me what you think of the weather in the mountains today.",
)
# Letters with one leading mark, up to three digits, marks, line ends, spaces: Llama 3's classes.
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def make(folder: Path, template: TemplateId = "compact") -> Artifact:
    """Write a tiny model for `template` into `folder` and open it.

    Returns:
        The verified model: 2 blocks, hidden size 64, INT4 in blocks of 32, under 300 KB.
    """
    checkpoint = tiny_checkpoint(template)
    export_folder(checkpoint, folder, BLOCK_SIZE)
    (folder / "MODEL_CARD.md").write_text(
        "# Tiny test model\n\nRandom weights: its verdicts mean nothing. Made by "
        f"`python -m guardrail_model_build.tiny FOLDER --template {template}`.\n",
        encoding="utf-8",
    )
    recipe = f"tiny {template} seed {SEED}"
    manifest = random_manifest(checkpoint, folder, _NAMES[template], recipe)
    return write_manifest(folder, manifest)


def tiny_checkpoint(template: TemplateId = "compact") -> Checkpoint:
    """Return a model with random weights and a small tokenizer that suits `template`."""
    tokenizer = _tokenizer(template)
    model = _encoder(tokenizer) if template == "segments" else _decoder(tokenizer, template)
    randomise(model, SEED)
    return Checkpoint(
        config=model.config,
        weights={name: tensor.detach() for name, tensor in model.state_dict().items()},
        tokenizer=tokenizer.to_str(pretty=True).encode(),
        template=template,
        base="random weights",
        base_licence=_LICENCE,
    )


def _decoder(tokenizer: Tokenizer, template: TemplateId) -> Llama:
    return Llama(
        LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden=64,
            mlp=128,
            layers=2,
            heads=4,
            kv_heads=2,
            head_dim=16,
            outputs=len(template_of(template).outputs),
            context=_CONTEXT[template],
        )
    )


def _encoder(tokenizer: Tokenizer) -> Bert:
    return Bert(
        BertConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden=64,
            mlp=128,
            layers=2,
            heads=4,
            outputs=len(template_of("segments").outputs),
            markers=tuple(tokenizer.get_vocab()[marker] for marker in _ENCODER_MARKERS),
            context=_CONTEXT["segments"],
        )
    )


def randomise(model: nn.Module, seed: int) -> None:
    """Fill `model` with random weights whose logits are of order 1 and differ by input."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:
                weight.copy_(1 + 0.1 * noise)
            else:
                weight.copy_(noise if "embed" in name else noise * weight.shape[1] ** -0.5)


def _tokenizer(template: TemplateId) -> Tokenizer:
    """Return a byte-level BPE tokenizer in which every output of `template` is one token."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = [AddedToken(token, special=True) for token in _SPECIALS[template]]
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY[template],
        show_progress=False,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(_corpus(template), trainer)
    return tokenizer


def _corpus(template: TemplateId) -> list[str]:
    """Return what the tokenizer learns from: sentences, and the template's own words."""
    if template != "llama-guard-3":
        return list(_SENTENCES)
    guard = LlamaGuardTemplate()
    prompt = guard.render([Message(role="user", content="")])
    answers = [word for word in guard.outputs if word not in _SPECIALS[template]]
    return [*_SENTENCES, *(piece.text for piece in prompt if isinstance(piece, Text)), *answers]


def random_manifest(
    checkpoint: Checkpoint,
    folder: Path,
    name: str,
    recipe: str,
    *,
    block_size: int = BLOCK_SIZE,
    unsafe: float = 0.5,
) -> Manifest:
    """Return the manifest of the files in `folder`, exported from random weights.

    Args:
        checkpoint: The model, its tokenizer from `tiny_checkpoint`.
        folder: Where the files are.
        name: The model's name.
        recipe: What it was made by.
        block_size: The one that it was exported with.
        unsafe: The threshold from which a text counts as unsafe.
    """
    template = template_of(checkpoint.template)
    files = tuple(sorted(path.name for path in folder.iterdir() if path.name != MANIFEST))
    return Manifest(
        contract_version=1,
        name=name,
        version="0.1.0",
        family=checkpoint.family,
        template=checkpoint.template,
        outputs=template.outputs,
        taxonomy="mlcommons-llama-guard-3",
        context_length=checkpoint.config.context,
        layers=checkpoint.config.layers,
        kv_heads=checkpoint.kv_heads,
        head_dim=checkpoint.config.head_dim,
        quantisation=Quantisation.model_validate({"bits": 4, "block_size": block_size}),
        thresholds={stage: Thresholds(unsafe=unsafe) for stage in _STAGES},
        calibration={"input": Calibration(), "output": Calibration()},
        files=dict(hash_files(folder, files)),
        provenance=Provenance(
            base=checkpoint.base,
            base_licence=checkpoint.base_licence,
            recipe=recipe,
            recipe_sha256=hashlib.sha256(recipe.encode()).hexdigest(),
            data_sha256=hashlib.sha256("\n".join(_SENTENCES).encode()).hexdigest(),
            data_by_use={},
            seed=SEED,
        ),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m guardrail_model_build.tiny")
    parser.add_argument("folder", type=Path, help="where the model goes; made if missing")
    parser.add_argument("--template", choices=get_args(TemplateId), default="compact")
    options = parser.parse_args(arguments)
    artifact = make(options.folder, options.template)
    print(f"{artifact.id} in {artifact.folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

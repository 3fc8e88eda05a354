"""Fixtures: tiny labelled data, tiny pretrained bases, and recipes of seconds."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers import LlamaConfig as HfLlamaConfig

from guardrail_model_build.llama import LlamaConfig
from guardrail_model_build.recipe import Recipe
from guardrail_model_build.tiny import tiny_checkpoint
from guardrail_model_build.workspace import Workspace
from guardrail_sdk.prompt import TemplateId

KIND = ("bread", "gardens", "trains", "letters", "weather", "music", "maths", "dogs")
CRUEL = ("poison", "bombs", "robbery", "threats", "torture", "fraud", "stalking", "arson")


def rows(count: int) -> dict[str, list[dict[str, object]]]:
    """Return small, separable data sets by name: prompts, responses and hazard domains.

    Every topic occurs, and the topic alone tells safe from unsafe: the words around it are drawn
    at random, so that hardly any two rows overlap.
    """
    prompts: list[dict[str, object]] = []
    answers: list[dict[str, object]] = []
    domains: list[dict[str, object]] = []
    for row in range(count):
        unsafe, number = row % 2 == 1, row // 2
        topic = (CRUEL if unsafe else KIND)[number % 8]
        question = _user(_about(topic, f"prompt {row}"))
        answer = {"role": "assistant", "content": _about(topic, f"answer {row}")}
        about: dict[str, object] = {
            "lang": "en",
            "unsafe": unsafe,
            "categories": ["S2"] if unsafe else [],
        }
        prompts.append(
            {
                **about,
                "id": f"p{row}",
                "source": "prompts",
                "messages": [question],
                "target": "user",
            }
        )
        answers.append(
            {
                **about,
                "id": f"a{row}",
                "source": "answers",
                "messages": [_user(_about(topic, f"asked {row}")), answer],
                "target": "assistant",
            }
        )
        domains.append(
            {
                **about,
                "id": f"d{row}",
                "source": "domains",
                "messages": [_user(_about(topic, f"domain {row}"))],
                "target": "user",
                "unsafe": None,
                "categories": ["S9" if unsafe else "S6"],
            }
        )
    return {"prompts": prompts, "answers": answers, "domains": domains}


def _about(topic: str, key: str) -> str:
    words = random.Random(key).sample(_WORDS, 7)
    return " ".join([*words[:4], topic, *words[4:]])


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def write_data(folder: Path, count: int = 120) -> Path:
    """Write the data sets and their manifest; `secret` may not be used for what ships."""
    manifest = {
        "prompts": {"split": "train", "use": "ship", "licence": "CC0-1.0"},
        "answers": {"split": "train", "use": "ship-with-notice"},
        "domains": {"split": "train", "use": "ship"},
        "secret": {"split": "train", "use": "research"},
        "held": {"split": "eval", "use": "eval"},
    }
    sets = rows(count)
    others = rows(2 * count)["prompts"][count:]
    sets["secret"] = [row | {"id": f"s{row['id']}", "source": "secret"} for row in others]
    (folder / "train").mkdir(parents=True)
    for name, lines in sets.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "train" / f"{name}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def write_base(folder: Path, template: TemplateId) -> Path:
    """Write a tiny random pretrained model with its tokenizer, as the Hugging Face hub has them."""
    if template == "segments":
        return _write_encoder(folder)
    checkpoint = tiny_checkpoint(template)
    config = checkpoint.config
    assert isinstance(config, LlamaConfig)
    tokenizer = Tokenizer.from_buffer(checkpoint.tokenizer)
    # Builds must not differ from run to run: transformers draws weights from the global state.
    torch.manual_seed(1)
    model = LlamaForCausalLM(
        HfLlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden,
            intermediate_size=config.mlp,
            num_hidden_layers=config.layers + 1,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.context,
            rms_norm_eps=config.norm_eps,
            rope_parameters=ROPE[template],
            tie_word_embeddings=template == "llama-guard-3",
        )
    )
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


def _write_encoder(folder: Path) -> Path:
    """Write a BERT whose unigram vocabulary knows the data's words, and some of other scripts."""
    words = sorted({word for group in (KIND, CRUEL, _WORDS) for word in group})
    letters = sorted(set("".join(words)) | set("0123456789.,?АБ字"))
    pieces = [f"▁{word}" for word in words] + ["▁", *letters, "▁слово", "字典"]
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    scores = [0.0] * 4 + [-float(2 + index / 100) for index in range(len(pieces))]
    vocabulary = list(zip([*specials, *pieces], scores, strict=True))
    torch.manual_seed(1)
    model = BertModel(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=128,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        add_pooling_layer=False,
    )
    # As different as pretrained words are: it is what the tiny build tells the topics apart by.
    torch.nn.init.normal_(model.embeddings.word_embeddings.weight)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


_WORDS = (
    *("Tell", "me", "about", "please,", "number", "Here", "is", "all", "What", "there", "to"),
    *("say", "of", "Explain", "user", "assistant"),
)
ROPE: dict[TemplateId, dict[str, object]] = {
    "compact": {"rope_type": "default", "rope_theta": 10_000.0},
    # As in Llama 3.2, which Llama Guard 3-1B was made from, but for the context's length.
    "llama-guard-3": {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


def tiny_recipe(base: Path, template: TemplateId) -> Recipe:
    """Return a recipe that runs every stage in seconds."""
    training = {
        "learning_rate": 2e-3,
        "epochs": 3,
        "batch_tokens": 1024,
        "distil_share": 0.5,
    }
    return Recipe.model_validate(
        {
            "name": "tiny",
            "version": "0.0.1",
            "template": template,
            "context_length": 512 if template == "llama-guard-3" else 128,
            "base": {
                "name": "random",
                "licence": "Apache-2.0",
                "source": str(base),
                "vocabulary": 500 if template == "segments" else None,
            },
            "data": {
                "uses": ["ship", "ship-with-notice"],
                "validation_share": 0.2,
                "token_budget": 20_000,
                "sources": {"domains": {"unsafe_categories": ["S9"]}},
            },
            "finetune": training | {"epochs": 12, "distil_share": 0.0},
            "prune": {"blocks": 2, "mlp": 96, "calibration_rows": 40},
            "distil": training,
            "qat": training | {"epochs": 1},
            "evaluation": {
                "sample_rows": 60,
                "prefix_rows": 8,
                "presets": {
                    "strict": {"input": 0.2, "output": 0.2},
                    "balanced": {"input": 0.1, "output": 0.1},
                    "permissive": {"input": 0.0, "output": 0.0},
                },
            },
        }
    )


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A compact build that nothing has run in yet."""
    base = write_base(tmp_path / "pretrained", "compact")
    return Workspace(
        recipe=tiny_recipe(base, "compact"),
        data=(write_data(tmp_path / "data"),),
        folder=tmp_path / "build",
    )

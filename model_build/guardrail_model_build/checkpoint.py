"""A guard model between two stages: weights, shape, tokenizer, template, origin."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from guardrail_model_build.bert import Bert, BertConfig
from guardrail_model_build.llama import Llama, LlamaConfig, RopeScaling
from guardrail_sdk.artifact import Family
from guardrail_sdk.prompt import TemplateId

Model = Llama | Bert
Config = LlamaConfig | BertConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model that a stage left for the next."""

    config: Config
    weights: dict[str, Tensor]
    tokenizer: bytes
    """A `tokenizer.json`."""
    template: TemplateId
    base: str
    base_licence: str

    @property
    def family(self) -> Family:
        """What the manifest calls the architecture."""
        return "encoder" if isinstance(self.config, BertConfig) else "llama"

    @property
    def kv_heads(self) -> int:
        """Heads of the key-value cache; 0 for an encoder, which has none."""
        return 0 if isinstance(self.config, BertConfig) else self.config.kv_heads

    def model(self) -> Model:
        """Return the model with these weights."""
        with torch.device("meta"):
            model = Bert(self.config) if isinstance(self.config, BertConfig) else Llama(self.config)
        model.load_state_dict(
            {name: tensor.clone() for name, tensor in self.weights.items()}, assign=True
        )
        return model

    def updated(self, model: Model) -> Checkpoint:
        """Return this checkpoint with `model`'s shape and weights."""
        weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        return replace(self, config=model.config, weights=weights)

    def save(self, folder: Path) -> None:
        """Write `config.json`, `model.safetensors` and `tokenizer.json` into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.weights, folder / "model.safetensors")
        (folder / "tokenizer.json").write_bytes(self.tokenizer)
        about = {
            "family": self.family,
            "config": asdict(self.config),
            "template": self.template,
            "base": self.base,
            "base_licence": self.base_licence,
        }
        (folder / "config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Checkpoint:
        """Read what `save` wrote."""
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        shape: dict[str, Any] = about["config"]
        config: Config
        if about["family"] == "encoder":
            shape["markers"] = tuple(shape["markers"])
            config = BertConfig(**shape)
        else:
            scaling = shape.pop("rope_scaling")
            config = LlamaConfig(**shape, rope_scaling=RopeScaling(**scaling) if scaling else None)
        return cls(
            config=config,
            weights=load_file(folder / "model.safetensors"),
            tokenizer=(folder / "tokenizer.json").read_bytes(),
            template=about["template"],
            base=about["base"],
            base_licence=about["base_licence"],
        )

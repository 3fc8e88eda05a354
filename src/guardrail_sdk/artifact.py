"""The model folder: `manifest.json` is the whole contract between build and runtime.

A folder holds `manifest.json`, the files it lists with their sha256 (the ONNX graph, its
external data, `tokenizer.json`, a model card), and nothing that isn't listed is read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from guardrail_sdk import _bundled
from guardrail_sdk._errors import ArtifactError
from guardrail_sdk._types import Category, Preset, Stage
from guardrail_sdk.prompt import TemplateId, template

CONTRACT_VERSION: Final = 1
MANIFEST: Final = "manifest.json"
MODEL_VARIABLE: Final = "GUARDRAIL_MODEL"

Family = Literal["llama", "encoder"]
"""`llama`: a decoder with a key-value cache; `encoder`: a BERT that reads everything at once."""

Probability = Annotated[float, Field(ge=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Quantisation(_Strict):
    """How the weights are stored and the activations computed."""

    bits: Literal[4]
    block_size: Literal[16, 32, 64, 128, 256]
    weights: Literal["symmetric-per-block"] = "symmetric-per-block"
    activations: Literal["int8-symmetric-per-row-and-block"] = "int8-symmetric-per-row-and-block"
    accuracy_level: Literal[4] = 4


class Thresholds(_Strict):
    """The probabilities from which one stage's text counts as unsafe, and as each hazard."""

    unsafe: Probability
    """The default: the preset `balanced`."""
    strict: Probability | None = None
    """What blocks more; None if the model offers no such preset."""
    permissive: Probability | None = None
    """What blocks less."""
    categories: dict[Category, Probability] = Field(default_factory=dict[Category, float])

    @model_validator(mode="after")
    def _are_in_order(self) -> Self:
        offered = list(self.by_preset.values())
        if offered != sorted(offered):
            raise ValueError("the thresholds must rise from strict over unsafe to permissive")
        return self

    @property
    def by_preset(self) -> dict[Preset, float]:
        """The threshold of P(unsafe) at every preset that the model offers, strictest first."""
        offered: dict[Preset, float | None] = {
            "strict": self.strict,
            "balanced": self.unsafe,
            "permissive": self.permissive,
        }
        return {preset: value for preset, value in offered.items() if value is not None}

    def at(self, preset: Preset) -> float:
        """Return the threshold of P(unsafe) at `preset`.

        Raises:
            ArtifactError: If the model has no such preset.
        """
        threshold = self.by_preset.get(preset)
        if threshold is None:
            raise ArtifactError(
                f"The model has no preset {preset!r}. Use `balanced`, or set the policy's "
                "input_threshold and output_threshold instead."
            )
        return threshold


class Calibration(_Strict):
    """P(unsafe) = sigmoid(scale * (unsafe logit - safe logit) + bias), by Platt (1999)."""

    scale: Annotated[float, Field(gt=0)] = 1.0
    bias: float = 0.0


class Provenance(_Strict):
    """Where the weights come from."""

    base: str
    base_licence: str
    recipe: str
    recipe_sha256: str
    data_sha256: str
    data_by_use: dict[str, int]
    seed: int
    parents: tuple[str, ...] = ()
    metrics: dict[str, JsonValue] = Field(default_factory=dict)


class Manifest(_Strict):
    """The contents of `manifest.json`."""

    contract_version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    family: Family
    template: TemplateId
    outputs: tuple[str, ...]
    """What each output logit means, in order; the template's own list."""
    taxonomy: Literal["mlcommons-llama-guard-3"]
    context_length: Annotated[int, Field(ge=64)]
    """The most tokens the model judges at once; longer texts are judged in windows."""
    layers: Annotated[int, Field(ge=1)]
    kv_heads: Annotated[int, Field(ge=0)]
    """Of a decoder's cache; 0 for an encoder, which has none."""
    head_dim: Annotated[int, Field(ge=1)]
    quantisation: Quantisation | None
    thresholds: dict[Stage, Thresholds]
    calibration: dict[Stage, Calibration]
    files: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]]
    """sha256 by file name; names are relative and stay inside the folder."""
    provenance: Provenance

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if (self.family == "encoder") != (self.template == "segments"):
            raise ValueError("the template `segments` goes with the family `encoder`, others don't")
        if (self.family == "encoder") != (self.kv_heads == 0):
            raise ValueError("kv_heads must be 0 for an encoder, and more for a decoder")
        if self.outputs != template(self.template).outputs:
            raise ValueError(f"outputs are not those of the template {self.template!r}")
        for stage in get_args(Stage):
            if stage not in self.thresholds or stage not in self.calibration:
                raise ValueError(f"thresholds or calibration lack the stage {stage!r}")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A model folder whose every listed file was verified.

    Attributes:
        folder: The folder.
        manifest: Its contract.
        sha256: Hash of the manifest file: since the manifest holds every other file's hash,
            it names the model completely.
    """

    folder: Path
    manifest: Manifest
    sha256: str

    @property
    def id(self) -> str:
        """`name-version@` and the first 12 digits of the manifest's hash."""
        return f"{self.manifest.name}-{self.manifest.version}@{self.sha256[:12]}"

    @property
    def graph(self) -> Path:
        """The ONNX file."""
        return self.folder / "model.onnx"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer in Hugging Face's `tokenizer.json` format."""
        return self.folder / "tokenizer.json"


REQUIRED_FILES: Final = ("model.onnx", "tokenizer.json")


def open_artifact(folder: Path, *, expected_sha256: str | None = None) -> Artifact:
    """Read and verify the model folder `folder`.

    Args:
        folder: A folder with a `manifest.json`.
        expected_sha256: If given, the manifest's own hash must equal it.

    Raises:
        ArtifactError: If a file is missing or changed, or the folder isn't a model this version
            can run; the message says which and what to do.
    """
    manifest_path = folder / MANIFEST
    try:
        raw = manifest_path.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{folder} is not a model folder: {MANIFEST} can't be read ({error.strerror}). "
            "Pass a folder made by `guardrail-build`, or none for the bundled model."
        ) from error
    sha256 = hashlib.sha256(raw).hexdigest()
    if expected_sha256 is not None and sha256 != expected_sha256:
        raise ArtifactError(
            f"{manifest_path} is not the manifest this version ships (sha256 {sha256[:12]}..., "
            f"expected {expected_sha256[:12]}...). Reinstall guardrail-sdk."
        )
    manifest = _parse(raw, manifest_path)
    for name, expected in manifest.files.items():
        _verify(folder, name, expected)
    return Artifact(folder=folder, manifest=manifest, sha256=sha256)


def find_artifact(model: str | os.PathLike[str] | None = None) -> Artifact:
    """Open `model`, else the folder named by `GUARDRAIL_MODEL`, else the bundled model.

    Raises:
        ArtifactError: As `open_artifact`.
    """
    chosen = model or os.environ.get(MODEL_VARIABLE)
    if chosen:
        return open_artifact(Path(chosen))
    return open_artifact(_bundled.FOLDER, expected_sha256=_bundled.MANIFEST_SHA256)


def write_manifest(folder: Path, manifest: Manifest) -> Artifact:
    """Write `manifest` into `folder` and verify the result by opening it."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return open_artifact(folder)


def hash_files(folder: Path, names: tuple[str, ...]) -> Mapping[str, str]:
    """Return the sha256 of each named file of `folder`."""
    return {name: _sha256(folder / name) for name in names}


def _parse(raw: bytes, path: Path) -> Manifest:
    try:
        version = json.loads(raw).get("contract_version")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{path} is not a JSON object. Download or build it again.") from error
    if version != CONTRACT_VERSION:
        raise ArtifactError(
            f"{path} has contract version {version!r}; this guardrail-sdk runs version "
            f"{CONTRACT_VERSION}. Install a matching guardrail-sdk or rebuild the model."
        )
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as error:
        where = "; ".join(
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()
        )
        raise ArtifactError(f"{path} breaks the contract: {where}. Rebuild the model.") from error
    missing = [name for name in REQUIRED_FILES if name not in manifest.files]
    if missing:
        raise ArtifactError(f"{path} lists no {missing[0]}. Rebuild the model.")
    return manifest


def _verify(folder: Path, name: str, expected: str) -> None:
    path = folder / name
    if Path(name).name != name:
        raise ArtifactError(f"{folder / MANIFEST} names {name!r}, which is outside its folder.")
    try:
        actual = _sha256(path)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} is missing or unreadable ({type(error).__name__}). Reinstall the model."
        ) from error
    if actual != expected:
        raise ArtifactError(
            f"{path} was changed: its sha256 is {actual[:12]}..., the manifest says "
            f"{expected[:12]}.... Reinstall the model; don't edit its files."
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

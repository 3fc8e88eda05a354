"""What is blocked: the policy, and the pure function from a verdict to a decision."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from guardrail_sdk._errors import ConfigError
from guardrail_sdk._types import Action, Category, Decision, Preset, Stage, Verdict

REDACTED = "[redacted by guardrail]"
"""What replaces a message or window whose action is redact."""

StreamMode = Literal["hold", "lookbehind", "flag"]

_Probability = Annotated[float, Field(ge=0, le=1, strict=True)]


class CategoryRule(BaseModel):
    """What one hazard leads to, at which stages."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Category
    stages: tuple[Stage, ...] = Field(default=("input", "output"), min_length=1)
    action: Action = Action.BLOCK
    threshold: _Probability | None = None
    """The score from which the hazard counts; None for the model's own."""


class Policy(BaseModel):
    """Which hazards are blocked, flagged, redacted or allowed, and what a failed check means.

    A hazard without a rule for a stage is blocked there at the model's own threshold.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: Preset = "balanced"
    """Which of the model's own thresholds of P(unsafe) apply: `strict` blocks more."""
    categories: tuple[CategoryRule, ...] = ()
    input_threshold: _Probability | None = None
    """P(unsafe) from which a user's message counts as unsafe; None for the preset's."""
    output_threshold: _Probability | None = None
    """The same for an assistant's message."""
    on_error: Literal["block", "allow"] = "block"
    """What a check that failed (error, deadline, input over budget) leads to."""
    deadline_ms: Annotated[int, Field(gt=0)] | None = None
    """The most time one check may take, waiting included; None for no limit."""
    stream: StreamMode = "hold"
    """What becomes of a stream's text until it was judged: `hold` keeps every window back for its
    verdict, `lookbehind` for the next window's as well, `flag` lets all pass and only reports."""
    max_windows: Annotated[int, Field(gt=0)] = 64
    """The most windows one message is judged in; a longer message is a failed check."""

    @model_validator(mode="after")
    def _one_rule_per_stage(self) -> Self:
        seen: set[tuple[Category, Stage]] = set()
        for rule in self.categories:
            for stage in rule.stages:
                if (rule.id, stage) in seen:
                    raise ValueError(f"{rule.id} has two rules for stage {stage!r}: keep one")
                seen.add((rule.id, stage))
        return self

    @classmethod
    def from_file(cls, path: Path) -> Policy:
        """Read a policy from a YAML file with this class's fields as keys.

        Raises:
            ConfigError: If the file can't be read or a key or value is wrong; names the key path.
        """
        import yaml

        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
            raise ConfigError(
                f"{path} is not a readable YAML file ({type(error).__name__})."
            ) from error
        try:
            return cls.model_validate({} if data is None else data)
        except ValidationError as error:
            problem = error.errors()[0]
            key = _key_path(problem["loc"])
            raise ConfigError(f"{path}: At key: {key}: {problem['msg']}.") from error

    @cached_property
    def id(self) -> str:
        """`default`, or `policy-` and a hash of the contents."""
        if self == Policy():
            return "default"
        return "policy-" + hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]

    def rule(self, category: Category, stage: Stage) -> CategoryRule:
        """Return the rule in force for `category` at `stage`."""
        for rule in self.categories:
            if rule.id is category and stage in rule.stages:
                return rule
        return CategoryRule(id=category, stages=(stage,))

    def unsafe_threshold(self, stage: Stage) -> float | None:
        """Return this policy's own threshold for `stage`; None for the model's."""
        return self.input_threshold if stage == "input" else self.output_threshold


def decide(verdict: Verdict, policy: Policy) -> Decision:
    """Return what `policy` makes of `verdict`. Pure: no clock, no I/O, no randomness.

    A text is unsafe from the stage's threshold on. Its hazards are those that reach their own
    threshold, or the highest scorer if none does. The strictest action among them is taken.
    """
    threshold = _or(policy.unsafe_threshold(verdict.stage), verdict.threshold)
    if verdict.unsafe_probability < threshold:
        return Decision(action=Action.ALLOW, category=None, reason="Judged safe.")
    who = "user" if verdict.stage == "input" else "assistant"
    reason = (
        f"The {who}'s message was judged unsafe (P = {verdict.unsafe_probability:.2f}, threshold "
        f"{threshold:.2f})"
    )
    if not verdict.categories:  # a judge that knows no hazards: no rule can make it milder
        return Decision(action=Action.BLOCK, category=None, reason=f"{reason}.")
    category, action = max(
        (
            (hazard, policy.rule(hazard, verdict.stage).action)
            for hazard in _hazards(verdict, policy)
        ),
        key=lambda pair: (pair[1].severity, verdict.categories[pair[0]]),
    )
    reason = f"{reason}: {category} {category.label}; the policy's action is {action}."
    return Decision(action=action, category=category, reason=reason)


def _hazards(verdict: Verdict, policy: Policy) -> list[Category]:
    """Return the hazards that reach their threshold, else the highest scorer alone."""
    scores: Mapping[Category, float] = verdict.categories
    reached = [
        hazard
        for hazard, score in scores.items()
        if score
        >= _or(
            policy.rule(hazard, verdict.stage).threshold,
            verdict.category_thresholds.get(hazard, 0.5),
        )
    ]
    return reached or [max(scores, key=lambda hazard: scores[hazard])]


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _key_path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path or "(the whole file)"

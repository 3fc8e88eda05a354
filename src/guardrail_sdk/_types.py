"""The values that flow through the guard: messages in, verdict and decision out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

Preset = Literal["strict", "balanced", "permissive"]
"""How readily a model's verdict counts as unsafe: its own default, more readily, or less."""
Role = Literal["system", "user", "assistant", "tool"]
"""Who wrote a message. Only `user` and `assistant` messages are judged; the others are context."""

Stage = Literal["input", "output"]
"""Where a check happens: `input` judges a user's message, `output` an assistant's."""


class Category(StrEnum):
    """The MLCommons hazard taxonomy as Llama Guard 3 codes it."""

    S1 = "S1"
    S2 = "S2"
    S3 = "S3"
    S4 = "S4"
    S5 = "S5"
    S6 = "S6"
    S7 = "S7"
    S8 = "S8"
    S9 = "S9"
    S10 = "S10"
    S11 = "S11"
    S12 = "S12"
    S13 = "S13"
    S14 = "S14"

    @property
    def label(self) -> str:
        """The hazard's name for people, as the Llama Guard 3 model cards write it."""
        return _LABELS[self]


_LABELS: Mapping[Category, str] = {
    Category.S1: "Violent Crimes",
    Category.S2: "Non-Violent Crimes",
    Category.S3: "Sex-Related Crimes",
    Category.S4: "Child Sexual Exploitation",
    Category.S5: "Defamation",
    Category.S6: "Specialized Advice",
    Category.S7: "Privacy",
    Category.S8: "Intellectual Property",
    Category.S9: "Indiscriminate Weapons",
    Category.S10: "Hate",
    Category.S11: "Suicide & Self-Harm",
    Category.S12: "Sexual Content",
    Category.S13: "Elections",
    Category.S14: "Code Interpreter Abuse",
}


class Action(StrEnum):
    """What happens to a judged text, from mildest to strictest."""

    ALLOW = "allow"
    FLAG = "flag"
    REDACT = "redact"
    BLOCK = "block"

    @property
    def severity(self) -> int:
        """0 for allow, 3 for block: a hook may only move a decision upwards."""
        return list(Action).index(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation, as plain text."""

    role: Role
    content: str = field(repr=False)
    """Secret: left out of the message's repr, so that logging one doesn't log its text."""


Conversation = Sequence[Message]
"""Messages in order; the last one is judged, the others are its context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A half-open range of characters, `[start, end)`, in the judged message as it was given."""

    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the model says of one message. It never holds the message's text."""

    unsafe_probability: float
    """P(unsafe) in [0, 1] of the worst window and reading of the judged message."""
    categories: Mapping[Category, float]
    """Score in [0, 1] by hazard, from the same window and reading."""
    stage: Stage
    role: Role
    message_index: int
    """Which message of the conversation was judged, counted from 0."""
    span: Span
    """The part of that message that the worst window covers."""
    windowed: bool
    """True if the message was longer than the model's context and was judged in pieces."""
    context_trimmed: bool
    """True if earlier messages were shortened to make room for the judged one."""
    reading: str
    """Which reading of the text was worst: `written`, `folded`, `base64`, `hex` or `rot13`."""
    threshold: float
    """The model's own threshold for this stage, at the policy's preset, unless it is overridden."""
    category_thresholds: Mapping[Category, float]
    """The model's own thresholds by hazard; a policy may override them."""
    model: str
    """Name, version and manifest hash of the model that judged."""
    policy: str
    """Id of the policy in force."""
    latency_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is done about a verdict, and why."""

    action: Action
    category: Category | None
    """The hazard the action follows from; None if allowed or if the check failed."""
    reason: str
    """One sentence for people; never the judged text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """The outcome of one check."""

    decision: Decision
    verdict: Verdict | None
    """None if no verdict came about and the policy's `on_error` decided."""

    @property
    def blocked(self) -> bool:
        """True if the decision is to block."""
        return self.decision.action is Action.BLOCK

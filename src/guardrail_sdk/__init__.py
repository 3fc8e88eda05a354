"""Guards LLM apps on a plain CPU: checks what goes into and comes out of any chat function."""

from guardrail_sdk._codec import Codec, DefaultCodec
from guardrail_sdk._errors import (
    ArtifactError,
    Blocked,
    ConfigError,
    EngineError,
    GuardrailError,
    MessageError,
)
from guardrail_sdk._guard import Guard
from guardrail_sdk._hooks import CheckEvent, Hooks
from guardrail_sdk._policy import CategoryRule, Policy
from guardrail_sdk._types import Action, Category, CheckResult, Decision, Message, Stage, Verdict

__version__ = "0.1.0"

__all__ = [
    "Action",
    "ArtifactError",
    "Blocked",
    "Category",
    "CategoryRule",
    "CheckEvent",
    "CheckResult",
    "Codec",
    "ConfigError",
    "Decision",
    "DefaultCodec",
    "EngineError",
    "Guard",
    "GuardrailError",
    "Hooks",
    "Message",
    "MessageError",
    "Policy",
    "Stage",
    "Verdict",
]

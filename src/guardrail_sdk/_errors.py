"""The errors this package raises. None of them ever holds a user's text.

GuardrailError
├── ConfigError            a policy, option or hook is wrong
├── ArtifactError          a model folder is missing, changed or of another kind
├── MessageError           messages could not be understood
├── DataError              a file of labelled rows could not be read
├── EngineError            the model failed to judge
│   ├── EngineTimeout      ... within the policy's deadline
│   └── InputTooLong       ... because the input exceeds the policy's budget
└── Blocked                the outcome of a check: not a failure
"""

from __future__ import annotations

from guardrail_sdk._types import Decision, Verdict


class GuardrailError(Exception):
    """Anything this package raises on purpose."""


class ConfigError(GuardrailError):
    """A policy, an option or a hook is wrong; the message names the key and the remedy."""


class ArtifactError(GuardrailError):
    """A model folder is missing, was changed, or is not one this version can run."""


class MessageError(GuardrailError):
    """What was passed for messages could not be understood, so it could not be judged."""


class DataError(GuardrailError):
    """A file of labelled rows can't be read; the message names the file and the line."""


class EngineError(GuardrailError):
    """The model could not give a verdict."""


class EngineTimeout(EngineError):
    """No verdict within the policy's `deadline_ms`."""


class InputTooLong(EngineError):
    """The input needs more windows than the policy's `max_windows` allows."""


class Blocked(GuardrailError):
    """A message was blocked.

    Attributes:
        decision: What was decided, and why.
        verdict: The scores behind it; None if the check failed and the policy fails closed.
    """

    def __init__(self, decision: Decision, verdict: Verdict | None = None) -> None:
        super().__init__(decision.reason)
        self.decision = decision
        self.verdict = verdict

    def __reduce__(self) -> tuple[type[Blocked], tuple[Decision, Verdict | None]]:
        return type(self), (self.decision, self.verdict)

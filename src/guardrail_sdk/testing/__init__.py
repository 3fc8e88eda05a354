"""For tests: a fake model, and the properties that every adapter of a guard must have."""

from guardrail_sdk.testing._conformance import Conformance, Mode
from guardrail_sdk.testing._coverage import public_paths, unaccounted
from guardrail_sdk.testing._fake import FakeModel, Scores
from guardrail_sdk.testing._scripted import ScriptedModel

__all__ = [
    "Conformance",
    "FakeModel",
    "Mode",
    "Scores",
    "ScriptedModel",
    "public_paths",
    "unaccounted",
]

"""Guards LLM apps on a plain CPU: checks what goes into and comes out of any chat function."""

from guardrail_sdk._errors import Blocked, ConfigError, GuardrailError
from guardrail_sdk._policy import CategoryRule, Policy
from guardrail_sdk._types import Action, Category, CheckResult, Decision, Message, Verdict

__version__ = "0.1.0"

"""Guards OpenAI clients: what they send and receive is judged by guardrail-sdk, on this machine."""

from guardrail_sdk_openai._client import OnBlock, guard_client
from guardrail_sdk_openai._verdicts import verdicts

__all__ = ["OnBlock", "guard_client", "verdicts"]

"""Guards the chat endpoints of an ASGI app: what its clients send, and what it answers."""

from guardrail_sdk_asgi._middleware import GuardMiddleware
from guardrail_sdk_asgi._route import GuardedRoute

__version__ = "0.1.0"

__all__ = ["GuardMiddleware", "GuardedRoute"]

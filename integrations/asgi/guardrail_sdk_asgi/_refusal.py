"""What a client is told in place of what was not let through."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from guardrail_sdk import Blocked, MessageError, Stage
from guardrail_sdk_asgi._framing import Kind, event
from guardrail_sdk_asgi._types import Event, Send

Type = Literal["guardrail_blocked", "guardrail_unreadable", "guardrail_too_large"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An error in the shape that OpenAI's API and its clients use."""

    status: int
    type: Type
    message: str
    stage: Stage
    action: str | None = None
    category: str | None = None

    @classmethod
    def of(cls, blocked: Blocked, stage: Stage) -> Refusal:
        """Return what says that a text was blocked, and why."""
        decision = blocked.decision
        return cls(
            # Also for a response: clients ask again after a status of 500 and more.
            status=400,
            type="guardrail_blocked",
            message=decision.reason,
            stage=stage,
            action=decision.action.value,
            category=decision.category and decision.category.value,
        )

    @classmethod
    def unreadable(cls, error: MessageError, stage: Stage) -> Refusal:
        """Return what says that a body can't be judged; only of its own does a client learn why."""
        if stage == "input":
            message = f"The request can't be judged, so it is refused. {error}"
            return cls(status=400, type="guardrail_unreadable", message=message, stage=stage)
        message = "The response can't be judged, so it is withheld."
        return cls(status=500, type="guardrail_unreadable", message=message, stage=stage)

    @property
    def body(self) -> str:
        """The error as JSON."""
        error = {
            "message": self.message,
            "type": self.type,
            "code": "content_filter" if self.type == "guardrail_blocked" else None,
            "param": None,
            "stage": self.stage,
            "action": self.action,
            "category": self.category,
        }
        return json.dumps({"error": error})

    def last(self, kind: Kind) -> bytes | None:
        """Return what says so at the end of a stream that has begun; None if nothing can."""
        if kind is Kind.EVENTS:
            return event(self.body, "event: error\n").encode()
        return f"{self.body}\n".encode() if kind is Kind.LINES else None

    async def send(self, send: Send) -> None:
        """Send it as a whole response."""
        body = self.body.encode()
        start: Event = {
            "type": "http.response.start",
            "status": self.status,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"cache-control", b"no-store"),
            ],
        }
        await send(start)
        await send({"type": "http.response.body", "body": body, "more_body": False})

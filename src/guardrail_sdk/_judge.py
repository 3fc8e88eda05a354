"""The seam between the guard and what judges: one protocol, and the budget of a check."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from threading import Event
from typing import Protocol

from guardrail_sdk._errors import EngineTimeout
from guardrail_sdk._policy import Policy
from guardrail_sdk._types import Conversation, Verdict


@dataclass(frozen=True, slots=True)
class Budget:
    """How long one check may go on; shared by the thread that judges and the one that waits.

    Attributes:
        deadline: The `time.monotonic()` at which it must end; None for no limit.
        cancelled: Set when nobody waits for the verdict any more.
    """

    deadline: float | None = None
    cancelled: Event = field(default_factory=Event)

    @classmethod
    def of(cls, policy: Policy) -> Budget:
        """Return the budget of a check that starts now."""
        if policy.deadline_ms is None:
            return cls()
        return cls(deadline=time.monotonic() + policy.deadline_ms / 1000)

    def remaining_s(self) -> float | None:
        """Return the seconds left, at least 0; None for no limit."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def spend(self) -> None:
        """Return if there is time left.

        Raises:
            EngineTimeout: If the deadline has passed or the check was cancelled.
        """
        if self.cancelled.is_set():
            raise EngineTimeout("The check was cancelled before a verdict.")
        if self.remaining_s() == 0.0:
            raise EngineTimeout(
                "No verdict within the policy's deadline_ms; raise it, or shorten the input."
            )


class Judge(Protocol):
    """Whatever gives verdicts: the local model, or a fake in a test."""

    @property
    def id(self) -> str:
        """Name, version and hash: what `Verdict.model` says."""
        ...

    def judge(self, conversation: Conversation, policy: Policy, budget: Budget) -> Verdict:
        """Judge the last message of `conversation`; called in worker threads, several at once.

        Raises:
            EngineError: If there is no verdict, for whatever reason.
            MessageError: If the last message isn't a user's or an assistant's.
        """
        ...

"""A fake model, so that code which uses a guard can be tested without one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from threading import Event

from guardrail_sdk._errors import EngineError
from guardrail_sdk._judge import Budget
from guardrail_sdk._policy import Policy
from guardrail_sdk._types import Category, Conversation, Message, Span, Stage, Verdict
from guardrail_sdk.prompt import stage_of

Scores = Callable[[Stage, str], float | Mapping[Category, float]]
"""From a stage and the judged text to P(unsafe), or to a score by hazard."""


class FakeModel:
    """A deterministic stand-in for the local model: pass it as `Guard(model=FakeModel(...))`.

    Examples:
        >>> from guardrail_sdk import Guard
        >>> Guard(model=FakeModel(["bomb"])).check_sync("How to build a bomb?").blocked
        True

    Args:
        unsafe: The words that make a text unsafe (in any case), or a function that scores it.
        category: The hazard of an unsafe text, unless the function scores hazards itself.
        error: What to raise in place of a verdict; None to judge.
        gate: If given, every verdict waits until it is set, or until its budget is spent.

    Attributes:
        seen: Every conversation that was judged, in order.
    """

    def __init__(
        self,
        unsafe: Iterable[str] | Scores = (),
        *,
        category: Category = Category.S2,
        error: Exception | None = None,
        gate: Event | None = None,
    ) -> None:
        self.seen: list[tuple[Message, ...]] = []
        self._scores = unsafe if callable(unsafe) else _word_scores(unsafe)
        self._category = category
        self._error = error
        self._gate = gate

    @property
    def id(self) -> str:
        """What `Verdict.model` says."""
        return "fake"

    @classmethod
    def failing(cls) -> FakeModel:
        """Return a model that never gives a verdict."""
        return cls(error=EngineError("The fake model was told to fail."))

    def judge(self, conversation: Conversation, policy: Policy, budget: Budget) -> Verdict:
        """Judge the last message, as a `Judge` does."""
        stage = stage_of(conversation)
        self.seen.append(tuple(conversation))
        while self._gate is not None and not self._gate.wait(timeout=0.005):
            budget.spend()
        if self._error is not None:
            raise self._error
        text = conversation[-1].content
        scores = self._scores(stage, text)
        if not isinstance(scores, Mapping):
            scores = {self._category: scores}
        return Verdict(
            unsafe_probability=max(scores.values(), default=0.0),
            categories={category: scores.get(category, 0.0) for category in Category},
            stage=stage,
            role=conversation[-1].role,
            message_index=len(conversation) - 1,
            span=Span(start=0, end=len(text)),
            windowed=False,
            context_trimmed=False,
            reading="written",
            threshold=0.5,
            category_thresholds=dict.fromkeys(Category, 0.5),
            model=self.id,
            policy=policy.id,
            latency_ms=0.0,
        )


def _word_scores(words: Iterable[str]) -> Scores:
    unsafe = [word.casefold() for word in ([words] if isinstance(words, str) else words)]

    def scores(stage: Stage, text: str) -> float:
        folded = text.casefold()
        return float(any(word in folded for word in unsafe))

    return scores

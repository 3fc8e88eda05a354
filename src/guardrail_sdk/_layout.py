"""Lays a conversation out as prompts that fit a model's context, losing none of the judged text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from guardrail_sdk._errors import ArtifactError, EngineError, InputTooLong
from guardrail_sdk._judge import Budget
from guardrail_sdk._types import Conversation, Message, Span
from guardrail_sdk.prompt import Template
from guardrail_sdk.tokenizer import PromptTokenizer

_OVERLAP = 8
"""Neighbouring windows share one part in this many, so that no phrase is only seen cut."""
_SPARE = 8
"""Tokens left free in a window: a cut word takes a few more than it did within its text."""
_LEAST_ROOM = 32
"""The fewest tokens a template may leave for text."""
_DENSEST = 8
"""A text with more characters per token of context than this isn't tried in one piece."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One prompt.

    Attributes:
        ids: Its token ids, at most as many as fit.
        span: The part of the judged text that it holds.
    """

    ids: tuple[int, ...]
    span: Span


class Layout:
    """Makes prompts of one template for a model whose prompts hold `most_tokens`.

    Raises:
        ArtifactError: If the tokenizer lacks one of the template's special tokens, or the
            template alone nearly fills a prompt.
    """

    def __init__(self, template: Template, tokenizer: PromptTokenizer, most_tokens: int) -> None:
        self._template = template
        self._tokenizer = tokenizer
        self._most_tokens = most_tokens
        for role in ("user", "assistant"):
            if self._room([Message(role=role, content="")]) < _LEAST_ROOM:
                raise ArtifactError(
                    f"The model's context of {most_tokens} tokens is too short for its template. "
                    "Rebuild the model with a longer one."
                )

    def context(self, conversation: Conversation) -> tuple[Message, ...]:
        """Return the messages before the last, shortened to what the prompt has room for.

        The judged message takes what it needs, but leaves half of the room; the latest messages
        are kept, the earliest of them by its end.
        """
        *earlier, judged = conversation
        if not earlier or self._whole(conversation):
            return tuple(earlier)
        bare = replace(judged, content="")
        room = self._room([bare])
        needed = self._tokenizer.count(judged.content, at_most=room) + _SPARE
        left = max(room // 2, room - needed)
        kept: list[Message] = []
        for message in reversed(earlier):
            marker = room - self._room([replace(message, content=""), bare])
            content = self._tokenizer.tail(message.content, left - marker)
            if content != message.content:
                content = self._tokenizer.tail(content, left - marker - _SPARE)
            shortened = replace(message, content=content)
            left -= room - self._room([shortened, bare])
            if left < 0 or not (content or shortened == message):
                break
            kept.append(shortened)
            if shortened != message:
                break
        context = tuple(reversed(kept))
        # Tokens at the seams could make the whole longer than its parts.
        return context if self._room([*context, bare]) >= _LEAST_ROOM // 2 else ()

    def rows(self, conversation: Conversation, most_windows: int, budget: Budget) -> list[Row]:
        """Return the prompts in which the last message of `conversation` is judged.

        Args:
            conversation: Its earlier messages as `context` returned them.
            most_windows: The most prompts.
            budget: Checked between windows.

        Raises:
            InputTooLong: If the message needs more prompts; found out before it is read whole.
            EngineTimeout: If the budget is spent.
        """
        judged = conversation[-1].content
        if whole := self._whole(conversation):
            return [Row(ids=whole, span=Span(start=0, end=len(judged)))]
        bare = [*conversation[:-1], replace(conversation[-1], content="")]
        rows: list[Row] = []
        everything = Span(start=0, end=len(judged))
        for row in self._windows(conversation, everything, self._room(bare) - _SPARE):
            budget.spend()
            rows.append(row)
            if len(rows) > most_windows:
                raise InputTooLong(
                    f"The message needs more than {most_windows} windows of the model's context. "
                    "Shorten it, or raise the policy's max_windows."
                )
        return rows

    def _windows(self, conversation: Conversation, part: Span, most_tokens: int) -> Iterator[Row]:
        """Yield a row for each window of `part`; smaller windows where a row grows too long."""
        *context, judged = conversation
        text = judged.content[part.start : part.end]
        for window in self._tokenizer.windows(text, most_tokens, most_tokens // _OVERLAP):
            span = Span(start=part.start + window.start, end=part.start + window.end)
            piece = replace(judged, content=judged.content[span.start : span.end])
            ids = self._ids([*context, piece])
            if len(ids) <= self._most_tokens:
                yield Row(ids=tuple(ids), span=span)
            elif most_tokens > 1:
                yield from self._windows(conversation, span, most_tokens // 2)
            else:
                # A tokenizer that normalises can make a run of characters without a boundary.
                for half in _halves(span):
                    yield from self._windows(conversation, half, self._most_tokens)

    def _whole(self, conversation: Conversation) -> tuple[int, ...]:
        """Return the prompt of the whole conversation; nothing if it doesn't fit."""
        characters = sum(len(message.content) for message in conversation)
        if characters > _DENSEST * self._most_tokens:
            return ()
        ids = self._ids(conversation)
        return tuple(ids) if len(ids) <= self._most_tokens else ()

    def _room(self, conversation: Conversation) -> int:
        return self._most_tokens - len(self._ids(conversation))

    def _ids(self, conversation: Sequence[Message]) -> list[int]:
        return self._tokenizer.encode(self._template.render(conversation))


def _halves(span: Span) -> tuple[Span, Span]:
    """Return the two halves of `span`.

    Raises:
        EngineError: If it is a single character.
    """
    middle = (span.start + span.end) // 2
    if middle == span.start:
        raise EngineError("A single character of the message doesn't fit the model's context.")
    return Span(start=span.start, end=middle), Span(start=middle, end=span.end)

"""Writes a text back into the messages and answers of chat libraries, in place of all they said.

Nothing passed in is ever changed.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping

from guardrail_sdk._errors import MessageError
from guardrail_sdk._shapes import SPOKEN, field, has, items, loose_fields, mapping, pair_of


def with_output_text(value: object, text: str) -> object:
    """Return a copy of `value` that says `text` and nothing else."""
    if isinstance(value, str):
        return text
    choices = items(field(value, "choices"))
    if choices is None or (not choices and has(value, "content")):
        return with_message_text(value, text)
    changed = [_with_choice_text(choice, text) for choice in choices]
    return _replaced(value, {**_silenced(value), "choices": changed})


def _with_choice_text(choice: object, text: str) -> object:
    held = [name for name in ("message", "delta") if field(choice, name) is not None]
    changes = {**_silenced(choice), "logprobs": None, "text": None if held else text}
    for name in held:
        changes[name] = with_message_text(field(choice, name), text)
    if field(choice, "finish_reason") in ("tool_calls", "function_call"):
        changes["finish_reason"] = "content_filter"
    return _replaced(choice, changes)


def with_message_text(message: object, text: str) -> object:
    """Return a copy of `message` that says `text`, and thinks and calls nothing."""
    pair = pair_of(message)
    if pair:
        return (pair[0], text)
    changes = _silenced(message)
    if mapping(field(message, "additional_kwargs")):
        changes["additional_kwargs"] = {}
    metadata = mapping(field(message, "response_metadata"))
    if metadata and "logprobs" in metadata:
        changes["response_metadata"] = {k: v for k, v in metadata.items() if k != "logprobs"}
    return _replaced(message, {**changes, "content": text})


def _silenced(value: object) -> dict[str, object]:
    """Return changes that empty every field of `value` that is judged, known or not."""
    spoken = {name: field(value, name) for name in SPOKEN}
    held = {**loose_fields(value, ()), **spoken}
    return {
        name: [] if items(item) is not None else None
        for name, item in held.items()
        if item is not None
    }


def with_last_text(messages: object, text: str) -> object:
    """Return a copy of a string or sequence of messages whose last message says `text`."""
    known = items(messages)
    if not known:
        return text
    changed = [*known[:-1], with_message_text(known[-1], text)]
    return tuple(changed) if isinstance(messages, tuple) else changed


def _replaced(value: object, changes: Mapping[str, object]) -> object:
    """Return a copy of `value` with those of `changes` that it has a place for."""
    known = mapping(value)
    if known is not None:
        copied: dict[object, object] = dict(known)
        copied.update((k, v) for k, v in changes.items() if k in known or k == "content")
        return copied
    changes = {k: v for k, v in changes.items() if hasattr(value, k) or k == "content"}
    try:
        model_copy: object = getattr(value, "model_copy", None)
        if callable(model_copy):
            return model_copy(update=changes)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.replace(value, **changes)
        clone = copy.copy(value)
        for name, change in changes.items():
            setattr(clone, name, change)
    except (AttributeError, TypeError, ValueError):
        raise MessageError(
            f"A {type(value).__name__} can't be copied with another text: pass a codec."
        ) from None
    return clone

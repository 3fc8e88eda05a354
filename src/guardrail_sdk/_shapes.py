"""Reads text out of the message shapes that chat libraries use, and writes a text back.

Known are strings, role/content dicts and objects, LangChain-like messages, content parts, and
OpenAI-like completions and their chunks. What isn't known is a MessageError, so that no text
slips by unjudged. Nothing that is passed in is ever changed.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Final, cast

from guardrail_sdk._errors import MessageError
from guardrail_sdk._types import Message, Role

_ROLES: Final[Mapping[str, Role]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "tool": "tool",
    "function": "tool",
    "SystemMessageChunk": "system",
    "HumanMessageChunk": "user",
    "AIMessageChunk": "assistant",
    "ToolMessageChunk": "tool",
    "FunctionMessageChunk": "tool",
}

# The fields of a message that hold text besides `content`, in the order in which they are judged.
_REASONING: Final = ("reasoning_content", "reasoning", "thinking")
_CALLS: Final = ("tool_call_chunks", "tool_calls", "invalid_tool_calls", "function_call")
_MEDIA: Final = ("audio", "images", "image", "video")
_SPOKEN: Final = ("content", "refusal", *_REASONING, *_CALLS)

_TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text", "summary_text"})
_CALL_PARTS: Final = frozenset(
    {"tool_use", "server_tool_use", "tool_call", "server_tool_call", "tool_call_chunk"}
)


def field(value: object, name: str) -> object:
    """Return the item or attribute `name` of `value`; None if there is none."""
    known = mapping(value)
    return getattr(value, name, None) if known is None else known.get(name)


def mapping(value: object) -> Mapping[object, object] | None:
    """Return `value` if it is a mapping, else None."""
    return cast("Mapping[object, object]", value) if isinstance(value, Mapping) else None


def items(value: object) -> Sequence[object] | None:
    """Return `value` if it is a sequence of things, None if it is text or anything else."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview):
        return cast("Sequence[object]", value)
    return None


def is_message(value: object) -> bool:
    """Return whether `value` has a role that is known, as a message has."""
    return _role(value) is not None


def read_messages(value: object) -> list[Message]:
    """Return the conversation that `value` holds: a user's text, or a sequence of messages.

    Raises:
        MessageError: If anything in it can't be understood; says which message and why.
    """
    if isinstance(value, str):
        return [Message(role="user", content=value)]
    messages = items(value)
    if messages is None:
        raise MessageError(
            f"Messages can't be read from {type(value).__name__}: pass a string or a list of "
            "messages with a role and a content."
        )
    if not messages:
        raise MessageError("The conversation is empty: pass at least one message.")
    return [_read_message(message, index) for index, message in enumerate(messages)]


def _read_message(value: object, index: int) -> Message:
    pair = _pair(value)
    role = _role(value)
    if role is None:
        raise MessageError(
            f"Message {index} ({type(value).__name__}) has no role that is known: use system, "
            "developer, user, assistant or tool."
        )
    try:
        return Message(role=role, content=pair[1] if pair else message_text(value))
    except MessageError as error:
        raise MessageError(f"Message {index}: {error}") from None


def _role(value: object) -> Role | None:
    pair = _pair(value)
    role = pair[0] if pair else field(value, "role")
    if not isinstance(role, str):
        role = None
    if role not in _ROLES and not pair and _has(value, "content"):
        role = field(value, "type")  # LangChain's messages say it there
    return _ROLES.get(role) if isinstance(role, str) else None


def _pair(value: object) -> tuple[str, str] | None:
    """Return `value` if it is LangChain's shorthand `(role, text)`."""
    if isinstance(value, tuple):
        match cast("tuple[object, ...]", value):
            case (str(role), str(text)):
                return role, text
            case _:
                return None
    return None


def message_text(message: object, joint: str = "\n") -> str:
    """Return all the text of one message, or of a piece of one: what it says, thinks and calls.

    Raises:
        MessageError: If it has none of the known fields or holds more than text.
    """
    if not any(_has(message, name) for name in _SPOKEN):
        raise MessageError(f"Text can't be read from {type(message).__name__}: pass a codec.")
    extras = mapping(field(message, "additional_kwargs"))
    sources: tuple[object, ...] = (message,) if extras is None else (message, extras)
    for source in sources:
        _refuse_media(source)
    parts = [_reasoning(field(source, name)) for source in sources for name in _REASONING]
    parts.append(content_text(field(message, "content")))
    parts += [_plain(field(source, "refusal")) for source in sources]
    parts += _calls_text(message) or _calls_text(extras)
    return joint.join(part for part in parts if part)


def content_text(content: object) -> str:
    """Return the text of a message's content: None, a string or a list of parts.

    Parts are joined without a separator, as chat templates join them: a word that was cut in two
    reads as one.

    Raises:
        MessageError: If a part isn't text.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = items(content)
    if parts is None:
        raise MessageError(f"The content is {type(content).__name__}, not text or a list of parts.")
    return "".join(map(_part_text, parts))


def _part_text(part: object) -> str:
    if isinstance(part, str):
        return part
    kind = field(part, "type")
    if not isinstance(kind, str):
        kind = "text" if (mapping(part) or {}).keys() == {"text"} else ""
    if kind in _TEXT_PARTS:
        text = field(part, "text")
        if isinstance(text, str):
            return text
    elif kind == "refusal":
        return _plain(field(part, "refusal"))
    elif kind in ("reasoning", "thinking"):
        return _plain(field(part, kind)) + content_text(field(part, "summary"))
    elif kind in _CALL_PARTS:
        return _call_text(part)
    elif kind == "input_json_delta":
        return _plain(field(part, "partial_json"))
    elif kind == "tool_result":
        return content_text(field(part, "content"))
    raise MessageError(
        "A content part is not text, so it can't be judged: leave it out, or pass a codec that "
        "turns it into text."
    )


def _plain(text: object) -> str:
    if text is None or isinstance(text, str):
        return text or ""
    raise MessageError(f"A text field holds {type(text).__name__}: pass a codec.")


def _reasoning(value: object) -> str:
    """Return the text of a reasoning field, which some libraries fill with a content part."""
    return _plain(value) if mapping(value) is None else _part_text(value)


def _refuse_media(message: object) -> None:
    for name in _MEDIA:
        if _has(message, name) and field(message, name):
            raise MessageError(f"The message holds {name}, which can't be judged: pass a codec.")


def _calls_text(message: object) -> list[str]:
    """Return name and arguments of each tool call; of a chunk, the pieces as they came."""
    pieces = items(field(message, "tool_call_chunks"))
    if pieces:
        return [_call_text(call) for call in pieces]
    calls: list[object] = []
    for name in ("tool_calls", "invalid_tool_calls"):
        value = field(message, name)
        found = items(value)
        if value is not None and found is None:
            raise MessageError(f"{name} holds {type(value).__name__}, not a list: pass a codec.")
        calls += found or ()
    legacy = field(message, "function_call")
    return [_call_text(call) for call in ([*calls, legacy] if legacy else calls)]


def _call_text(call: object) -> str:
    body = field(call, "function") or field(call, "custom") or call
    name = _plain(field(body, "name"))
    for key in ("arguments", "args", "input"):
        arguments = field(body, key)
        if arguments is not None:
            return (f"{name} " if name else "") + _json(arguments)
    return f"{name} " if name else ""


def _json(value: object) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        raise MessageError("A tool call's arguments are not JSON: pass a codec.") from None


def output_text(value: object) -> str:
    """Return all the text of what a chat function returned, or of one chunk of its stream.

    Raises:
        MessageError: If it can't be understood; says why.
    """
    if isinstance(value, str):
        return value
    choices = items(field(value, "choices"))
    if choices is None:
        return message_text(value, "" if _is_piece(value) else "\n")
    texts = [_choice_text(choice, alone=len(choices) == 1) for choice in choices]
    return "\n\n".join(filter(None, texts))


def _choice_text(choice: object, alone: bool) -> str:
    message, delta, text = (field(choice, name) for name in ("message", "delta", "text"))
    if message is not None:
        return message_text(message)
    if field(choice, "index") and (delta is not None or alone):
        raise MessageError(
            "The stream interleaves several choices, which can't be judged piece by piece: "
            "use n=1, or no stream."
        )
    if delta is not None:
        return _delta_text(delta)
    if isinstance(text, str):
        return text
    if _has(choice, "delta"):
        return ""
    raise MessageError("A choice holds neither message, delta nor text: pass a codec.")


def _delta_text(delta: object) -> str:
    known = mapping(delta)
    if known is not None and known.keys() <= {"role"}:
        return ""
    return message_text(delta, "")


def _is_piece(message: object) -> bool:
    kind = field(message, "type")
    return isinstance(kind, str) and kind.endswith("Chunk")


def with_output_text(value: object, text: str) -> object:
    """Return a copy of `value` that says `text` and nothing else."""
    if isinstance(value, str):
        return text
    choices = items(field(value, "choices"))
    if choices is None:
        return with_message_text(value, text)
    return _replaced(value, {"choices": [_with_choice_text(choice, text) for choice in choices]})


def _with_choice_text(choice: object, text: str) -> object:
    changes: dict[str, object] = {"logprobs": None}  # they spell the text
    for name in ("message", "delta"):
        if field(choice, name) is not None:
            changes[name] = with_message_text(field(choice, name), text)
    if len(changes) == 1:
        changes["text"] = text
    if field(choice, "finish_reason") in ("tool_calls", "function_call"):
        changes["finish_reason"] = "content_filter"
    return _replaced(choice, changes)


def with_message_text(message: object, text: str) -> object:
    """Return a copy of `message` that says `text`, and thinks and calls nothing."""
    pair = _pair(message)
    if pair:
        return (pair[0], text)
    changes: dict[str, object] = {
        name: [] if items(field(message, name)) is not None else None
        for name in _SPOKEN
        if field(message, name) is not None
    }
    if mapping(field(message, "additional_kwargs")):
        changes["additional_kwargs"] = {}
    metadata = mapping(field(message, "response_metadata"))
    if metadata and "logprobs" in metadata:
        changes["response_metadata"] = {k: v for k, v in metadata.items() if k != "logprobs"}
    return _replaced(message, {**changes, "content": text})


def with_last_text(messages: object, text: str) -> object:
    """Return a copy of a string or sequence of messages whose last message says `text`."""
    known = items(messages)
    if not known:
        return text
    changed = [*known[:-1], with_message_text(known[-1], text)]
    return tuple(changed) if isinstance(messages, tuple) else changed


def _has(value: object, name: str) -> bool:
    known = mapping(value)
    return hasattr(value, name) if known is None else name in known


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

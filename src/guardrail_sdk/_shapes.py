"""Reads text out of the message shapes that chat libraries use, and writes a text back.

Known are strings, role/content dicts and objects, LangChain-like messages, content parts, and
OpenAI-like completions and their chunks. Fields that aren't known are read as JSON, and what can't
be read is a MessageError, so that no text slips by unjudged. Nothing passed in is ever changed.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from enum import Enum
from typing import Final, cast
from uuid import UUID

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
# fmt: off
_MEDIA: Final = frozenset({
    "attachment", "attachments", "audio", "document", "documents", "file", "files", "image",
    "image_url", "images", "inline_data", "input_audio", "input_image", "media", "video",
    "video_url", "videos",
})
# fmt: on
_SPOKEN: Final = ("content", "refusal", *_REASONING, *_CALLS)
_ARGUMENTS: Final = ("arguments", "args", "input")

# Fields that hold what a service says about a message, not what the message says.
# fmt: off
_INERT: Final = frozenset({
    "cache_control", "chunk_position", "content_filter_results", "created", "created_at",
    "encrypted_content", "example", "finish_reason", "id", "index", "is_error", "logprobs",
    "model", "name", "native_finish_reason", "object", "obfuscation", "prompt_filter_results",
    "provider", "response_metadata", "role", "service_tier", "signature", "status", "stop_reason",
    "stop_sequence", "system_fingerprint", "timings", "tool_call_id", "tool_use_id", "type",
    "usage", "usage_metadata", "x_groq",
})
# fmt: on

_THOUGHTS: Final = ("reasoning", "thinking", "summary", "text", "content")
_PARTS: Final[Mapping[str, Sequence[str]]] = {
    **dict.fromkeys(("text", "input_text", "output_text", "summary_text"), ("text",)),
    **dict.fromkeys(("reasoning", "reasoning_text", "thinking"), _THOUGHTS),
    **dict.fromkeys(("reasoning.text", "reasoning.summary"), _THOUGHTS),
    "refusal": ("refusal",),
    "input_json_delta": ("partial_json",),
    "tool_result": ("content",),
}
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
    return joint.join(_said(message))


def _said(message: object, known: Collection[str] = ()) -> list[str]:
    """Return all the texts of a message, each once, except those of the fields `known`."""
    extras = mapping(field(message, "additional_kwargs"))
    sources: tuple[object, ...] = (message,) if extras is None else (message, extras)
    parts = [_reasoning(field(source, name)) for source in sources for name in _REASONING]
    parts += [content_text(field(source, "content")) for source in sources]
    parts += [_plain(field(source, "refusal")) for source in sources]
    parts += _calls_text(sources)
    known = {*known, *_SPOKEN, *(() if extras is None else ("additional_kwargs",))}
    parts += [text for source in sources for text in _unknown(source, known)]
    return list(dict.fromkeys(filter(None, parts)))


def _unknown(value: object, known: Collection[str]) -> list[str]:
    """Return, as JSON, all that holds text in `value` besides the fields `known`."""
    texts: list[str] = []
    for name, item in _loose_fields(value, known).items():
        if name in _MEDIA:
            raise MessageError(f"The message holds {name}, which can't be judged: pass a codec.")
        if name == "reasoning_details" and items(item) is not None:
            texts += map(_detail_text, items(item) or ())
        else:
            texts.append(_json(item))
    return texts


def _detail_text(detail: object) -> str:
    return _part_text(detail) if field(detail, "type") in _PARTS else _json(detail)


def _loose_fields(value: object, known: Collection[str]) -> dict[str, object]:
    """Return the fields of `value` that may hold text and are neither `known` nor inert."""
    return {
        name: item
        for name, item in _fields(value).items()
        if name not in known and name not in _INERT and not _is_silent(item)
    }


def _is_silent(value: object) -> bool:
    """Return whether `value` is a number or nothing, all the way down."""
    if value is None or isinstance(value, bool | int | float):
        return True
    inner = mapping(value)
    if inner is not None:
        return all(_is_silent(item) and not isinstance(item, int) for item in inner.values())
    found = items(value)
    return not value if found is None else all(map(_is_silent, found))


def _fields(value: object) -> dict[str, object]:
    """Return the items of a mapping, or the public fields that an object is known to have."""
    known = mapping(value)
    if known is not None:
        if not all(isinstance(key, str) for key in known):
            raise MessageError("A message has a key that is not a string: pass a codec.")
        return dict(cast("Mapping[str, object]", known))
    return {name: field(value, name) for name in _names(value) if not name.startswith("_")}


def _names(value: object) -> Iterator[str]:
    for kind in type(value).__mro__:
        slots = cast("str | Collection[str]", getattr(kind, "__slots__", ()))
        yield from (slots,) if isinstance(slots, str) else slots
    for source in (getattr(value, "__dict__", None), getattr(value, "model_extra", None)):
        yield from map(str, mapping(source) or ())


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
    if kind in _CALL_PARTS:
        return _call_text(part)
    names = _PARTS.get(kind, ())
    texts = [content_text(field(part, name)) for name in names]
    if names and any(_has(part, name) for name in names):
        return "".join([*texts, *_unknown(part, names)])
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


def _calls_text(sources: Sequence[object]) -> list[str]:
    """Return name and arguments of each tool call; of a chunk, the pieces as they came."""
    pieces: list[object] = []
    calls: list[object] = []
    for name, source in ((name, source) for name in _CALLS for source in sources):
        value = field(source, name)
        found = [value] if name == "function_call" and value else items(value)
        if value and found is None:
            raise MessageError(f"{name} holds {type(value).__name__}, not a list: pass a codec.")
        (pieces if name == "tool_call_chunks" else calls).extend(found or ())
    texts = [_call_text(call) for call in pieces]
    said = "".join(texts)
    # LangChain parses the pieces again: text said twice would tear what spans two chunks.
    new = [
        call
        for call in calls
        if not pieces or any(leaf not in said for leaf in _leaves(_call_parts(call)))
    ]
    return [*texts, *map(_call_text, new)]


def _leaves(value: object) -> Iterator[str]:
    """Yield every string in JSON-like `value`, keys too."""
    inner = mapping(value)
    if isinstance(value, str):
        yield value
    elif inner is not None:
        for pair in inner.items():
            yield from _leaves(pair)
    else:
        found = items(value)
        for item in _fields(value).items() if found is None else found:
            yield from _leaves(item)


def _call_text(call: object) -> str:
    name, *values = _call_parts(call)
    return (f"{name} " if name else "") + "".join(map(_json, values))


def _call_parts(call: object) -> list[object]:
    """Return a call's name, its arguments under any key, and whatever else it holds."""
    if not call or isinstance(call, str):
        return ["", call or ""]
    if not _fields(call):
        return ["", _json(call)]
    inner = [body for body in (field(call, "function"), field(call, "custom")) if body]
    bodies = [*inner, call]
    name = " ".join(filter(None, (_plain(field(body, "name")) for body in bodies)))
    found = [field(body, key) for body in bodies for key in _ARGUMENTS]
    rest = [body for body in inner if not _fields(body)]
    known = {"function", "custom", "name", *_ARGUMENTS}
    rest += [text for body in bodies for text in _unknown(body, known)]
    return [name, *(value for value in found if value is not None), *rest]


def _json(value: object) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, default=_jsonable)
    except (TypeError, ValueError, RecursionError):
        raise MessageError("A field of a message is not JSON: pass a codec.") from None


def _jsonable(value: object) -> object:
    if isinstance(value, date | time | Decimal | UUID):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    found = items(value)
    fields = None if found is not None else _fields(value)
    if found is None and not fields:
        raise TypeError
    return fields if found is None else list(found)


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
    return "\n\n".join(filter(None, [*texts, *_said(value, ("choices",))]))


def _choice_text(choice: object, alone: bool) -> str:
    message, delta, text = (field(choice, name) for name in ("message", "delta", "text"))
    rest = _unknown(choice, ("message", "delta", "text"))
    if message is not None:
        texts = [message_text(message), _delta_text(delta), _plain(text), *rest]
        return "\n".join(filter(None, texts))
    if field(choice, "index") and (delta is not None or alone):
        raise MessageError(
            "The stream interleaves several choices, which can't be judged piece by piece: "
            "use n=1, or no stream."
        )
    if isinstance(text, str) or _has(choice, "delta"):
        return "".join([_delta_text(delta), _plain(text), *rest])
    raise MessageError("A choice holds neither message, delta nor text: pass a codec.")


def _delta_text(delta: object) -> str:
    known = mapping(delta)
    if delta is None or (known is not None and known.keys() <= {"role"}):
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
    if choices is None or (not choices and _has(value, "content")):
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
    pair = _pair(message)
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
    spoken = {name: field(value, name) for name in _SPOKEN}
    held = {**_loose_fields(value, ()), **spoken}
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

"""Reads text out of the messages and answers of chat libraries.

Fields that aren't known are read as JSON, and what can't be read is a MessageError, so that no
text slips by unjudged.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from enum import Enum
from typing import Final
from uuid import UUID

from guardrail_sdk._errors import MessageError
from guardrail_sdk._shapes import (
    CALLS,
    REASONING,
    SPOKEN,
    field,
    fields_of,
    has,
    items,
    loose_fields,
    mapping,
    pair_of,
    role_of,
)
from guardrail_sdk._types import Message

# fmt: off
_MEDIA: Final = frozenset({
    "attachment", "attachments", "audio", "document", "documents", "file", "files", "image",
    "image_url", "images", "inline_data", "input_audio", "input_image", "media", "video",
    "video_url", "videos",
})
# fmt: on
_ARGUMENTS: Final = ("arguments", "args", "input")

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
    pair = pair_of(value)
    role = role_of(value)
    if role is None:
        raise MessageError(
            f"Message {index} ({type(value).__name__}) has no role that is known: use system, "
            "developer, user, assistant or tool."
        )
    try:
        return Message(role=role, content=pair[1] if pair else message_text(value))
    except MessageError as error:
        raise MessageError(f"Message {index}: {error}") from None


def message_text(message: object, joint: str = "\n") -> str:
    """Return all the text of one message, or of a piece of one: what it says, thinks and calls.

    Raises:
        MessageError: If it has none of the known fields or holds more than text.
    """
    if not any(has(message, name) for name in SPOKEN):
        raise MessageError(f"Text can't be read from {type(message).__name__}: pass a codec.")
    return joint.join(_said(message))


def _said(message: object, known: Collection[str] = ()) -> list[str]:
    """Return all the texts of a message, each once, except those of the fields `known`."""
    extras = mapping(field(message, "additional_kwargs"))
    sources: tuple[object, ...] = (message,) if extras is None else (message, extras)
    parts = [_reasoning(field(source, name)) for source in sources for name in REASONING]
    parts += [content_text(field(source, "content")) for source in sources]
    parts += [_plain(field(source, "refusal")) for source in sources]
    parts += _calls_text(sources)
    known = {*known, *SPOKEN, *(() if extras is None else ("additional_kwargs",))}
    parts += [text for source in sources for text in _unknown(source, known)]
    return list(dict.fromkeys(filter(None, parts)))


def _unknown(value: object, known: Collection[str]) -> list[str]:
    """Return, as JSON, all that holds text in `value` besides the fields `known`."""
    texts: list[str] = []
    for name, item in loose_fields(value, known).items():
        if name in _MEDIA:
            raise MessageError(f"The message holds {name}, which can't be judged: pass a codec.")
        if name == "reasoning_details" and items(item) is not None:
            texts += map(_detail_text, items(item) or ())
        else:
            texts.append(_json(item))
    return texts


def _detail_text(detail: object) -> str:
    return _part_text(detail) if field(detail, "type") in _PARTS else _json(detail)


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
    if names and any(has(part, name) for name in names):
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
    for name, source in ((name, source) for name in CALLS for source in sources):
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
        for item in fields_of(value).items() if found is None else found:
            yield from _leaves(item)


def _call_text(call: object) -> str:
    name, *values = _call_parts(call)
    return (f"{name} " if name else "") + "".join(map(_json, values))


def _call_parts(call: object) -> list[object]:
    """Return a call's name, its arguments under any key, and whatever else it holds."""
    if not call or isinstance(call, str):
        return ["", call or ""]
    if not fields_of(call):
        return ["", _json(call)]
    inner = [body for body in (field(call, "function"), field(call, "custom")) if body]
    bodies = [*inner, call]
    name = " ".join(filter(None, (_plain(field(body, "name")) for body in bodies)))
    found = [field(body, key) for body in bodies for key in _ARGUMENTS]
    rest = [body for body in inner if not fields_of(body)]
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
    fields = None if found is not None else fields_of(value)
    if found is None and not fields:
        raise TypeError
    return fields if found is None else list(found)


def output_text(value: object) -> str | Mapping[Hashable, str]:
    """Return all the text of what a chat function returned, or of one chunk of its stream.

    Of a chunk with other choices than the first, it is each choice's text by its index; what else
    the chunk says is by None, with the first choice's text.

    Raises:
        MessageError: If it can't be understood; says why.
    """
    if isinstance(value, str):
        return value
    choices = items(field(value, "choices"))
    if choices is None:
        return message_text(value, "" if _is_piece(value) else "\n")
    texts = [_choice_text(choice) for choice in choices]
    whole = any(field(choice, "message") is not None for choice in choices)
    indices = [None if whole else _index(choice) for choice in choices]
    rest = _said(value, ("choices",))
    if not any(indices):
        return "\n\n".join(filter(None, [*texts, *rest]))
    of: dict[Hashable, str] = {}
    for index, text in zip(indices, texts, strict=True):
        of[index] = of.get(index, "") + text
    of[None] = "\n\n".join(filter(None, [of.get(None, ""), *rest]))
    return of


def _index(choice: object) -> int | None:
    """Return the index of a choice; None for the first."""
    index = field(choice, "index")
    if index is None or isinstance(index, int):
        return index or None
    raise MessageError(f"A choice's index is {type(index).__name__}: pass a codec.")


def _choice_text(choice: object) -> str:
    message, delta, text = (field(choice, name) for name in ("message", "delta", "text"))
    rest = _unknown(choice, ("message", "delta", "text"))
    if message is not None:
        texts = [message_text(message), _delta_text(delta), _plain(text), *rest]
        return "\n".join(filter(None, texts))
    if isinstance(text, str) or has(choice, "delta"):
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

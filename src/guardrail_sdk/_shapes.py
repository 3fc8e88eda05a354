"""The message shapes that chat libraries use: who speaks, and which fields hold text.

Known are strings, role/content dicts and objects, LangChain-like messages, content parts, and
OpenAI-like completions and their chunks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final, cast

from guardrail_sdk._errors import MessageError
from guardrail_sdk._types import Role

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
REASONING: Final = ("reasoning_content", "reasoning", "thinking")
CALLS: Final = ("tool_call_chunks", "tool_calls", "invalid_tool_calls", "function_call")
SPOKEN: Final = ("content", "refusal", *REASONING, *CALLS)

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


def has(value: object, name: str) -> bool:
    """Return whether `value` has an item or attribute `name`."""
    known = mapping(value)
    return hasattr(value, name) if known is None else name in known


def is_message(value: object) -> bool:
    """Return whether `value` has a role that is known, as a message has."""
    return role_of(value) is not None


def role_of(value: object) -> Role | None:
    """Return who speaks in the message `value`; None if it doesn't say, or isn't one."""
    pair = pair_of(value)
    role = pair[0] if pair else field(value, "role")
    if not isinstance(role, str):
        role = None
    if role not in _ROLES and not pair and has(value, "content"):
        role = field(value, "type")  # LangChain's messages say it there
    return _ROLES.get(role) if isinstance(role, str) else None


def pair_of(value: object) -> tuple[str, str] | None:
    """Return `value` if it is LangChain's shorthand `(role, text)`."""
    if isinstance(value, tuple):
        match cast("tuple[object, ...]", value):
            case (str(role), str(text)):
                return role, text
            case _:
                return None
    return None


def fields_of(value: object) -> dict[str, object]:
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


def loose_fields(value: object, known: Collection[str]) -> dict[str, object]:
    """Return the fields of `value` that may hold text and are neither `known` nor inert."""
    return {
        name: item
        for name, item in fields_of(value).items()
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

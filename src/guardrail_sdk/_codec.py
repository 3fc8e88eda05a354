"""The seam between a chat function's own types and the guard's: what to judge, how to redact it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Final, Protocol, cast

from guardrail_sdk._errors import MessageError
from guardrail_sdk._extract import output_text, read_messages
from guardrail_sdk._redact import with_last_text, with_message_text, with_output_text
from guardrail_sdk._shapes import field, is_message, items
from guardrail_sdk._types import Message

Args = tuple[object, ...]
Kwargs = Mapping[str, object]

_NAMES: Final = ("messages", "prompt", "input")


class Codec(Protocol):
    """How a guard reads and redacts what a chat function takes and returns.

    Write one for a function whose types `DefaultCodec` doesn't know. A codec never changes what
    it is given: it returns copies. It raises `MessageError` for what it can't understand.
    """

    def read_input(self, args: Args, kwargs: Kwargs) -> Sequence[Message]:
        """Return the conversation that a call passes to the chat function."""
        ...

    def write_input(self, args: Args, kwargs: Kwargs, text: str) -> tuple[Args, Kwargs]:
        """Return the call's arguments with the last message's text replaced by `text`."""
        ...

    def read_output(self, value: object) -> str | Mapping[Hashable, str]:
        """Return all the text of what the function returned, or of one chunk of its stream.

        Where chunks hold pieces of several texts, such as of several answers, it is a mapping
        from what names each text to its piece: each is judged for itself.
        """
        ...

    def write_output(self, value: object, text: str) -> object:
        """Return a copy of `value` that holds `text` and no other text; `text` may be empty."""
        ...


class DefaultCodec:
    """Knows the common shapes; whatever else it meets is a `MessageError`.

    Input is the one argument that holds messages: a string, a list of messages, one message or a
    LangChain prompt value, passed by position or as `messages`, `prompt` or `input`. If two
    arguments could be it, that is an error, too: pass the other one by its own keyword. Beside it,
    only None, numbers, callables and a method's `self` may be passed by position. Keyword
    arguments of other names are not judged. Output is a string, a message, or an OpenAI-like
    completion or chunk. A field of a message that isn't known is judged as JSON.
    """

    def read_input(self, args: Args, kwargs: Kwargs) -> list[Message]:
        """Return the conversation in the arguments."""
        value, _ = _locate(args, kwargs)
        return read_messages(_as_list(value))

    def write_input(self, args: Args, kwargs: Kwargs, text: str) -> tuple[Args, Kwargs]:
        """Return the arguments with the last message's text replaced."""
        value, key = _locate(args, kwargs)
        prompt = _prompt_messages(value)
        if prompt is not None:
            redacted = _with_prompt_messages(value, with_last_text(prompt, text))
        elif is_message(value):
            redacted = with_message_text(value, text)
        else:
            redacted = with_last_text(value, text)
        if isinstance(key, str):
            return args, {**kwargs, key: redacted}
        return (*args[:key], redacted, *args[key + 1 :]), kwargs

    def read_output(self, value: object) -> str | Mapping[Hashable, str]:
        """Return all the text of a value or chunk: what is said, thought, refused and called.

        If a chunk has other choices than the first, it is a mapping with the text of each.
        """
        return output_text(value)

    def write_output(self, value: object, text: str) -> object:
        """Return a copy of `value` that says `text`."""
        return with_output_text(value, text)


def _locate(args: Args, kwargs: Kwargs) -> tuple[object, int | str]:
    """Return the one argument that holds messages, and its index or name."""
    found: list[tuple[object, int | str]] = [
        (value, index) for index, value in enumerate(args) if _may_hold_messages(value)
    ]
    found += [(kwargs[name], name) for name in _NAMES if kwargs.get(name) is not None]
    unknown = [
        value
        for index, value in enumerate(args)
        if not (_may_hold_messages(value) or _is_inert(value) or (index == 0 and _is_self(value)))
    ]
    if len(found) == 1 and not unknown:
        return found[0]
    problem = (
        f"{len(found) + len(unknown)} arguments may hold messages, and only one would be judged"
        if found
        else "No argument holds messages"
    )
    raise MessageError(
        f"{problem}: pass one string or list of messages by position or as {', '.join(_NAMES)}, "
        "other arguments by keyword; or pass a codec."
    )


def _is_inert(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float) or callable(value)


def _is_self(value: object) -> bool:
    """Return whether `value` can be what a method is called on, rather than data."""
    return type(value).__module__ != "builtins" and not isinstance(value, Iterable)


def _may_hold_messages(value: object) -> bool:
    return (
        isinstance(value, str | bytes)
        or items(value) is not None
        or is_message(value)
        or _prompt_messages(value) is not None
    )


def _as_list(value: object) -> object:
    prompt = _prompt_messages(value)
    if prompt is not None:
        return prompt
    return [value] if is_message(value) else value


def _prompt_messages(value: object) -> object:
    """Return the messages of a LangChain-like prompt value; None if `value` is none."""
    if isinstance(value, type):
        return None
    convert = getattr(value, "to_messages", None)
    messages = cast("Callable[[], object]", convert)() if callable(convert) else None
    return messages if items(messages) is not None else None


def _with_prompt_messages(value: object, messages: object) -> object:
    """Return the messages in place of the prompt value: chat functions take either."""
    if isinstance(field(value, "messages"), list):
        copied = getattr(value, "model_copy", None)
        if callable(copied):
            return copied(update={"messages": messages})
    return messages

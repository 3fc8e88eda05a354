"""Reads and redacts the bodies of requests and responses for the guard."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from json import JSONDecodeError
from typing import Final, cast

from guardrail_sdk import Codec, GuardrailError, Message, MessageError
from guardrail_sdk_asgi._framing import Kind, Piece, decoded
from guardrail_sdk_asgi._json import Steps, found, parse, replaced, strings
from guardrail_sdk_asgi._route import GuardedRoute, pointers

Args = tuple[object, ...]
Kwargs = Mapping[str, object]

_CHAT: Final = frozenset({"choices", "content", "refusal", "tool_calls"})
_NAMES: Final = ("messages", "prompt", "input")
_DONE: Final = "[DONE]"


@dataclass(frozen=True, slots=True)
class Request:
    """The body of a request."""

    body: bytes


class BodyCodec:
    """What the guard sees of a route: one request in, pieces of a response out.

    Args:
        route: Where the text is in its bodies.
        shapes: Reads the messages and the answers that are there.
    """

    def __init__(self, route: GuardedRoute, shapes: Codec) -> None:
        self._route = route
        self._shapes = shapes
        self._messages = pointers(route.messages)
        self._text = pointers(route.text)

    def read_input(self, args: Args, kwargs: Kwargs) -> Sequence[Message]:
        """Return the conversation in the request."""
        body = _request_json(args)
        where = self._route.messages
        if callable(where):
            return self._shapes.read_input((_called(where, body, "messages"),), {})
        lists, texts = self._conversation(body)
        read = [self._shapes.read_input((value,), {}) for _, value in lists]
        history = [message for messages in read for message in messages]
        conversation = [*history, *(Message(role="user", content=text) for _, text in texts)]
        # Whatever role it claims, it comes from the client.
        return [
            replace(message, role="user") if message.role == "system" else message
            for message in conversation
        ]

    def write_input(self, args: Args, kwargs: Kwargs, text: str) -> tuple[Args, Kwargs]:
        """Return the request with its last message redacted."""
        body = _request_json(args)
        if callable(self._route.messages):
            raise MessageError(
                "The policy redacts the request, but where its text is only a function knows: "
                "name the field in messages, or let the policy block."
            )
        lists, texts = self._conversation(body)
        steps, value = texts[-1] if texts else lists[-1]
        written, _ = self._shapes.write_input((value,), {}, text)
        changed = replaced(body, steps, written[0])
        return (*args[:-1], Request(json.dumps(changed).encode())), kwargs

    def _conversation(
        self, body: object
    ) -> tuple[list[tuple[Steps, object]], list[tuple[Steps, str]]]:
        """Return the lists of messages and the strings in the named fields, with their places."""
        lists: list[tuple[Steps, object]] = []
        texts: list[tuple[Steps, str]] = []
        for steps in self._messages or _named(body):
            for value in found(body, steps):
                if isinstance(value, str):
                    texts.append((steps, value))
                elif value is not None:
                    lists.append((steps, value))
        if not lists and not texts:
            raise MessageError("The request has none of the fields that its messages may be in.")
        return lists, texts

    def read_output(self, value: object) -> str | Mapping[Hashable, str]:
        """Return the text of a piece of the response; of a chunk, that of each choice."""
        piece = _piece(value)
        text = self._payload_text(piece)
        if isinstance(text, Mapping):
            return {**text, "aside": piece.aside}
        return "\n".join(filter(None, (text, piece.aside)))

    def write_output(self, value: object, text: str) -> Piece:
        """Return a copy of a piece that says `text`."""
        piece = _piece(value)
        content = _content(piece)
        if isinstance(content, dict):
            changed = self._with_text(cast("dict[str, object]", content), text)
            return piece.holding(json.dumps(changed))
        is_json = isinstance(content, list) or content != piece.payload
        return piece.holding(json.dumps(text) if is_json else text)

    def _payload_text(self, piece: Piece) -> str | Mapping[Hashable, str]:
        content = _content(piece)
        if isinstance(content, str):
            return content
        if isinstance(content, list):
            return "\n".join(strings(cast("list[object]", content)))
        fields = cast("dict[str, object]", content)
        where = self._route.text
        if callable(where):
            return self._shapes.read_output(_called(where, fields, "text"))
        joint = "\n" if piece.kind is Kind.JSON else ""
        if self._text:
            texts = [value for steps in self._text for value in found(fields, steps)]
            return joint.join(strings(texts)) if texts else "\n".join(strings(fields))
        if _is_chat(fields):
            return self._read_chat(fields)
        if piece.kind is Kind.JSON or fields.get("error") or not fields:
            return "\n".join(strings(fields))
        raise MessageError(
            "An object in the stream is no chunk of a chat completion: say in the route's text "
            "where its text is."
        )

    def _read_chat(self, fields: object) -> str | Mapping[Hashable, str]:
        try:
            return self._shapes.read_output(fields)
        except MessageError as error:
            problem = str(error)
        raise MessageError(f"{problem} Or say in the route's text where the text is.")

    def _with_text(self, fields: dict[str, object], text: str) -> object:
        held = [steps for steps in self._text if found(fields, steps)]
        if not held and (self._route.text is not None or not _is_chat(fields)):
            raise MessageError(
                "The policy redacts the response, but not where its text is: name the field in "
                "the route's text, or let the policy block."
            )
        if not held:
            return self._shapes.write_output(fields, text)
        content: object = fields
        for steps in held:
            content = replaced(content, steps, text)
            text = ""
        return content


def _request_json(args: Args) -> object:
    request = args[-1]
    if not isinstance(request, Request):
        raise TypeError("The last argument of a guarded call is its request.")
    text = decoded(request.body)
    with suppress(JSONDecodeError):
        return parse(text)
    raise MessageError("The request's body is not JSON.")


def _named(body: object) -> list[Steps]:
    """Return where a request's messages are that no route says the place of."""
    if not isinstance(body, dict):
        return [()]
    fields = cast("dict[str, object]", body)
    held = [name for name in _NAMES if fields.get(name) is not None]
    if len(held) == 1:
        return [(held[0],)]
    raise MessageError(
        f"It has {len(held)} of the fields messages, prompt and input, and one is needed."
    )


def _piece(value: object) -> Piece:
    if isinstance(value, Piece):
        return value
    raise TypeError("The output of a guarded call is made of pieces.")


def _content(piece: Piece) -> object:
    """Return a piece's content: an object, a list, or else a text.

    Numbers and other words of JSON are texts: in an event stream they may be pieces of one.
    """
    text = piece.payload
    if piece.kind is Kind.TEXT:
        return text
    if text.strip() == _DONE:
        return ""
    with suppress(JSONDecodeError):
        content = parse(text)
        return cast("object", content) if isinstance(content, dict | list | str) else text
    if piece.kind is Kind.JSON:
        raise MessageError("The response is not JSON, though it says so.")
    return text


def _is_chat(fields: dict[str, object]) -> bool:
    return not fields.get("error") and not _CHAT.isdisjoint(fields)


def _called(where: Callable[[object], object], value: object, name: str) -> object:
    """Return what the user's function makes of `value`."""
    try:
        return where(value)
    except GuardrailError:
        raise
    except Exception as error:
        problem = type(error).__name__  # its message may hold text
    raise MessageError(f"The route's function {name} failed with {problem}.")
